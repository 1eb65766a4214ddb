//! The `cpuset` controller of version 1: processors and memory nodes.
//!
//! A new cpuset is empty, and no task can enter an empty one: each level takes its parent's sets first. The kernel does this
//! by itself beneath a level that says so, and then does not arrange its scheduling domains anew, for which it looks at
//! every cpuset there is.

use std::path::Path;

use oci_spec::runtime::LinuxCpu;

use crate::cgroup::Error;
use crate::cgroup::directory::Directory;

const FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];
/// Whether a new cpuset begins with the sets of its parent, and with this very flag.
const CLONE_CHILDREN: &str = "cgroup.clone_children";

pub(super) fn apply(directory: &Directory, cpu: &LinuxCpu) -> Result<(), Error> {
    for (name, value) in FILES.iter().zip([cpu.cpus(), cpu.mems()]) {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            directory.write(name, value)?;
        }
    }
    Ok(())
}

/// Fills the sets of every level from `root` down to `path` that are empty still.
///
/// Levels that exist already are looked at too: whoever made one may not have come to filling it yet. One that is filled on
/// the way hands its sets down from then on.
pub(in crate::cgroup) fn inherit(root: &Path, path: &Path) -> Result<(), Error> {
    let directory = Directory::open(&root.join(path))?;
    for name in FILES {
        fill(root, path, &directory, name, false)?;
    }
    Ok(())
}

fn fill(
    root: &Path,
    path: &Path,
    directory: &Directory,
    name: &str,
    has_children: bool,
) -> Result<String, Error> {
    let value = directory.read(name)?;
    let Some(parent) = path.parent().filter(|_| value.is_empty()) else {
        return Ok(value);
    };
    let inherited = fill(root, parent, &Directory::open(&root.join(parent))?, name, true)?;
    directory.write(name, &inherited)?;
    if has_children {
        directory.write(CLONE_CHILDREN, "1")?;
    }
    Ok(inherited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_levels_take_the_sets_of_their_parents() {
        let root = tempfile::tempdir().unwrap();
        for (level, sets) in [("", ["0-1", "0"]), ("a", ["", ""]), ("a/b", ["", ""])] {
            let path = root.path().join(level);
            std::fs::create_dir_all(&path).unwrap();
            for (name, set) in FILES.iter().zip(sets).chain([(&CLONE_CHILDREN, "0")]) {
                std::fs::write(path.join(name), set).unwrap();
            }
        }
        inherit(root.path(), Path::new("a/b")).unwrap();
        let read = |level: &str, name| std::fs::read_to_string(root.path().join(level).join(name)).unwrap();
        for level in ["a", "a/b"] {
            assert_eq!([read(level, FILES[0]), read(level, FILES[1])], ["0-1", "0"]);
        }
        assert_eq!(["", "a", "a/b"].map(|level| read(level, CLONE_CHILDREN)), ["0", "1", "0"]);
    }

    #[test]
    fn a_set_of_its_own_is_kept() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("a")).unwrap();
        for (path, sets) in [(root.path().to_owned(), ["0-3", "0"]), (root.path().join("a"), ["2", "0"])] {
            for (name, set) in FILES.iter().zip(sets) {
                std::fs::write(path.join(name), set).unwrap();
            }
        }
        inherit(root.path(), Path::new("a")).unwrap();
        assert_eq!(std::fs::read_to_string(root.path().join("a").join(FILES[0])).unwrap(), "2");
    }
}
