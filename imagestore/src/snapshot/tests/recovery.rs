//! What is found again after a restart, and what is not.

use super::*;

fn file(name: &str) -> Archive {
    Archive::new().add(Item::file(name, name.as_bytes()))
}

#[test]
fn synced_layers_and_snapshots_are_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(directory.path()).unwrap();
    let base = add(&snapshots, None, &file("a"));
    let top = add(&snapshots, Some(&base), &file("b"));
    snapshots.sync().unwrap();
    let mounts = snapshots.prepare("key", Some(&top)).unwrap();
    snapshots.prepare("alone", None).unwrap();
    std::fs::write(snapshots.directories("key").unwrap().upper.join("x"), "x").unwrap();
    drop(snapshots);
    let snapshots = Snapshots::open(directory.path()).unwrap();
    assert!(snapshots.contains(&base) && snapshots.contains(&top));
    assert_eq!(snapshots.layer_usage(&top), Some(Usage { bytes: 1, inodes: 1 }));
    assert_eq!(snapshots.mounts("key").unwrap(), mounts);
    assert_eq!(snapshots.in_use().len(), 2);
    assert_eq!(snapshots.keys().len(), 2);
    assert_eq!(names(&snapshots.directories("key").unwrap().upper), ["x"]);
}

#[test]
fn layer_that_was_never_synced_counts_until_the_machine_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let open = |boot: &str| Snapshots::open_in_boot(directory.path(), boot.to_owned(), None).unwrap();
    let snapshots = open("one");
    let synced = add(&snapshots, None, &file("a"));
    snapshots.sync().unwrap();
    let unsynced = add(&snapshots, Some(&synced), &file("b"));
    let above = add(&snapshots, Some(&unsynced), &file("c"));
    snapshots.prepare("key", Some(&above)).unwrap();
    drop(snapshots);

    let snapshots = open("one");
    assert_eq!(snapshots.committed().len(), 3);
    assert_eq!(snapshots.keys(), ["key"]);
    assert!(snapshots.has_unsynced());
    drop(snapshots);

    let snapshots = open("two");
    assert_eq!(snapshots.committed(), [synced]);
    assert!(!snapshots.contains(&unsynced) && !snapshots.has_unsynced());
    // A snapshot without its layers is of no use to anyone.
    assert!(snapshots.keys().is_empty());
    for folder in ["unpacking", "staging", "removing", "active"] {
        assert_eq!(names(&directory.path().join(folder)), [""; 0], "{folder}");
    }
}

#[test]
fn layer_that_waits_for_its_sync_holds_no_descriptor() {
    let directory = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(directory.path()).unwrap();
    let open = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
        targets.filter(|target| target.starts_with(directory.path())).count()
    };
    let before = open();
    let layer = add(&snapshots, None, &file("a"));
    assert!(snapshots.has_unsynced());
    assert_eq!(open(), before);
    // Removed and committed anew: the record is that of the second.
    snapshots.remove_committed(&layer).unwrap();
    add(&snapshots, None, &file("a"));
    snapshots.sync().unwrap();
    assert!(!snapshots.has_unsynced());
    assert_eq!(open(), before);
}

#[test]
fn layer_that_an_earlier_process_left_unsynced_is_synced_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let open = |boot: &str| Snapshots::open_in_boot(directory.path(), boot.to_owned(), None).unwrap();
    let layer = add(&open("one"), None, &file("a"));
    open("one").sync().unwrap();
    assert!(open("two").contains(&layer));
}

#[test]
fn whatever_no_record_names_is_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let snapshots = Snapshots::open(root).unwrap();
    let chains: Vec<_> = ["a", "b", "c", "d", "e"].map(|name| add(&snapshots, None, &file(name))).into();
    let above = add(&snapshots, Some(&chains[1]), &file("above"));
    snapshots.sync().unwrap();
    for key in ["good", "cut", "other"] {
        snapshots.prepare(key, Some(&chains[0])).unwrap();
    }
    let stage = snapshots.stage().unwrap();
    std::mem::forget(stage);
    drop(snapshots);

    let layer = |chain: &ChainId| root.join("committed").join(chain.digest().hex());
    let record = layer(&chains[1]).join("record.json");
    File::options().write(true).open(&record).unwrap().set_len(0).unwrap();
    std::fs::remove_dir_all(layer(&chains[2]).join("fs")).unwrap();
    std::fs::copy(layer(&chains[0]).join("record.json"), layer(&chains[3]).join("record.json")).unwrap();
    std::fs::create_dir_all(root.join("committed/stray/fs/deep/er")).unwrap();
    std::fs::write(root.join("committed/file"), "").unwrap();
    std::fs::create_dir_all(root.join("active/half/fs")).unwrap();
    File::options().write(true).open(root.join("active/cut/record.json")).unwrap().set_len(20).unwrap();
    std::fs::copy(root.join("active/good/record.json"), root.join("active/other/record.json")).unwrap();
    std::fs::create_dir_all(root.join("removing/7/fs/x")).unwrap();

    let snapshots = Snapshots::open(root).unwrap();
    let found: HashSet<ChainId> = snapshots.committed().into_iter().collect();
    assert_eq!(found, HashSet::from([chains[0].clone(), chains[4].clone()]));
    assert!(!snapshots.contains(&above), "a layer without its parent");
    assert_eq!(snapshots.keys(), ["good"]);
    assert_eq!(names(&root.join("committed")).len(), 2);
    for (folder, left) in [("active", &["good"][..]), ("unpacking", &[]), ("staging", &[]), ("removing", &[])]
    {
        assert_eq!(names(&root.join(folder)), left, "{folder}");
    }
}

#[test]
fn mount_that_outlived_us_is_not_emptied() {
    let directory = tempfile::tempdir().unwrap();
    let stranger = tempfile::tempdir().unwrap();
    std::fs::write(stranger.path().join("precious"), "x").unwrap();
    let snapshots = Snapshots::open(directory.path()).unwrap();
    drop(snapshots);
    let left = directory.path().join("removing/3/merged");
    std::fs::create_dir_all(&left).unwrap();
    mount_bind(stranger.path(), &left).unwrap();
    let guard = Mounted(left.clone());
    let snapshots = Snapshots::open(directory.path()).unwrap();
    assert_eq!(names(stranger.path()), ["precious"]);
    drop(snapshots);
    drop(guard);
    Snapshots::open(directory.path()).unwrap();
    assert_eq!(names(&directory.path().join("removing")), [""; 0]);
}
