//! Tests of snapshots: the contract, real mounts of what `prepare` gives, and what a crash leaves.

use std::{
    fs::File,
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::Path,
};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_bind, mount_remount, move_mount, unmount,
};
use tempfile::TempDir;

use super::*;
use crate::{
    Digest,
    layer::{
        self,
        tests::archive::{Archive, Item},
    },
};

mod contract;
mod quota;
mod recovery;
mod stacking;

/// Unpacks `archive` and commits it on top of `parent`.
pub(crate) fn add(snapshots: &Snapshots, parent: Option<&ChainId>, archive: &Archive) -> ChainId {
    let stage = snapshots.stage().unwrap();
    let unpacked = layer::unpack(&archive.bytes()[..], stage.root()).unwrap();
    let chain = match parent {
        Some(parent) => parent.child(&unpacked.diff_id),
        None => ChainId::base(&unpacked.diff_id),
    };
    snapshots.commit(stage, &chain, parent, &unpacked).unwrap();
    chain
}

/// A mount that goes away with its guard.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// Does what the runtime would do with the mounts of a snapshot.
    pub(crate) fn new(mounts: &[Mount], target: &Path) -> Mounted {
        for mount in mounts {
            let options = mount.options().clone().unwrap_or_default();
            if mount.typ().as_deref() == Some("bind") {
                mount_bind(mount.source().as_ref().unwrap(), target).unwrap();
                if options.iter().any(|option| option == "ro") {
                    mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
                }
                continue;
            }
            let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
            for option in &options {
                match option.split_once('=') {
                    Some((key, value)) => fsconfig_set_string(context.as_fd(), key, value).unwrap(),
                    None => fsconfig_set_flag(context.as_fd(), option.as_str()).unwrap(),
                }
            }
            fsconfig_create(context.as_fd()).unwrap();
            let fd =
                fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
            let from_fd = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(fd.as_fd(), "", rustix::fs::CWD, target, from_fd).unwrap();
        }
        Mounted(target.to_path_buf())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = unmount(&self.0, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        assert!(unmounted.is_ok() || std::thread::panicking(), "{unmounted:?}");
    }
}

/// Prepares a snapshot and mounts it where it says.
pub(crate) fn mounted(snapshots: &Snapshots, key: &str, parent: Option<&ChainId>) -> (PathBuf, Mounted) {
    let mounts = snapshots.prepare(key, parent).unwrap();
    let merged = snapshots.directories(key).unwrap().merged;
    let guard = Mounted::new(&mounts, &merged);
    (merged, guard)
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn snapshots_and_stages_go_between_threads() {
    fn between<T: Send + Sync>() {}
    between::<Snapshots>();
    between::<Stage>();
}

#[test]
fn overlay_snapshots_keep_the_contract() {
    contract::run(&|| {
        let directory = tempfile::tempdir().unwrap();
        (Snapshots::open(&directory.path().join("snapshots")).unwrap(), directory)
    });
}

#[test]
fn roots_are_closed_to_everyone_else_whatever_the_umask() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("snapshots");
    std::fs::create_dir(&root).unwrap();
    std::fs::create_dir(root.join("active")).unwrap();
    std::fs::set_permissions(&root, PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::set_permissions(root.join("active"), PermissionsExt::from_mode(0o777)).unwrap();
    let snapshots = Snapshots::open(&root).unwrap();
    let chain = add(&snapshots, None, &Archive::new().add(Item::directory("./").mode(0o1711).owner(5, 6)));
    snapshots.prepare("key", Some(&chain)).unwrap();
    let hex = chain.digest().hex();
    for path in
        ["", "active", "committed", "unpacking", "staging", "removing", "active/key", "active/key/work"]
    {
        assert_eq!(root.join(path).metadata().unwrap().mode() & 0o7777, 0o700, "{path}");
    }
    assert_eq!(root.join("committed").join(hex).metadata().unwrap().mode() & 0o7777, 0o700);
    let upper = root.join("active/key/fs").metadata().unwrap();
    assert_eq!((upper.mode() & 0o7777, upper.uid(), upper.gid()), (0o1711, 5, 6));
}

#[test]
fn umask_of_the_process_changes_nothing() {
    // It is the whole process', so each has a process of its own.
    let tests = [
        "snapshot::tests::roots_are_closed_to_everyone_else_whatever_the_umask",
        "layer::tests::order::modes_and_owners_are_exact",
    ];
    for umask in ["0", "027", "077", "0777"] {
        // Other tools are what this is compared with.
        #[allow(clippy::disallowed_methods)]
        let output = std::process::Command::new("sh")
            .args(["-c", "umask \"$1\"; shift; exec \"$@\"", "sh", umask])
            .arg(std::env::current_exe().unwrap())
            .arg("--exact")
            .args(tests)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("2 passed"), "umask {umask}: {text}");
    }
}

#[test]
fn full_disk_is_recognised() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path();
    rustix::mount::mount("none", target, "tmpfs", MountFlags::empty(), c"nr_inodes=9").unwrap();
    let guard = Mounted(target.to_path_buf());
    let snapshots = Snapshots::open(&target.join("s")).unwrap();
    let error = snapshots.prepare("key", None).unwrap_err();
    assert!(error.is_out_of_space(), "{error:?}");
    assert!(snapshots.keys().is_empty());
    assert_eq!(names(&target.join("s/unpacking")), [""; 0]);
    assert_eq!(names(&target.join("s/staging")), [""; 0]);
    snapshots.remove("key").unwrap();
    drop(snapshots);
    drop(guard);
}
