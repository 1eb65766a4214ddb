//! What goes, what stays, and in which order.

use std::collections::HashSet;

use super::*;
use crate::{
    Digest, Reference, Store, StoreOptions,
    archive::tests::{docker_image, load_images},
};

fn store(pinned: &[&str]) -> (tempfile::TempDir, Store) {
    let root = tempfile::tempdir().unwrap();
    let pinned = pinned.iter().map(|name| name.parse().unwrap()).collect();
    let store = Store::open(root.path(), StoreOptions { pinned, ..StoreOptions::default() }).unwrap();
    (root, store)
}

/// Loads images of one layer of 100,000 bytes each.
fn add_images(store: &Store, names: &[&str]) {
    for name in names {
        load_images(store, &[docker_image(name, 100_000)]);
    }
}

fn names(store: &Store) -> Vec<String> {
    let mut names: Vec<String> = store.images().iter().flat_map(|image| image.repo_tags.clone()).collect();
    names.sort();
    names.iter().map(|name| name.parse::<Reference>().unwrap().familiar()).collect()
}

fn none(_: &Image) -> bool {
    false
}

#[test]
fn untagged_images_go_and_pinned_or_used_ones_stay() {
    let (root, store) = store(&["keep:1"]);
    add_images(&store, &["keep:1", "a:1", "b:1", ""]);
    assert_eq!(store.images().len(), 4);
    let pruned = store.prune(Unneeded::Untagged, none).unwrap();
    assert_eq!((pruned.removed.untagged.len(), names(&store).len()), (0, 3));
    assert!(pruned.amount.bytes > 100_000 && pruned.amount.inodes >= 4, "{pruned:?}");
    let pruned = store.prune(Unneeded::All, |image| image.repo_tags[0].ends_with("/a:1")).unwrap();
    assert_eq!(pruned.removed.untagged, ["docker.io/library/b:1"]);
    assert_eq!(names(&store), ["a:1", "keep:1"]);
    // Pinned by configuration: also after a restart, and no longer when that says otherwise.
    drop(store);
    let store = Store::open(root.path(), StoreOptions::default()).unwrap();
    store.prune(Unneeded::All, none).unwrap();
    assert!(store.images().is_empty());
    let left = |path: &str| std::fs::read_dir(root.path().join(path)).unwrap().count();
    assert_eq!((left("content/blobs/sha256"), left("snapshots/committed")), (0, 0));
}

#[test]
fn a_name_that_becomes_another_images_takes_the_pin_along() {
    let (_root, store) = store(&["keep:1"]);
    add_images(&store, &["keep:1", "other:1"]);
    let other = store.find("other:1").unwrap().unwrap();
    assert!(!other.pinned && store.find("keep:1").unwrap().unwrap().pinned);
    store.tag(&other.id, &"keep:1".parse().unwrap()).unwrap();
    store.prune(Unneeded::All, none).unwrap();
    assert_eq!(names(&store), ["keep:1", "other:1"]);
    assert_eq!(store.images()[0].id, other.id);
}

#[test]
fn room_is_made_from_the_image_that_was_used_longest_ago() {
    let (_root, store) = store(&[]);
    add_images(&store, &["a:1", "b:1", "c:1", "d:1"]);
    let first = store.find("a:1").unwrap().unwrap();
    store.snapshots().prepare("key", Some(first.chain_id())).unwrap();
    store.snapshots().remove("key").unwrap();
    let marks =
        |high, low| Watermarks { high_bytes: Some(high), low_bytes: Some(low), ..Watermarks::default() };
    let total = store.usage().unwrap().images.bytes;
    assert_eq!(
        store.make_room(&marks(total, 0), none).unwrap(),
        Reclaimed::default(),
        "the mark is not exceeded"
    );
    store.make_room(&marks(total - 1, total - 1), none).unwrap();
    assert_eq!(names(&store), ["a:1", "c:1", "d:1"], "a was used last");
    let kept = |image: &Image| image.repo_tags[0].ends_with("/c:1");
    store.make_room(&marks(1, 1), kept).unwrap();
    assert_eq!(names(&store), ["c:1"]);
    let inodes = Watermarks { high_inodes: Some(1), ..Watermarks::default() };
    store.make_room(&inodes, none).unwrap();
    assert!(store.images().is_empty());
}

#[test]
fn an_image_that_was_just_asked_for_makes_no_room() {
    let (_root, store) = store(&[]);
    add_images(&store, &["a:1"]);
    let marks = |minimum_age| Watermarks { high_bytes: Some(0), minimum_age, ..Watermarks::default() };
    let hour = Duration::from_secs(3600);
    assert_eq!(store.make_room(&marks(hour), none).unwrap(), Reclaimed::default());
    assert_eq!(names(&store), ["a:1"]);
    store.make_room(&marks(Duration::ZERO), none).unwrap();
    assert!(store.images().is_empty());
}

