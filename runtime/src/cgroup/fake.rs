//! A tempdir that looks like a cgroup's directory, for the controllers' tests.

use std::path::Path;

use super::directory::Directory;

pub(super) struct Fake(tempfile::TempDir);

impl Fake {
    pub(super) fn with(files: &[(&str, &str)]) -> Fake {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        Fake(directory)
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn directory(&self) -> Directory {
        Directory::open(self.path()).unwrap()
    }

    /// What was written; real control files would forget each write but the last.
    pub(super) fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap()
    }
}
