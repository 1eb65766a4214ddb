//! What every implementation of snapshots owes its callers, as one suite.
//!
//! A layer is committed once and counts at once; a key is in use from `prepare` to `remove`; nothing that
//! something stands on can be deleted; what is missing is not an error to remove.

use super::*;

type Make<'m> = &'m dyn Fn() -> (Snapshots, TempDir);

/// Runs the whole suite, each part on snapshots of its own.
pub(super) fn run(make: Make<'_>) {
    for part in [
        layers_are_committed_once,
        parents_come_first,
        keys_are_used_once,
        keys_are_file_names,
        what_is_stood_on_stays,
        missing_is_fine_to_remove,
        mounts_are_told_again,
        usage_counts_what_was_written,
        views_show_the_layers_and_take_no_writes,
        changes_become_a_layer,
        concurrent_prepares_are_apart,
        layers_come_and_go_while_others_are_synced,
    ] {
        let (snapshots, _guard) = make();
        part(&snapshots);
    }
}

fn file(name: &str) -> Archive {
    Archive::new().add(Item::directory("./")).add(Item::file(name, name.as_bytes()))
}

fn layers_are_committed_once(snapshots: &Snapshots) {
    let chain = add(snapshots, None, &file("a"));
    assert!(snapshots.contains(&chain));
    assert_eq!(snapshots.committed(), std::slice::from_ref(&chain));
    assert_eq!(snapshots.layer_usage(&chain), Some(Usage { bytes: 1, inodes: 1 }));
    // A second stage for the same chain is dropped.
    assert_eq!(add(snapshots, None, &file("a")), chain);
    assert_eq!(snapshots.committed().len(), 1);
    // A stage that is never committed leaves nothing.
    drop(snapshots.stage().unwrap());
    snapshots.sync().unwrap();
    snapshots.sync().unwrap();
    let unknown = ChainId::base(&Digest::of(b"unknown"));
    assert!(!snapshots.contains(&unknown));
    assert_eq!(snapshots.layer_usage(&unknown), None);
}

fn parents_come_first(snapshots: &Snapshots) {
    let unknown = ChainId::base(&Digest::of(b"unknown"));
    let stage = snapshots.stage().unwrap();
    let unpacked = layer::unpack(&file("a").bytes()[..], stage.root()).unwrap();
    let chain = unknown.child(&unpacked.diff_id);
    let error = snapshots.commit(stage, &chain, Some(&unknown), &unpacked).unwrap_err();
    assert!(matches!(error, Error::NoLayer { chain } if chain == unknown));
    assert!(!snapshots.contains(&chain));
    assert!(matches!(snapshots.prepare("key", Some(&unknown)), Err(Error::NoLayer { .. })));
    assert!(snapshots.keys().is_empty());
}

fn keys_are_used_once(snapshots: &Snapshots) {
    let chain = add(snapshots, None, &file("a"));
    snapshots.prepare("key", Some(&chain)).unwrap();
    assert!(matches!(snapshots.prepare("key", Some(&chain)), Err(Error::Exists { key }) if key == "key"));
    assert!(matches!(snapshots.prepare("key", None), Err(Error::Exists { .. })));
    snapshots.remove("key").unwrap();
    snapshots.prepare("key", None).unwrap();
    assert_eq!(snapshots.keys(), ["key"]);
}

fn keys_are_file_names(snapshots: &Snapshots) {
    for key in ["", ".", "..", "a/b", "../a", ".hidden", "-a", "a\0", "a b", "ä", &"k".repeat(129)] {
        assert!(matches!(snapshots.prepare(key, None), Err(Error::InvalidKey { .. })), "{key:?}");
        assert!(matches!(snapshots.mounts(key), Err(Error::NotFound { .. })), "{key:?}");
        snapshots.remove(key).unwrap();
    }
    for key in ["0", "a.b_c-d", &"k".repeat(128)] {
        snapshots.prepare(key, None).unwrap();
    }
}

fn what_is_stood_on_stays(snapshots: &Snapshots) {
    let base = add(snapshots, None, &file("a"));
    let top = add(snapshots, Some(&base), &file("b"));
    let other = add(snapshots, None, &file("c"));
    snapshots.prepare("key", Some(&top)).unwrap();
    assert_eq!(snapshots.in_use(), HashSet::from([base.clone(), top.clone()]));
    for chain in [&base, &top] {
        assert!(matches!(snapshots.remove_committed(chain), Err(Error::LayerInUse { .. })));
    }
    snapshots.remove_committed(&other).unwrap();
    snapshots.remove("key").unwrap();
    assert!(snapshots.in_use().is_empty());
    assert!(matches!(snapshots.remove_committed(&base), Err(Error::LayerInUse { .. })));
    snapshots.remove_committed(&top).unwrap();
    snapshots.remove_committed(&base).unwrap();
    assert!(snapshots.committed().is_empty());
    // It can come back.
    assert_eq!(add(snapshots, None, &file("a")), base);
}

fn missing_is_fine_to_remove(snapshots: &Snapshots) {
    snapshots.remove("never").unwrap();
    snapshots.remove_committed(&ChainId::base(&Digest::of(b"never"))).unwrap();
    assert!(matches!(snapshots.mounts("never"), Err(Error::NotFound { .. })));
    assert!(matches!(snapshots.directories("never"), Err(Error::NotFound { .. })));
    assert!(matches!(snapshots.usage("never"), Err(Error::NotFound { .. })));
}

