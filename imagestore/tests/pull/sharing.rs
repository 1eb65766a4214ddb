//! Many who pull at once: work is shared, and whoever leaves takes nobody along.

use std::time::Duration;

use futures_util::future::join_all;
use sampan_imagestore::{Phase, Progress};

use crate::{
    images::{Setup, TestImage, assert_no_leftovers, broken_off, gzip, noise, simple, tar},
    server::{Reply, digest},
};

/// Makes the layers of the image take about half a second.
fn slow_down(setup: &Setup, image: &TestImage) {
    let blobs: Vec<_> = image.layers.iter().map(|layer| layer.blob.clone()).collect();
    setup.registry.rule(move |request| {
        let blob = blobs.iter().find(|blob| request.path().contains(&digest(blob)))?;
        Some(Reply { pace: Some(Duration::from_millis(10)), ..Reply::blob(request, blob) })
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_pulls_of_one_image_fetch_each_blob_once() {
    let setup = Setup::new().await;
    let layers = (0..3).map(|seed| gzip(&tar(&[("x", &noise(40_000, seed))]))).collect();
    let image = TestImage::new(layers);
    setup.registry.publish("app", "latest", &image);
    slow_down(&setup, &image);
    let pulled = join_all((0..50).map(|_| setup.pull("app"))).await;
    assert!(pulled.into_iter().all(|image| image.unwrap().layers.len() == 3));
    for blob in image.blobs() {
        assert_eq!(setup.registry.count(&digest(&blob)), 1);
    }
    setup.assert_holds(5, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_share_a_layer_fetch_it_once_even_at_the_same_time() {
    let setup = Setup::new().await;
    let base = gzip(&tar(&[("base", &noise(40_000, 60))]));
    let images: Vec<_> =
        (0..5u8).map(|seed| TestImage::new(vec![base.clone(), gzip(&tar(&[("own", &[seed])]))])).collect();
    for (index, image) in images.iter().enumerate() {
        setup.registry.publish(&format!("app{index}"), "latest", image);
    }
    slow_down(&setup, &images[0]);
    let names: Vec<_> = (0..5).map(|index| format!("app{index}")).collect();
    for pulled in join_all(names.iter().map(|name| setup.pull(name))).await {
        pulled.unwrap();
    }
    // Each repository is another scope, but it is one registry and one blob.
    assert_eq!(setup.registry.count(&digest(&base.blob)), 1);
    setup.assert_holds(1 + 5 * 3, 1 + 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_gives_up_leaves_the_pull_to_the_others() {
    let setup = Setup::new().await;
    let image = simple(40_000, 61);
    setup.registry.publish("app", "latest", &image);
    slow_down(&setup, &image);
    let leader = async {
        tokio::time::timeout(Duration::from_millis(100), setup.pull("app")).await.unwrap_err();
    };
    let followers = async {
        // After the leader, and long before the end.
        tokio::time::sleep(Duration::from_millis(20)).await;
        join_all((0..49).map(|_| setup.pull("app"))).await
    };
    let ((), followed) = tokio::join!(leader, followers);
    assert_eq!(followed.into_iter().filter(Result::is_ok).count(), 49);
    assert_eq!(setup.registry.count(&digest(&image.layers[0].blob)), 1);
    setup.assert_holds(3, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_nobody_waits_for_ends_and_cleans_up() {
    let setup = Setup::new().await;
    let image = simple(2_000_000, 62);
    setup.registry.publish("app", "latest", &image);
    slow_down(&setup, &image);
    let (progress, mut events) = Progress::channel();
    let reference = setup.reference("app");
    let pull = setup.store.pull(&reference, None, progress);
    tokio::time::timeout(Duration::from_millis(300), pull).await.unwrap_err();
    // The channel ends when the pull has wound up.
    let ended = async { while events.recv().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(5), ended).await.unwrap();
    // Manifest and configuration are right, and here for another attempt, as is what came of the layer.
    setup.assert_holds(2, 0);
    assert_eq!(broken_off(setup.root.path()), [image.layers[0].blob_hex()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_sees_progress_from_where_the_pull_stands() {
    let setup = Setup::new().await;
    let image = simple(60_000, 63);
    setup.registry.publish("app", "latest", &image);
    slow_down(&setup, &image);
    let (progress, mut events) = Progress::channel();
    let reference = setup.reference("app");
    let follower = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        setup.store.pull(&reference, None, progress).await.unwrap();
    };
    let (led, ()) = tokio::join!(setup.pull("app"), follower);
    led.unwrap();
    let first = events.recv().await.unwrap();
    assert_eq!(first.phase, Phase::Downloading);
    assert!(first.current > 0);
    let mut last = first;
    while let Some(event) = events.recv().await {
        last = event;
    }
    assert_eq!(last.phase, Phase::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_during_a_pull_leaves_the_pull_what_it_has() {
    let setup = Setup::new().await;
    let base = gzip(&tar(&[("base", &noise(40_000, 64))]));
    let old = TestImage::new(vec![base.clone()]);
    let new = TestImage::new(vec![base, gzip(&tar(&[("x", &noise(40_000, 65))]))]);
    setup.registry.publish("old", "latest", &old);
    setup.registry.publish("new", "latest", &new);
    setup.pull("old").await.unwrap();
    let slow = TestImage::new(vec![new.layers[1].clone()]);
    slow_down(&setup, &slow);
    let removal = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        setup.store.remove(&old.id()).unwrap()
    };
    let (pulled, removed) = tokio::join!(setup.pull("new"), removal);
    assert_eq!(removed.deleted, [old.id()]);
    let pulled = pulled.unwrap();
    setup.store.snapshots().prepare("c", Some(pulled.chain_id())).unwrap();
    assert_no_leftovers(setup.root.path());
    setup.assert_holds(4, 2);
}
