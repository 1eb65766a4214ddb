//! Layers seen through real overlay mounts.

use super::*;

fn open() -> (Snapshots, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    // Characters that mean something in mount options.
    (Snapshots::open(&directory.path().join("a:b\\c,d")).unwrap(), directory)
}

#[test]
fn stack_shows_the_topmost_of_each_name() {
    let directory = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(&directory.path().join("a:b\\c")).unwrap();
    let base = Archive::new()
        .add(Item::directory("./").mode(0o751))
        .add(Item::file("kept", b"kept"))
        .add(Item::file("changed", b"old"))
        .add(Item::file("gone", b""))
        .add(Item::directory("dir"))
        .add(Item::file("dir/below", b""))
        .add(Item::directory("replaced"))
        .add(Item::file("replaced/below", b""))
        .add(Item::directory("removed"))
        .add(Item::file("removed/below", b""));
    let top = Archive::new()
        .add(Item::file("changed", b"new"))
        .add(Item::file(".wh.gone", b""))
        .add(Item::file("dir/above", b""))
        .add(Item::directory("replaced"))
        .add(Item::file("replaced/above", b""))
        .add(Item::file("replaced/.wh..wh..opq", b""))
        .add(Item::file(".wh.removed", b""))
        .add(Item::directory("removed"))
        .add(Item::file("removed/anew", b""));
    let base = add(&snapshots, None, &base);
    let top = add(&snapshots, Some(&base), &top);
    let (merged, _guard) = mounted(&snapshots, "key", Some(&top));
    assert_eq!(names(&merged), ["changed", "dir", "kept", "removed", "replaced"]);
    assert_eq!(std::fs::read(merged.join("changed")).unwrap(), b"new");
    assert_eq!(names(&merged.join("dir")), ["above", "below"]);
    assert_eq!(names(&merged.join("replaced")), ["above"]);
    assert_eq!(names(&merged.join("removed")), ["anew"]);
    assert_eq!(merged.metadata().unwrap().mode() & 0o7777, 0o751);
    // What is written stays in the snapshot.
    std::fs::remove_file(merged.join("kept")).unwrap();
    std::fs::write(merged.join("dir/written"), "x").unwrap();
    let directories = snapshots.directories("key").unwrap();
    assert_eq!(names(&directories.upper), ["dir", "kept"]);
    assert!(directories.upper.join("kept").symlink_metadata().unwrap().file_type().is_char_device());
    assert_eq!(names(&directories.lower[1].join("dir")), ["below"]);
    assert!(snapshots.usage("key").unwrap().inodes >= 3);
}

#[test]
fn mounted_snapshot_is_not_deleted_beneath_its_user() {
    let (snapshots, _directory) = open();
    let (merged, guard) = mounted(&snapshots, "key", None);
    std::fs::write(merged.join("x"), "x").unwrap();
    assert!(matches!(snapshots.remove("key"), Err(Error::Mounted { .. })));
    assert_eq!(snapshots.keys(), ["key"]);
    assert_eq!(std::fs::read(merged.join("x")).unwrap(), b"x");
    drop(guard);
    snapshots.remove("key").unwrap();
    assert_eq!(names(&snapshots.folders.path.join("active")), [""; 0]);
    assert_eq!(names(&snapshots.folders.path.join("removing")), [""; 0]);
}

#[test]
fn directories_that_no_entry_describes_look_as_below() {
    let (snapshots, _directory) = open();
    let base = Archive::new()
        .add(Item::directory("./").mode(0o711).owner(1, 2).mtime(3))
        .add(Item::directory("tmp").mode(0o1777).owner(3, 4).mtime(5))
        .add(Item::file("file", b""));
    let middle = Archive::new().add(Item::directory("./").mode(0o700)).add(Item::file("x", b""));
    let top = Archive::new()
        .add(Item::file("tmp/new/x", b""))
        .add(Item::file("file/x", b""))
        .add(Item::directory("./").mode(0o755));
    let base = add(&snapshots, None, &base);
    let implied = add(&snapshots, Some(&base), &Archive::new().add(Item::file("x", b"")));
    let middle = add(&snapshots, Some(&base), &middle);
    let top = add(&snapshots, Some(&middle), &top);
    let seen = |chain: &ChainId, path: &str| {
        let meta = snapshots.folders.layer(chain).join("fs").join(path).metadata().unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid())
    };
    assert_eq!(seen(&implied, ""), (0o711, 1, 2));
    assert_eq!(seen(&top, ""), (0o755, 0, 0));
    assert_eq!(seen(&top, "tmp"), (0o1777, 3, 4));
    assert_eq!(seen(&top, "tmp/new"), (0o755, 0, 0));
    assert_eq!(seen(&top, "file"), (0o755, 0, 0));
    assert_eq!(snapshots.folders.layer(&top).join("fs/tmp").metadata().unwrap().mtime(), 5);
}

#[test]
fn opaque_root_hides_all_below() {
    let (snapshots, _directory) = open();
    let base = add(&snapshots, None, &Archive::new().add(Item::file("below", b"")));
    let opaque = Archive::new().add(Item::file(".wh..wh..opq", b"")).add(Item::file("above", b""));
    let top = add(&snapshots, Some(&base), &opaque);
    let mounts = snapshots.prepare("key", Some(&top)).unwrap();
    assert_eq!(snapshots.directories("key").unwrap().lower.len(), 1);
    assert!(!mounts[0].options().as_ref().unwrap()[0].contains(base.digest().hex()));
    assert!(snapshots.in_use().contains(&base));
}

#[test]
fn more_layers_than_the_kernel_stacks_are_refused() {
    let (snapshots, _directory) = open();
    let mut top = None;
    for layer in 0..=LAYERS {
        top = Some(add(&snapshots, top.as_ref(), &Archive::new().add(Item::file(&layer.to_string(), b""))));
        if layer + 1 == LAYERS {
            snapshots.prepare("fits", top.as_ref()).unwrap();
        }
    }
    assert!(matches!(snapshots.prepare("key", top.as_ref()), Err(Error::TooManyLayers { layers: 501 })));
    assert_eq!(snapshots.keys(), ["fits"]);
}

#[test]
fn deep_trees_are_counted_and_removed() {
    let (snapshots, directory) = open();
    snapshots.prepare("key", None).unwrap();
    let upper = snapshots.directories("key").unwrap().upper;
    // Deeper than a path can say and than descriptors could be held.
    let mut fd = std::os::fd::OwnedFd::from(File::open(&upper).unwrap());
    for _ in 0..3000 {
        fd = make_directory(fd.as_fd(), "directory", 0o755).unwrap();
    }
    drop(fd);
    std::fs::write(upper.join("directory/.removing-0-0"), "in the way").unwrap();
    std::fs::write(upper.join(".removing-0-0"), "in the way").unwrap();
    assert_eq!(snapshots.usage("key").unwrap().inodes, 3002);
    snapshots.remove("key").unwrap();
    assert_eq!(names(&snapshots.folders.path.join("removing")), [""; 0]);
    drop(directory);
}
