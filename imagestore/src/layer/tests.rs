//! Tests of unpacking: archives made byte by byte, and what must come of them.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use tempfile::TempDir;

use super::{Error, Refusal, Unpacked, unpack};

pub(crate) mod archive;
pub(crate) mod equality;
pub(crate) mod facts;
mod fuzz;
mod hostile;
mod order;
mod race;

use archive::{Archive, Item};

/// A root to unpack in, with a stranger's files beside it.
pub(crate) struct World {
    directory: TempDir,
    root: OwnedFd,
    before: facts::Tree,
}

impl World {
    pub(crate) fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        std::fs::create_dir_all(outside.join("etc")).unwrap();
        std::fs::write(outside.join("etc/passwd"), "canary").unwrap();
        std::fs::write(directory.path().join("canary"), "canary").unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let before = facts::Tree::read(&outside);
        World { root: File::open(root).unwrap().into(), directory, before }
    }

    pub(crate) fn root(&self) -> std::path::PathBuf {
        self.directory.path().join("root")
    }

    pub(crate) fn unpack(&self, archive: &Archive) -> Result<Unpacked, Error> {
        self.unpack_bytes(&archive.bytes())
    }

    pub(crate) fn unpack_bytes(&self, bytes: &[u8]) -> Result<Unpacked, Error> {
        let result = unpack(bytes, self.root.as_fd());
        self.check_outside();
        result
    }

    /// Whatever was unpacked, nothing beside the root may have changed.
    fn check_outside(&self) {
        assert_eq!(facts::Tree::read(&self.directory.path().join("outside")), self.before);
        let mut names: Vec<_> =
            std::fs::read_dir(self.directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["canary", "outside", "root"]);
        assert_eq!(std::fs::read(self.directory.path().join("canary")).unwrap(), b"canary");
    }

    pub(crate) fn refusal(&self, archive: &Archive) -> Refusal {
        match self.unpack(archive) {
            Err(Error::Refused { refusal, .. }) => refusal,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.root().join(path)).unwrap()
    }

    pub(crate) fn facts(&self) -> facts::Tree {
        facts::Tree::read(&self.root())
    }

    pub(crate) fn outside(&self) -> std::path::PathBuf {
        self.directory.path().join("outside")
    }
}

/// Runs a program that the tests rely on and gives its output.
pub(crate) fn run(program: &str, arguments: &[&str], directory: &Path) -> Vec<u8> {
    // Other tools are what this is compared with.
    #[allow(clippy::disallowed_methods)]
    let output = std::process::Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("{program} (a package of Debian) is needed: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    output.stdout
}

#[test]
fn digest_counts_every_byte_of_the_stream() {
    let world = World::new();
    let mut bytes = Archive::new().add(Item::file("a", b"x")).bytes();
    bytes.extend_from_slice(b"after the end");
    let unpacked = world.unpack_bytes(&bytes).unwrap();
    assert_eq!(unpacked.diff_id, crate::Digest::of(&bytes));
    assert_eq!((unpacked.bytes, unpacked.inodes), (1, 1));
}

#[test]
fn empty_stream_is_an_empty_layer() {
    let world = World::new();
    let unpacked = world.unpack_bytes(b"").unwrap();
    assert_eq!(unpacked.diff_id, crate::Digest::of(b""));
    assert_eq!(unpacked.inodes, 0);
    assert_eq!(world.facts().0.len(), 1);
}

#[test]
fn counts_are_those_of_what_stays() {
    let world = World::new();
    let archive = Archive::new()
        .add(Item::directory("d/"))
        .add(Item::file("d/a", b"1234"))
        .add(Item::hard_link("d/b", "d/a"))
        .add(Item::symlink("d/s", "a"))
        .add(Item::file("d/a", b"12"))
        .add(Item::directory("gone/"))
        .add(Item::file("gone/x", b"123456789"))
        .add(Item::file("gone", b"1"));
    let unpacked = world.unpack(&archive).unwrap();
    assert_eq!((unpacked.bytes, unpacked.inodes), (4 + 2 + 1, 5));
}

#[test]
fn full_disk_is_told_from_a_bad_layer() {
    let world = World::new();
    let mount = world.root().join("small");
    std::fs::create_dir(&mount).unwrap();
    rustix::mount::mount("none", &mount, "tmpfs", rustix::mount::MountFlags::empty(), c"size=64k").unwrap();
    let root = File::open(&mount).unwrap();
    let archive = Archive::new().add(Item::file("big", &vec![1; 1 << 20]));
    let error = unpack(&archive.bytes()[..], root.as_fd()).unwrap_err();
    drop(root);
    rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(error.is_out_of_space(), "{error:?}");
    assert_eq!(error.to_string(), "write for entry \"big\"");
    assert!(!world.unpack(&Archive::new().add(Item::file("..", b""))).unwrap_err().is_out_of_space());
}

#[test]
fn errors_of_the_reader_come_through() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the registry hung up"))
        }
    }
    let world = World::new();
    let error = unpack(Broken, world.root.as_fd()).unwrap_err();
    assert_eq!(error.to_string(), "read layer at byte 0");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "the registry hung up");
}
