//! What a pull brings, and what it finds here already.

use std::fs;

use sampan_imagestore::{Kind, Phase, Platform, Progress, Store, StoreOptions};
use serde_json::json;

use crate::{
    images::{
        Setup, TestImage, entries, gzip, layer_directory, noise, options, plain, simple, tar, text, zstd,
    },
    server::digest,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_every_compression_is_laid_out_and_recorded() {
    let setup = Setup::new().await;
    let big = noise(700_000, 1);
    let image = TestImage::new(vec![
        gzip(&tar(&[("etc/", b""), ("etc/motd", b"one"), ("big", &big)])),
        zstd(&tar(&[("two", b"2")])),
        plain(&tar(&[("three", b"3"), (".wh.two", b"")])),
    ]);
    setup.registry.publish("app", "v1", &image);
    let pulled = setup.pull("app:v1").await.unwrap();

    assert_eq!(pulled.id, image.id());
    assert_eq!(pulled.repo_tags, [setup.registry.name("app:v1")]);
    assert_eq!(pulled.repo_digests, [format!("{}@{}", setup.registry.name("app"), digest(&image.manifest))]);
    assert!(pulled.size > 700_000);
    assert_eq!(pulled.created, Some(1_709_208_000_500_000_000));
    assert_eq!(pulled.config.config().as_ref().unwrap().cmd().as_deref().unwrap(), ["/bin/sh"]);
    let directory = |index| layer_directory(setup.root.path(), &pulled, index);
    assert_eq!(fs::read(directory(0).join("big")).unwrap(), big);
    assert_eq!(fs::read(directory(0).join("etc/motd")).unwrap(), b"one");
    assert_eq!(fs::read(directory(1).join("two")).unwrap(), b"2");
    assert_eq!(fs::read(directory(2).join("three")).unwrap(), b"3");
    setup.assert_holds(5, 3);

    // The record is all that a later process needs.
    let store = setup.reopen();
    assert_eq!(store.faults(), [""; 0]);
    assert_eq!(*store.find(&setup.registry.name("app:v1")).unwrap().unwrap(), pulled);
    assert!(store.usage().unwrap().images.bytes > 1_400_000);
    store.snapshots().prepare("container", Some(pulled.chain_id())).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_is_not_fetched_again() {
    let setup = Setup::new().await;
    let base = gzip(&tar(&[("base", &noise(100_000, 2))]));
    setup.registry.publish("a", "1", &TestImage::new(vec![base.clone(), gzip(&tar(&[("a", b"a")]))]));
    setup.registry.publish("b", "1", &TestImage::new(vec![base.clone(), gzip(&tar(&[("b", b"b")]))]));
    setup.pull("a:1").await.unwrap();
    setup.pull("a:1").await.unwrap();
    let (progress, mut events) = Progress::channel();
    setup.store.pull(&setup.reference("b:1"), None, progress).await.unwrap();
    assert_eq!(setup.registry.count(&digest(&base.blob)), 1);
    setup.assert_holds(4 + 3, 3);
    let mut phases = Vec::new();
    while let Some(event) = events.recv().await {
        phases.push((event.digest.to_string(), event.phase));
    }
    assert!(phases.contains(&(digest(&base.blob), Phase::Exists)), "{phases:?}");
    assert!(phases.iter().any(|(_, phase)| *phase == Phase::Done), "{phases:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_goes_through_the_phases_and_ends_with_the_pull() {
    let setup = Setup::new().await;
    let image = simple(300_000, 3);
    setup.registry.publish("app", "latest", &image);
    let (progress, mut events) = Progress::channel();
    setup.store.pull(&setup.reference("app"), None, progress).await.unwrap();
    let mut phases = Vec::new();
    while let Some(event) = events.recv().await {
        assert_eq!(event.total, image.layers[0].blob.len() as u64);
        phases.push(event.phase);
    }
    phases.dedup();
    assert_eq!(phases, [Phase::Waiting, Phase::Downloading, Phase::Unpacking, Phase::Done]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_leads_to_the_image_of_this_platform() {
    let setup = Setup::new().await;
    let (amd, arm) = (simple(10, 4), simple(10, 5));
    setup.registry.publish("app", "amd", &amd);
    setup.registry.publish("app", "arm", &arm);
    let entry = |image: &TestImage, architecture: &str| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&image.manifest), "size": image.manifest.len(),
            "platform": {"os": "linux", "architecture": architecture},
        })
    };
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry(&arm, "arm64"), entry(&amd, "amd64")],
    });
    let index = index.to_string().into_bytes();
    let path = "/v2/app/manifests/latest".to_owned();
    setup.registry.put(path, "application/vnd.oci.image.index.v1+json", index.clone());

    for (architecture, image) in [("amd64", &amd), ("arm64", &arm)] {
        let root = tempfile::tempdir().unwrap();
        let platform =
            Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None };
        let store = Store::open(root.path(), StoreOptions { platform, ..options() }).unwrap();
        let pulled = store.pull(&setup.reference("app"), None, Progress::none()).await.unwrap();
        assert_eq!(pulled.id, image.id());
        assert_eq!(pulled.manifest.as_str(), digest(&image.manifest));
        // The name leads to the index; both digests are names of the image.
        for digest in [digest(&index), digest(&image.manifest)] {
            let name = format!("{}@{digest}", setup.registry.name("app"));
            assert!(store.find(&name).unwrap().is_some(), "{name}");
        }
    }
    let platform = Platform { os: "linux".to_owned(), architecture: "s390x".to_owned(), variant: None };
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), StoreOptions { platform, ..options() }).unwrap();
    let error = store.pull(&setup.reference("app"), None, Progress::none()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(text(&error).contains("linux/arm64, linux/amd64"), "{}", text(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tag_leaves_the_former_image_by_digest() {
    let setup = Setup::new().await;
    setup.registry.publish("app", "latest", &simple(10, 6));
    let old = setup.pull("app").await.unwrap();
    setup.registry.publish("app", "latest", &simple(10, 7));
    let new = setup.pull("app").await.unwrap();
    assert_eq!(setup.store.find(&setup.registry.name("app")).unwrap().unwrap().id, new.id);
    let former = setup.store.find(old.id.as_str()).unwrap().unwrap();
    assert_eq!(former.repo_tags, [""; 0]);
    assert_eq!(former.repo_digests, old.repo_digests);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_blob_as_two_layers_is_fetched_once_and_stacked_twice() {
    let setup = Setup::new().await;
    let layer = gzip(&tar(&[("x", b"x")]));
    setup.registry.publish("app", "latest", &TestImage::new(vec![layer.clone(), layer.clone()]));
    setup.pull("app").await.unwrap();
    assert_eq!(setup.registry.count(&digest(&layer.blob)), 1);
    setup.assert_holds(3, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_blob_that_rotted_is_fetched_again() {
    let setup = Setup::new().await;
    let shared = gzip(&tar(&[("x", &noise(50_000, 8))]));
    setup.registry.publish("a", "latest", &TestImage::new(vec![shared.clone()]));
    let first = setup.pull("a").await.unwrap();
    let blob = setup.root.path().join("content/blobs/sha256").join(first.layers[0].digest.hex());
    let mut bytes = fs::read(&blob).unwrap();
    bytes[30_000] ^= 1;
    fs::write(&blob, &bytes).unwrap();
    // On another base the same blob has to be unpacked anew.
    let base = gzip(&tar(&[("base", b"")]));
    setup.registry.publish("b", "latest", &TestImage::new(vec![base, shared.clone()]));
    let second = setup.pull("b").await.unwrap();
    assert_eq!(fs::read(layer_directory(setup.root.path(), &second, 1).join("x")).unwrap(), noise(50_000, 8));
    assert_eq!(fs::read(&blob).unwrap(), *shared.blob);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_costs_one_image_until_it_is_pulled_again() {
    let setup = Setup::new().await;
    setup.registry.publish("a", "latest", &simple(10, 9));
    setup.registry.publish("b", "latest", &simple(10, 10));
    let (a, b) = (setup.pull("a").await.unwrap(), setup.pull("b").await.unwrap());
    let record = setup.root.path().join("metadata/images").join(format!("{}.json", a.id.hex()));
    fs::write(&record, "").unwrap();
    let store = setup.reopen();
    assert_eq!(store.faults().len(), 1, "{:?}", store.faults());
    assert_eq!(store.images().iter().map(|image| &image.id).collect::<Vec<_>>(), [&b.id]);
    store.pull(&setup.reference("a"), None, Progress::none()).await.unwrap();
    assert_eq!(setup.reopen().images().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_a_power_cut_took_are_unpacked_again_without_the_registry() {
    let setup = Setup::new().await;
    let image = TestImage::new(vec![
        gzip(&tar(&[("a", &noise(50_000, 11))])),
        zstd(&tar(&[("b", b"b")])),
        gzip(&tar(&[("c", b"c")])),
    ]);
    setup.registry.publish("app", "latest", &image);
    let pulled = setup.pull("app").await.unwrap();
    // As of another boot of the machine, or with its end missing: neither vouches for anything.
    for index in [1, 2] {
        let layer =
            setup.root.path().join("snapshots/committed").join(pulled.layers[index].chain_id.digest().hex());
        fs::write(layer.join("record.json"), "{\"record\":{").unwrap();
        fs::write(layer_directory(setup.root.path(), &pulled, index).join("hole"), "").unwrap();
    }
    let store = setup.reopen();
    assert_eq!(store.faults(), [""; 0]);
    assert_eq!(*store.images()[0], pulled);
    assert_eq!(fs::read(layer_directory(setup.root.path(), &pulled, 1).join("b")).unwrap(), b"b");
    assert!(!layer_directory(setup.root.path(), &pulled, 1).join("hole").exists());
    setup.assert_holds(5, 3);

    // Without the blob there is nothing to unpack it from.
    drop(store);
    fs::remove_dir_all(layer_directory(setup.root.path(), &pulled, 2)).unwrap();
    fs::remove_file(setup.root.path().join("content/blobs/sha256").join(pulled.layers[2].digest.hex()))
        .unwrap();
    let store = setup.reopen();
    assert_eq!(store.images(), []);
    assert!(store.faults()[0].contains(pulled.layers[2].digest.as_str()), "{:?}", store.faults());
    store.pull(&setup.reference("app"), None, Progress::none()).await.unwrap();
    setup.assert_holds(5, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_layers_stands_on_an_empty_one() {
    let setup = Setup::new().await;
    setup.registry.publish("app", "latest", &TestImage::new(Vec::new()));
    let image = setup.pull("app").await.unwrap();
    assert_eq!(image.layers, []);
    setup.assert_holds(2, 1);
    setup.store.collect().unwrap();
    let look = |store: &Store| {
        store.snapshots().prepare("key", Some(image.chain_id())).unwrap();
        let lower = store.snapshots().directories("key").unwrap().lower;
        assert_eq!(entries(&lower[0]), [""; 0]);
        store.snapshots().remove("key").unwrap();
    };
    look(&setup.store);
    // A power cut takes what was not synced; it is made again.
    std::fs::remove_dir_all(setup.root.path().join("snapshots/committed")).unwrap();
    let store = setup.reopen();
    assert_eq!(store.faults(), [""; 0]);
    look(&store);
    store.remove(&image.id).unwrap();
    setup.assert_holds(0, 0);
}
