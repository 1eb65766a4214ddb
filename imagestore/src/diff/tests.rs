//! Real changes through real overlay mounts: written as a layer, unpacked again, and compared.

use std::{fs, io::Write as _, os::unix::fs as unix, path::Path, process::Command};

use super::*;
use crate::{
    ChainId, Digest, Snapshots,
    layer::{
        self,
        tests::{
            archive::{Archive, Item},
            equality::build,
            facts::Tree,
        },
    },
    snapshot::tests::{add, mounted},
};

fn open() -> (tempfile::TempDir, Snapshots) {
    let root = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(&root.path().join("snapshots")).unwrap();
    (root, snapshots)
}

/// What is there before anything changes.
fn base(snapshots: &Snapshots) -> ChainId {
    let archive = Archive::new()
        .add(Item::directory("./").mode(0o755))
        .add(Item::directory("etc").mode(0o755).mtime(5))
        .add(Item::file("etc/hosts", b"old").mtime(5))
        .add(Item::file("etc/passwd", b"root").mtime(5))
        .add(Item::directory("gone").mtime(5))
        .add(Item::file("gone/x", b"").mtime(5))
        .add(Item::directory("replaced").mtime(5))
        .add(Item::file("replaced/old", b"").mtime(5))
        .add(Item::directory("untouched").mtime(5))
        .add(Item::file("untouched/y", b"").mtime(5));
    add(snapshots, None, &archive)
}

/// Changes of every kind.
fn change(merged: &Path) {
    build(merged);
    fs::write(merged.join("etc/hosts"), "new").unwrap();
    fs::remove_file(merged.join("etc/passwd")).unwrap();
    fs::remove_dir_all(merged.join("gone")).unwrap();
    fs::remove_dir_all(merged.join("replaced")).unwrap();
    fs::create_dir(merged.join("replaced")).unwrap();
    fs::write(merged.join("replaced/new"), "").unwrap();
    drop(std::os::unix::net::UnixListener::bind(merged.join("socket")).unwrap());
}

fn layer_of(snapshots: &Snapshots, key: &str, options: &DiffOptions) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&snapshots.upper(key).unwrap(), options, &mut bytes).unwrap();
    bytes
}

/// Without what a layer does not keep: sockets, fractions of seconds, overlayfs' own attributes, and the root's time.
fn kept(merged: &Path) -> Tree {
    let mut tree = Tree::read(merged);
    tree.0.retain(|_, facts| facts.mode & 0o170_000 != 0o140_000);
    for (path, facts) in &mut tree.0 {
        facts.mtime = if path.as_os_str().is_empty() { (0, 0) } else { (facts.mtime.0, 0) };
        facts.attributes.retain(|name, _| !name.starts_with(b"trusted.overlay."));
    }
    tree
}

#[test]
fn a_layer_of_changes_gives_the_same_tree_again() {
    let (_root, snapshots) = open();
    let base = base(&snapshots);
    let (merged, _mount) = mounted(&snapshots, "key", Some(&base));
    change(&merged);
    let bytes = layer_of(&snapshots, "key", &DiffOptions::default());
    assert!(bytes == layer_of(&snapshots, "key", &DiffOptions::default()), "the same bytes each time");
    assert!(bytes.len() < 6_000_000, "holes take no room: {}", bytes.len());

    let stage = snapshots.stage().unwrap();
    let unpacked = layer::unpack(&bytes[..], stage.root()).unwrap();
    assert_eq!(unpacked.diff_id, Digest::of(&bytes));
    let chain = base.child(&unpacked.diff_id);
    snapshots.commit(stage, &chain, Some(&base), &unpacked).unwrap();
    let (again, _mount) = mounted(&snapshots, "again", Some(&chain));
    kept(&again).assert_equals(&kept(&merged));
}

