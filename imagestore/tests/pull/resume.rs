//! Downloads that broke off go on where they broke, also in another process.

use std::{
    fs,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sampan_imagestore::{Kind, Progress, Store, StoreOptions};

use crate::{
    images::{Setup, TestImage, broken_off, layer_directory, noise, simple, text},
    server::{Reply, digest},
};

const SIZE: usize = 3_000_000;

/// Serves the layer up to `end` as long as `broken`, then dies at each request; counts the bytes it gives.
fn break_at(setup: &Setup, image: &TestImage, end: usize) -> (Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (broken, given) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (blob, state, count) = (image.layers[0].blob.clone(), broken.clone(), given.clone());
    setup.registry.rule(move |request| {
        if !request.path().contains(&digest(&blob)) {
            return None;
        }
        let end = if state.load(Ordering::SeqCst) { end } else { blob.len() };
        if request.from() >= end {
            return Some(Reply::status(503));
        }
        count.fetch_add(end - request.from(), Ordering::SeqCst);
        let reply = Reply::blob(request, &blob);
        Some(if end < blob.len() { reply.cut(end - request.from()) } else { reply })
    });
    (broken, given)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_failed_goes_on_in_the_next_process() {
    let setup = Setup::new().await;
    let image = simple(SIZE, 90);
    setup.registry.publish("app", "latest", &image);
    let (broken, given) = break_at(&setup, &image, 2_000_000);
    let error = setup.pull("app").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{}", text(&error));
    assert_eq!(broken_off(setup.root.path()).len(), 1);
    setup.assert_holds(2, 0);

    let store = setup.reopen();
    broken.store(false, Ordering::SeqCst);
    let pulled = store.pull(&setup.reference("app"), None, Progress::none()).await.unwrap();
    assert_eq!(given.load(Ordering::SeqCst), image.layers[0].blob.len(), "no byte was sent twice");
    let file = layer_directory(setup.root.path(), &pulled, 0).join("data");
    assert_eq!(fs::read(file).unwrap(), noise(SIZE, 90));
    assert!(broken_off(setup.root.path()).is_empty());
    setup.assert_holds(3, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_and_is_not_of_the_blob_is_fetched_again() {
    let setup = Setup::new().await;
    let image = simple(SIZE, 91);
    setup.registry.publish("app", "latest", &image);
    let (broken, _) = break_at(&setup, &image, 1_000_000);
    setup.pull("app").await.unwrap_err();
    broken.store(false, Ordering::SeqCst);
    let name = &broken_off(setup.root.path())[0];
    let path = setup.root.path().join("content/ingest").join(name);
    // As a power cut may leave it: zeros in place of the end, in the middle, or more than there can be.
    for (at, length) in
        [(900_000, 1_000_000), (5, 500_000), (0, SIZE + 1_000_000), (0, image.layers[0].blob.len())]
    {
        let mut bytes = image.layers[0].blob[..1_000_000].to_vec();
        bytes.truncate(at);
        bytes.resize(length, 0);
        fs::write(&path, bytes).unwrap();
        setup.pull("app").await.unwrap();
        setup.assert_holds(3, 1);
        assert!(broken_off(setup.root.path()).is_empty());
        setup.store.remove(&image.id()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_with_other_bytes_leaves_nothing_to_go_on_with() {
    let setup = Setup::new().await;
    let image = simple(SIZE, 92);
    setup.registry.publish("app", "latest", &image);
    break_at(&setup, &image, 1_000_000);
    setup.pull("app").await.unwrap_err();
    assert_eq!(broken_off(setup.root.path()).len(), 1);
    // The next pull finds other bytes where it goes on, and after them again.
    let mut other = image.layers[0].blob.to_vec();
    other[2_000_000] ^= 1;
    let registry = &setup.registry;
    registry.clear_rules();
    registry.put(
        format!("/v2/app/blobs/{}", digest(&image.layers[0].blob)),
        "application/octet-stream",
        other,
    );
    let error = setup.pull("app").await.unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss, "{}", text(&error));
    assert!(broken_off(setup.root.path()).is_empty());
    setup.assert_holds(0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_pull_goes_on_where_it_was() {
    let setup = Setup::new().await;
    let image = simple(SIZE, 93);
    setup.registry.publish("app", "latest", &image);
    let blob = image.layers[0].blob.clone();
    setup.registry.rule(move |request| {
        let wanted = request.path().contains(&digest(&blob)) && request.earlier == 0;
        // A little more than half a MiB in the time that it gets, then nothing.
        wanted.then(|| Reply { hang: true, ..Reply::blob(request, &blob).cut(600_000) })
    });
    let (progress, mut events) = Progress::channel();
    let reference = setup.reference("app");
    let pull = setup.store.pull(&reference, None, progress);
    tokio::time::timeout(Duration::from_millis(300), pull).await.unwrap_err();
    while events.recv().await.is_some() {}
    setup.pull("app").await.unwrap();
    let asked = setup.registry.requests();
    let from: Vec<_> = asked
        .iter()
        .filter(|r| r.path().contains(&digest(&image.layers[0].blob)))
        .map(|r| r.from())
        .collect();
    assert_eq!(from, [0, 600_000]);
}

/// Set for the process that is to be killed: where it pulls to, and what.
const ROOT: &str = "SAMPAN_TEST_RESUME_TO";
const NAME: &str = "SAMPAN_TEST_RESUME_WHAT";

#[test]
#[allow(clippy::disallowed_methods)]
fn a_killed_process_leaves_what_it_had_to_the_next() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(root) = std::env::var_os(ROOT) {
        let reference = std::env::var(NAME).unwrap().parse().unwrap();
        let store = Store::open(root.as_ref(), StoreOptions::default()).unwrap();
        let _ = runtime.block_on(store.pull(&reference, None, Progress::none()));
        return;
    }
    let setup = runtime.block_on(Setup::new());
    let image = simple(SIZE, 94);
    setup.registry.publish("app", "latest", &image);
    let blob = image.layers[0].blob.clone();
    setup.registry.rule(move |request| {
        let wanted = request.path().contains(&digest(&blob));
        wanted.then(|| Reply { hang: true, ..Reply::blob(request, &blob).cut(2_000_000) })
    });
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "resume::a_killed_process_leaves_what_it_had_to_the_next"])
        .env(ROOT, setup.root.path())
        .env(NAME, setup.registry.name("app"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let file = setup.root.path().join("content/ingest").join(image.layers[0].blob_hex());
    let start = Instant::now();
    while fs::metadata(&file).map_or(0, |file| file.len()) < 2_000_000 {
        assert!(start.elapsed() < Duration::from_secs(20), "the download does not come along");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    setup.registry.clear_rules();
    let before = setup.registry.requests().len();
    let store = setup.reopen();
    runtime.block_on(store.pull(&setup.reference("app"), None, Progress::none())).unwrap();
    let asked = setup.registry.requests();
    let asked = asked[before..].iter().find(|request| {
        request.path().contains("/blobs/sha256:") && request.path().ends_with(&image.layers[0].blob_hex())
    });
    assert_eq!(asked.unwrap().from(), 2_000_000);
    setup.assert_holds(3, 1);
}