fn mounts_are_told_again(snapshots: &Snapshots) {
    let base = add(snapshots, None, &file("a"));
    let top = add(snapshots, Some(&base), &file("b"));
    let first = snapshots.prepare("key", Some(&top)).unwrap();
    assert_eq!(snapshots.mounts("key").unwrap(), first);
    let directories = snapshots.directories("key").unwrap();
    assert_eq!(directories.lower.len(), 2);
    assert_eq!(names(&directories.lower[0]), ["b"]);
    assert_eq!(names(&directories.lower[1]), ["a"]);
    for directory in [&directories.upper, &directories.work, &directories.merged] {
        assert_eq!(names(directory), [""; 0]);
    }
}

fn usage_counts_what_was_written(snapshots: &Snapshots) {
    let base = add(snapshots, None, &file("a"));
    snapshots.prepare("key", Some(&base)).unwrap();
    assert_eq!(snapshots.usage("key").unwrap(), Usage::default());
    let upper = snapshots.directories("key").unwrap().upper;
    std::fs::create_dir(upper.join("d")).unwrap();
    std::fs::write(upper.join("d/file"), vec![1; 100_000]).unwrap();
    std::fs::hard_link(upper.join("d/file"), upper.join("again")).unwrap();
    File::create(upper.join("hole")).unwrap().set_len(1 << 30).unwrap();
    std::os::unix::fs::symlink("/", upper.join("link")).unwrap();
    let usage = snapshots.usage("key").unwrap();
    assert_eq!(usage.inodes, 4);
    assert!((100_000..200_000).contains(&usage.bytes), "{usage:?}");
}

fn views_show_the_layers_and_take_no_writes(snapshots: &Snapshots) {
    let base = add(snapshots, None, &file("a"));
    let top = add(snapshots, Some(&base), &file("b"));
    for (key, chain, seen) in [("one", &base, &["a"][..]), ("two", &top, &["a", "b"])] {
        let mounts = snapshots.view(key, chain).unwrap();
        assert_eq!(snapshots.mounts(key).unwrap(), mounts);
        let merged = snapshots.directories(key).unwrap().merged;
        let mounted = Mounted::new(&mounts, &merged);
        assert_eq!(names(&merged), seen, "{key}");
        let refused = std::fs::write(merged.join("a"), "x").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{key}");
        assert_eq!(snapshots.usage(key).unwrap(), Usage::default());
        // In use like any other snapshot.
        assert!(matches!(snapshots.prepare(key, None), Err(Error::Exists { .. })));
        assert!(matches!(snapshots.remove_committed(chain), Err(Error::LayerInUse { .. })));
        drop(mounted);
        snapshots.remove(key).unwrap();
    }
    let unknown = ChainId::base(&Digest::of(b"unknown"));
    assert!(matches!(snapshots.view("key", &unknown), Err(Error::NoLayer { .. })));
}

fn changes_become_a_layer(snapshots: &Snapshots) {
    let base = add(snapshots, None, &file("a"));
    for (key, access) in [("plain", Access::Write), ("volatile", Access::Volatile)] {
        let mounts = snapshots.prepare_for(key, Some(&base), access).unwrap();
        let merged = snapshots.directories(key).unwrap().merged;
        let mounted = Mounted::new(&mounts, &merged);
        std::fs::write(merged.join(key), key).unwrap();
        std::fs::remove_file(merged.join("a")).unwrap();
        drop(mounted);
        let mut layer = Vec::new();
        crate::diff::write(&snapshots.upper(key).unwrap(), &Default::default(), &mut layer).unwrap();
        let stage = snapshots.stage().unwrap();
        let unpacked = layer::unpack(&layer[..], stage.root()).unwrap();
        let chain = base.child(&unpacked.diff_id);
        snapshots.commit(stage, &chain, Some(&base), &unpacked).unwrap();
        snapshots.remove(key).unwrap();
        let (merged, mounted) = mounted_view(snapshots, "look", &chain);
        assert_eq!(names(&merged), [key]);
        drop(mounted);
        snapshots.remove("look").unwrap();
    }
}

fn mounted_view(snapshots: &Snapshots, key: &str, chain: &ChainId) -> (PathBuf, Mounted) {
    let mounts = snapshots.view(key, chain).unwrap();
    let merged = snapshots.directories(key).unwrap().merged;
    let guard = Mounted::new(&mounts, &merged);
    (merged, guard)
}

fn concurrent_prepares_are_apart(snapshots: &Snapshots) {
    let base = add(snapshots, None, &file("a"));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let base = &base;
            scope.spawn(move || {
                for round in 0..20 {
                    let key = format!("{thread}-{round}");
                    snapshots.prepare(&key, Some(base)).unwrap();
                    // All threads want this one: one at a time has it.
                    if snapshots.prepare("contended", Some(base)).is_ok() {
                        snapshots.remove("contended").unwrap();
                    }
                    if round % 2 == 0 {
                        snapshots.remove(&key).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(snapshots.keys().len(), 80);
}

fn layers_come_and_go_while_others_are_synced(snapshots: &Snapshots) {
    let kept = add(snapshots, None, &file("kept"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20 {
                snapshots.sync().unwrap();
            }
        });
        for thread in 0..2 {
            scope.spawn(move || {
                for round in 0..40 {
                    // The same chain again and again: a record must not outlive its layer.
                    let chain = add(snapshots, None, &file(&format!("{thread}-{}", round % 2)));
                    snapshots.remove_committed(&chain).unwrap();
                }
            });
        }
    });
    assert_eq!(snapshots.committed(), [kept]);
    snapshots.sync().unwrap();
}