#[test]
fn other_readers_of_tar_understand_the_layer() {
    let (root, snapshots) = open();
    let base = base(&snapshots);
    let (merged, _mount) = mounted(&snapshots, "key", Some(&base));
    change(&merged);
    let bytes = layer_of(&snapshots, "key", &DiffOptions::default());
    let target = root.path().join("tar");
    fs::create_dir(&target).unwrap();
    let mut tar = Command::new("tar")
        .args(["-x", "-p", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C"])
        .arg(&target)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    tar.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(tar.wait().unwrap().success());
    let (theirs, ours) = (kept(&target), kept(&merged));
    let below = ["etc", "gone", "untouched", "untouched/y"].map(Path::new);
    for (path, facts) in ours.0.iter().filter(|(path, _)| !below.contains(&path.as_path())) {
        assert_eq!(theirs.0.get(path), Some(facts), "{}", path.display());
    }
    for marker in ["etc/.wh.passwd", ".wh.gone", "replaced/.wh..wh..opq"] {
        assert_eq!(theirs.get(marker).size, Some(0), "{marker}");
    }
}

#[test]
fn changes_are_listed_as_docker_does() {
    let (_root, snapshots) = open();
    let base = base(&snapshots);
    let (merged, _mount) = mounted(&snapshots, "key", Some(&base));
    let list = |options: &DiffOptions| -> Vec<String> {
        let changes = changes(&snapshots.upper("key").unwrap(), options).unwrap();
        let letter = |change: &Change| match change.kind {
            ChangeKind::Added => 'A',
            ChangeKind::Changed => 'C',
            ChangeKind::Deleted => 'D',
        };
        changes.iter().map(|change| format!("{} {}", letter(change), change.path.display())).collect()
    };
    assert_eq!(list(&DiffOptions::default()), [""; 0]);
    fs::write(merged.join("etc/hosts"), "new").unwrap();
    fs::remove_dir_all(merged.join("gone")).unwrap();
    fs::create_dir(merged.join("made")).unwrap();
    fs::write(merged.join("made/file"), "").unwrap();
    fs::remove_dir_all(merged.join("replaced")).unwrap();
    fs::create_dir(merged.join("replaced")).unwrap();
    fs::write(merged.join("replaced/old"), "").unwrap();
    assert_eq!(
        list(&DiffOptions::default()),
        ["C /etc/hosts", "D /gone", "A /made", "A /made/file", "C /replaced", "C /replaced/old"]
    );
    // What stands in an opaque directory of a layer hides what is below.
    let stage = snapshots.stage().unwrap();
    let unpacked =
        layer::unpack(&layer_of(&snapshots, "key", &DiffOptions::default())[..], stage.root()).unwrap();
    let chain = base.child(&unpacked.diff_id);
    snapshots.commit(stage, &chain, Some(&base), &unpacked).unwrap();
    let (merged, _mount) = mounted(&snapshots, "next", Some(&chain));
    fs::create_dir(merged.join("gone")).unwrap();
    let next = changes(&snapshots.upper("next").unwrap(), &DiffOptions::default()).unwrap();
    assert_eq!(next, [Change { kind: ChangeKind::Added, path: "/gone".into() }]);
}

#[test]
fn what_the_runtime_made_to_mount_on_is_no_change() {
    let (_root, snapshots) = open();
    let base = base(&snapshots);
    let (merged, _mount) = mounted(&snapshots, "key", Some(&base));
    for directory in ["proc", "dev", "srv/data/deep"] {
        fs::create_dir_all(merged.join(directory)).unwrap();
    }
    for file in ["etc/resolv.conf", "etc/hostname"] {
        fs::write(merged.join(file), "").unwrap();
    }
    let mount_points = ["/proc", "/dev", "/dev/shm", "/srv/data/deep", "/etc/resolv.conf", "/etc/hostname"];
    let options = DiffOptions { mount_points: mount_points.map(Into::into).into(), latest: None };
    let list = || changes(&snapshots.upper("key").unwrap(), &options).unwrap();
    assert_eq!(list(), []);
    assert_eq!(layer_of(&snapshots, "key", &options), [0; 1024], "an empty tar");
    assert_ne!(layer_of(&snapshots, "key", &DiffOptions::default()), [0; 1024]);
    fs::write(merged.join("srv/own"), "").unwrap();
    fs::write(merged.join("etc/hostname"), "content").unwrap();
    let paths: Vec<String> = list().iter().map(|change| change.path.display().to_string()).collect();
    assert_eq!(paths, ["/etc", "/etc/hostname", "/srv", "/srv/own"]);
}

#[test]
fn times_can_be_bounded_for_reproducible_layers() {
    let (_root, snapshots) = open();
    let options = DiffOptions { latest: Some(1000), ..DiffOptions::default() };
    let layer = |key: &str, seconds: i64| {
        snapshots.prepare(key, None).unwrap();
        let file = snapshots.directories(key).unwrap().upper.join("file");
        fs::write(&file, "x").unwrap();
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 7 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::utimensat(rustix::fs::CWD, &file, &times, flags).unwrap();
        layer_of(&snapshots, key, &options)
    };
    assert_eq!(layer("one", 5000), layer("two", 6000));
    assert_ne!(layer("three", 10), layer("four", 20));
    let before_1970 = layer("five", -7);
    let stage = snapshots.stage().unwrap();
    layer::unpack(&before_1970[..], stage.root()).unwrap();
}

#[test]
fn a_name_that_would_be_a_whiteout_is_refused() {
    let (_root, snapshots) = open();
    snapshots.prepare("key", None).unwrap();
    let upper = snapshots.directories("key").unwrap().upper;
    fs::create_dir(upper.join("d")).unwrap();
    fs::write(upper.join("d/.wh.x"), "").unwrap();
    let error =
        write(&snapshots.upper("key").unwrap(), &DiffOptions::default(), &mut Vec::new()).unwrap_err();
    assert!(matches!(&error, Error::Reserved { path } if path == "d/.wh.x"), "{error:?}");
    assert_eq!(error.kind(), Kind::InvalidArgument);
}

#[test]
fn directories_too_deep_for_a_layer_are_refused() {
    let (_root, snapshots) = open();
    snapshots.prepare("key", None).unwrap();
    let upper = snapshots.upper("key").unwrap();
    let mut directory = upper.directory().try_clone_to_owned().unwrap();
    for _ in 0..500 {
        rustix::fs::mkdirat(&directory, "directory", rustix::fs::Mode::from(0o755)).unwrap();
        let flags = rustix::fs::OFlags::DIRECTORY;
        directory = rustix::fs::openat(&directory, "directory", flags, rustix::fs::Mode::empty()).unwrap();
    }
    let error = write(&upper, &DiffOptions::default(), &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::LongPath { .. }), "{error:?}");
}

#[test]
fn a_file_that_changes_while_it_is_read_leaves_the_archive_whole() {
    let (_root, snapshots) = open();
    snapshots.prepare("key", None).unwrap();
    let file = snapshots.directories("key").unwrap().upper.join("file");
    fs::write(&file, vec![7; 600_000]).unwrap();
    /// Cuts the file short when its header is written, which is the second.
    struct Saboteur<'f>(&'f Path, Vec<u8>);
    impl std::io::Write for Saboteur<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.1.len() == 512 {
                fs::OpenOptions::new().write(true).open(self.0)?.set_len(1000)?;
            }
            self.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut out = Saboteur(&file, Vec::new());
    write(&snapshots.upper("key").unwrap(), &DiffOptions::default(), &mut out).unwrap();
    let stage = snapshots.stage().unwrap();
    assert_eq!(layer::unpack(&out.1[..], stage.root()).unwrap().bytes, 600_000);
}

#[test]
fn links_of_a_swapped_directory_are_not_followed() {
    let (root, snapshots) = open();
    snapshots.prepare("key", None).unwrap();
    let upper = snapshots.directories("key").unwrap().upper;
    let secret = root.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("key"), "private").unwrap();
    unix::symlink(&secret, upper.join("link")).unwrap();
    unix::symlink(secret.join("key"), upper.join("file")).unwrap();
    let bytes = layer_of(&snapshots, "key", &DiffOptions::default());
    assert!(!bytes.windows(7).any(|window| window == b"private"));
}
