//! What an update has changed so far, so that an update that fails half-way can be undone.
//!
//! Undoing goes backwards: every state on the way back was one on the way there, so the kernel, which checks some files
//! against others, accepts it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::Error;
use super::directory::Directory;

struct Change {
    path: PathBuf,
    before: Vec<String>,
}

/// A clone notes to the same list.
#[derive(Clone, Default)]
pub(super) struct Journal(Rc<RefCell<Vec<Change>>>);

impl Journal {
    /// `before` is what has to be written to restore the file, a write for each.
    pub(super) fn note(&self, path: &Path, before: Vec<String>) {
        self.0.borrow_mut().push(Change { path: path.to_owned(), before });
    }

    /// Restores what was noted, the last change first, past failures; the first of these is returned.
    pub(super) fn undo(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for change in self.0.take().iter().rev() {
            result = result.and(restore(change));
        }
        result
    }
}

fn restore(change: &Change) -> Result<(), Error> {
    let parent = change.path.parent().unwrap_or(Path::new("/"));
    let name = change.path.file_name().unwrap_or_default().to_string_lossy();
    // Nothing at all would be no write: an empty line is what clears a file.
    let text = |line: &String| if line.is_empty() { "\n".to_owned() } else { line.clone() };
    Directory::open(parent)?.write_each(&name, change.before.iter().map(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;

    #[test]
    fn the_oldest_state_is_restored_last() {
        let fake = Fake::with(&[("pids.max", "7"), ("cpu.max", "max 100000")]);
        let journal = Journal::default();
        let directory = fake.directory().noting(Some(&journal));
        directory.write("pids.max", "8").unwrap();
        directory.write("cpu.max", "500 100000").unwrap();
        directory.write("pids.max", "9").unwrap();
        journal.undo().unwrap();
        assert_eq!((fake.text("pids.max"), fake.text("cpu.max")), ("7".into(), "max 100000".into()));
    }

    #[test]
    fn keyed_files_get_back_old_lines() {
        let fake = Fake::with(&[("io.max", "8:0 rbps=1 wbps=max\n")]);
        let journal = Journal::default();
        let directory = fake.directory().noting(Some(&journal));
        directory.write_keyed("io.max", &["8:0 rbps=5".into(), "8:16 wbps=6".into()], "rbps=max").unwrap();
        std::fs::write(fake.path().join("io.max"), "").unwrap();
        journal.undo().unwrap();
        // Plain files keep the start of the longer write that came before.
        assert_eq!(fake.text("io.max"), "8:0 rbps=1 wbps=max");
    }

    #[test]
    fn a_key_that_had_no_line_gets_the_default() {
        let fake = Fake::with(&[("io.max", "")]);
        let journal = Journal::default();
        let directory = fake.directory().noting(Some(&journal));
        directory.write_keyed("io.max", &["8:16 wbps=6".into()], "rbps=max wbps=max").unwrap();
        journal.undo().unwrap();
        assert_eq!(fake.text("io.max"), "8:16 rbps=max wbps=max");
    }

    #[test]
    fn a_file_that_was_empty_is_cleared() {
        let fake = Fake::with(&[("cpuset.cpus", "")]);
        let journal = Journal::default();
        fake.directory().noting(Some(&journal)).write("cpuset.cpus", "1").unwrap();
        journal.undo().unwrap();
        assert_eq!(fake.text("cpuset.cpus"), "\n");
    }

    #[test]
    fn a_file_that_is_gone_does_not_keep_the_others_from_being_restored() {
        let fake = Fake::with(&[("pids.max", "7"), ("cpu.max", "max")]);
        let journal = Journal::default();
        let directory = fake.directory().noting(Some(&journal));
        directory.write("pids.max", "8").unwrap();
        directory.write("cpu.max", "9").unwrap();
        std::fs::remove_file(fake.path().join("cpu.max")).unwrap();
        assert!(journal.undo().unwrap_err().is_not_found());
        assert_eq!(fake.text("pids.max"), "7");
    }
}
