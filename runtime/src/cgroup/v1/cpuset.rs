//! The `cpuset` controller of version 1: processors and memory nodes.
//!
//! A new cpuset is empty, and no task can enter an empty one: each level takes its parent's sets first.

use std::path::Path;

use oci_spec::runtime::LinuxCpu;

use crate::cgroup::Error;
use crate::cgroup::directory::Directory;

const FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

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
/// Levels that exist already are looked at too: whoever made one may not have come to filling it yet.
pub(in crate::cgroup) fn inherit(root: &Path, path: &Path) -> Result<(), Error> {
    let directory = Directory::open(&root.join(path))?;
    for name in FILES {
        fill(root, path, &directory, name)?;
    }
    Ok(())
}

fn fill(root: &Path, path: &Path, directory: &Directory, name: &str) -> Result<String, Error> {
    let value = directory.read(name)?;
    let Some(parent) = path.parent().filter(|_| value.is_empty()) else {
        return Ok(value);
    };
    let inherited = fill(root, parent, &Directory::open(&root.join(parent))?, name)?;
    directory.write(name, &inherited)?;
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
            for (name, set) in FILES.iter().zip(sets) {
                std::fs::write(path.join(name), set).unwrap();
            }
        }
        inherit(root.path(), Path::new("a/b")).unwrap();
        for level in ["a", "a/b"] {
            assert_eq!(std::fs::read_to_string(root.path().join(level).join(FILES[0])).unwrap(), "0-1");
            assert_eq!(std::fs::read_to_string(root.path().join(level).join(FILES[1])).unwrap(), "0");
        }
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
