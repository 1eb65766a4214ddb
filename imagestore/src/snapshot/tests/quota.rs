//! Writable layers as projects, beneath a file system of this test's own making: not every kernel that runs the tests
//! keeps quotas. The end-to-end tests use a real one where there is one.

use std::{
    collections::HashMap,
    io,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::*;

/// Notes which directory is in which project, and what each project may take.
#[derive(Debug, Default)]
struct Noted {
    /// By inode.
    directories: Mutex<HashMap<u64, u32>>,
    limits: Mutex<HashMap<u32, u64>>,
}

impl ProjectQuota for Noted {
    fn assign(&self, directory: BorrowedFd<'_>, project: u32) -> io::Result<()> {
        let inode = fs::fstat(directory)?.st_ino;
        self.directories.lock().unwrap().insert(inode, project);
        Ok(())
    }

    fn limit(&self, _: BorrowedFd<'_>, project: u32, bytes: u64) -> io::Result<()> {
        self.limits.lock().unwrap().insert(project, bytes);
        Ok(())
    }

    fn usage(&self, _: BorrowedFd<'_>, project: u32) -> io::Result<Usage> {
        Ok(Usage { bytes: u64::from(project), inodes: 1 })
    }
}

fn project(noted: &Noted, path: &Path) -> Option<u32> {
    let inode = std::fs::metadata(path).unwrap().ino();
    noted.directories.lock().unwrap().get(&inode).copied()
}

#[test]
fn a_writable_layer_is_a_project_of_its_own_as_long_as_it_lives() {
    let (root, noted) = (tempfile::tempdir().unwrap(), Arc::new(Noted::default()));
    let open = || Snapshots::open_with(root.path(), Some(noted.clone())).unwrap();
    let snapshots = open();
    let chain = add(&snapshots, None, &Archive::new().add(Item::file("a", b"a")));
    snapshots.prepare("one", Some(&chain)).unwrap();
    snapshots.prepare("two", None).unwrap();
    snapshots.view("three", &chain).unwrap();
    snapshots.limit("one", 4096).unwrap();
    let directories = snapshots.directories("one").unwrap();
    let one = project(&noted, &directories.upper).expect("its upper directory is in a project");
    assert_eq!(project(&noted, &directories.work), Some(one), "else nothing could be renamed into the other");
    assert_ne!(project(&noted, &snapshots.directories("two").unwrap().upper), Some(one));
    assert!(snapshots.limit("three", 1).is_err(), "nobody writes there");
    assert_eq!(noted.limits.lock().unwrap()[&one], 4096);
    assert_eq!(snapshots.usage("one").unwrap().bytes, u64::from(one), "told and not counted");

    drop(snapshots);
    let snapshots = open();
    assert_eq!(snapshots.usage("one").unwrap().bytes, u64::from(one), "the record has it");
    snapshots.prepare("four", None).unwrap();
    let four = project(&noted, &snapshots.directories("four").unwrap().upper);
    assert!(four.is_some_and(|four| four > one + 1), "a number that nobody had lately: {four:?}");
    snapshots.remove("one").unwrap();
    assert_eq!(noted.limits.lock().unwrap()[&one], 0);
}

#[test]
fn where_no_quotas_are_kept_a_limit_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(root.path()).unwrap();
    snapshots.prepare("one", None).unwrap();
    assert!(!snapshots.can_limit());
    let error = snapshots.limit("one", 4096).unwrap_err();
    assert!(matches!(error, Error::NoQuota { .. }), "{error}");
    assert_eq!(crate::Error::from(error).kind(), crate::Kind::FailedPrecondition);
}

#[test]
fn a_layer_that_takes_long_to_count_is_not_counted_for_everybody_who_asks() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(root.path()).unwrap();
    snapshots.prepare("one", None).unwrap();
    let upper = snapshots.directories("one").unwrap().upper;
    (0..200).for_each(|number| std::fs::write(upper.join(number.to_string()), "").unwrap());
    assert_eq!(snapshots.usage("one").unwrap().inodes, 200);
    let counted = || snapshots.state().active["one"].counted.unwrap();
    let first = counted();
    // As if it had taken a minute.
    snapshots.state().active.get_mut("one").unwrap().counted =
        Some(Counted { cost: Duration::from_secs(60), ..first });
    std::fs::write(upper.join("more"), "").unwrap();
    assert_eq!(snapshots.usage("one").unwrap().inodes, 200, "for twenty minutes");
    assert_eq!(counted().at, first.at);
    snapshots.state().active.get_mut("one").unwrap().counted = Some(Counted { cost: state::CHEAP, ..first });
    assert_eq!(snapshots.usage("one").unwrap().inodes, 201);
}

#[test]
fn many_layers_that_take_long_together_are_not_counted_for_everybody_who_asks() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(root.path()).unwrap();
    for key in ["one", "two"] {
        snapshots.prepare(key, None).unwrap();
        std::fs::write(snapshots.directories(key).unwrap().upper.join("file"), "").unwrap();
    }
    assert_eq!(snapshots.total_usage().unwrap().inodes, 2);
    let first = snapshots.total.lock().unwrap().unwrap();
    *snapshots.total.lock().unwrap() = Some(Counted { cost: Duration::from_secs(60), ..first });
    snapshots.remove("two").unwrap();
    assert_eq!(snapshots.total_usage().unwrap().inodes, 2, "for twenty minutes");
    *snapshots.total.lock().unwrap() = Some(first);
    assert_eq!(snapshots.total_usage().unwrap().inodes, 1);
}