#[test]
fn what_a_container_stands_on_stays_when_its_image_goes() {
    let (_root, store) = store(&[]);
    add_images(&store, &["a:1"]);
    let image = store.find("a:1").unwrap().unwrap();
    store.snapshots().prepare("key", Some(image.chain_id())).unwrap();
    store.prune(Unneeded::All, none).unwrap();
    assert!(store.snapshots().contains(image.chain_id()));
    store.snapshots().remove("key").unwrap();
    store.prune(Unneeded::All, none).unwrap();
    assert!(!store.snapshots().contains(image.chain_id()));
}

#[test]
fn an_image_that_is_taken_into_use_while_others_go_stays() {
    let (_root, store) = store(&[]);
    add_images(&store, &["a:1"]);
    let everything = Watermarks { high_bytes: Some(0), ..Watermarks::default() };
    let prune = |used: &dyn Fn(&Image) -> bool| store.prune(Unneeded::All, used).unwrap();
    let room = |used: &dyn Fn(&Image) -> bool| store.make_room(&everything, used).unwrap();
    for clean in [&prune as &dyn Fn(&dyn Fn(&Image) -> bool) -> Reclaimed, &room] {
        // Somebody begins to make a container between the first look and the removal.
        let held = std::cell::OnceCell::new();
        let begun = |_: &Image| {
            held.get_or_init(|| store.hold("a:1").unwrap().expect("it is here"));
            false
        };
        assert_eq!(clean(&begun), Reclaimed::default());
        assert_eq!(clean(&none), Reclaimed::default(), "it is held");
        drop(held);
        // And has made it, by the time that it is to go.
        let looks = std::cell::Cell::new(0);
        let made = |_: &Image| {
            looks.set(looks.get() + 1);
            looks.get() > 1
        };
        assert_eq!(clean(&made), Reclaimed::default());
        assert_eq!((looks.get(), names(&store).len()), (2, 1));
    }
    assert_eq!(prune(&none).removed.untagged, ["docker.io/library/a:1"]);
    assert!(store.hold("a:1").unwrap().is_none());
}

#[test]
fn an_image_that_gets_a_name_while_others_go_stays() {
    let (_root, store) = store(&[]);
    add_images(&store, &[""]);
    let id = store.images()[0].id.clone();
    // The first look finds it without one.
    let tag = |_: &Image| {
        store.tag(&id, &"late:1".parse().unwrap()).unwrap();
        false
    };
    assert_eq!(store.prune(Unneeded::Untagged, tag).unwrap(), Reclaimed::default());
    assert_eq!(names(&store), ["late:1"]);
}

#[test]
fn what_is_held_outlives_its_image() {
    let (_root, store) = store(&[]);
    add_images(&store, &["a:1"]);
    let held = store.hold("a:1").unwrap().expect("it is here");
    store.remove(&held.id).unwrap();
    assert!(store.images().is_empty());
    store.snapshots().prepare("key", Some(held.chain_id())).unwrap();
    store.snapshots().remove("key").unwrap();
    let chain = held.chain_id().clone();
    drop(held);
    assert_eq!(store.collect().unwrap(), [chain]);
}

#[test]
fn leftovers_of_failed_work_are_collected() {
    let (root, store) = store(&[]);
    add_images(&store, &["a:1"]);
    let blob = b"what a failed pull has left";
    store.inner().content.put(&Digest::of(blob), blob).unwrap();
    let blobs = || std::fs::read_dir(root.path().join("content/blobs/sha256")).unwrap().count();
    let before = blobs();
    let pruned = store.prune(Unneeded::Untagged, none).unwrap();
    assert_eq!((blobs(), pruned.amount), (before - 1, Usage { bytes: blob.len() as u64, inodes: 1 }));
    assert_eq!(names(&store), ["a:1"]);
}

#[test]
fn pruning_while_images_come_and_containers_start_takes_nothing_that_is_needed() {
    let (_root, store) = store(&[]);
    add_images(&store, &["base:1"]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                store.prune(Unneeded::Untagged, none).unwrap();
            }
        });
        let work = |thread: usize| {
            for round in 0..15 {
                let name = format!("t{thread}-{round}:1");
                add_images(&store, &[&name]);
                let image = store.find(&name).unwrap().expect("it has a tag");
                let key = format!("{thread}-{round}");
                store.snapshots().prepare(&key, Some(image.chain_id())).unwrap();
                let lower = store.snapshots().directories(&key).unwrap().lower;
                assert_eq!(std::fs::read_dir(&lower[0]).unwrap().count(), 1);
                store.snapshots().remove(&key).unwrap();
            }
        };
        let workers: Vec<_> = (0..3).map(|thread| scope.spawn(move || work(thread))).collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let ids: HashSet<Digest> = store.images().iter().map(|image| image.id.clone()).collect();
    assert_eq!(ids.len(), 46);
    for image in store.images() {
        for blob in image.blobs() {
            store.inner().content.read(blob, 1 << 20).unwrap();
        }
    }
}
