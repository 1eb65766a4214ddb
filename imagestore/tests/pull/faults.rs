//! A registry that fails or lies: each time a typed error that says what and where, and nothing left behind.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use sampan_imagestore::{Kind, Progress, Store};
use serde_json::json;

use crate::{
    images::{
        Setup, TestImage, assert_no_leftovers, broken_off, gzip, layer_directory, noise, options, plain,
        simple, tar, text,
    },
    server::{CLOSED, Reply, digest},
};

/// Pulls `app`, which must fail in this way and leave nothing.
async fn assert_fails(setup: &Setup, kind: Kind, words: &[&str]) {
    let error = setup.pull("app").await.unwrap_err();
    let text = text(&error);
    assert_eq!(error.kind(), kind, "{text}");
    assert!(text.starts_with(&format!("pull {}", setup.reference("app"))), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    setup.assert_holds(0, 0);
    assert!(setup.store.images().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_down_is_unavailable() {
    let setup = Setup::new().await;
    let reference = format!("{CLOSED}/app").parse().unwrap();
    let error = setup.store.pull(&reference, None, Progress::none()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(text(&error).contains(CLOSED), "{}", text(&error));
    assert!(text(&error).contains("refused"), "{}", text(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_image_is_not_found() {
    let setup = Setup::new().await;
    assert_fails(&setup, Kind::NotFound, &["manifest latest of app", "MANIFEST_UNKNOWN"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_with_other_bytes_than_its_digest_is_refused() {
    let setup = Setup::new().await;
    let image = simple(200_000, 20);
    setup.registry.publish("app", "latest", &image);
    // Well-formed or not makes no difference: it is not what was asked for.
    for other in [simple(200_000, 21).layers[0].blob.to_vec(), noise(200_000, 22)] {
        let mut other = other;
        other.resize(image.layers[0].blob.len(), 0);
        let path = format!("/v2/app/blobs/{}", digest(&image.layers[0].blob));
        setup.registry.put(path, "application/octet-stream", other.clone());
        assert_fails(&setup, Kind::DataLoss, &[&digest(&image.layers[0].blob), &digest(&other)]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_another_length_is_refused() {
    let setup = Setup::new().await;
    let image = simple(200_000, 23);
    setup.registry.publish("app", "latest", &image);
    let (path, size) =
        (format!("/v2/app/blobs/{}", digest(&image.layers[0].blob)), image.layers[0].blob.len());
    for length in [size - 1, size + 1, 0] {
        let mut blob = image.layers[0].blob.to_vec();
        blob.resize(length, 0);
        setup.registry.put(path.clone(), "application/octet-stream", blob);
        let words = [format!("{length} bytes instead of {size}")];
        assert_fails(&setup, Kind::DataLoss, &words.each_ref().map(String::as_str)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_always_ends_early_is_given_up() {
    let setup = Setup::new().await;
    let image = simple(200_000, 24);
    setup.registry.publish("app", "latest", &image);
    let blob = image.layers[0].blob.clone();
    setup.registry.rule(move |request| {
        // It has the first half, whatever it is asked for, and the length of the whole.
        let half = (blob.len() / 2).saturating_sub(request.from());
        request.path().contains(&digest(&blob)).then(|| Reply::blob(request, &blob).cut(half))
    });
    assert_fails(&setup, Kind::DataLoss, &["ended after", "bytes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tar_that_is_not_the_configured_one_is_refused() {
    let setup = Setup::new().await;
    let mut layer = gzip(&tar(&[("x", b"x")]));
    layer.diff_id = digest(b"something else");
    setup.registry.publish("app", "latest", &TestImage::new(vec![layer]));
    assert_fails(&setup, Kind::DataLoss, &[&digest(b"something else")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_tar_is_refused() {
    let setup = Setup::new().await;
    let whole = tar(&[("x", &noise(10_000, 25))]);
    setup.registry.publish("app", "latest", &TestImage::new(vec![plain(&whole[..5_000])]));
    assert_fails(&setup, Kind::DataLoss, &["unpack layer", "ends at byte"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_climbs_out_is_refused_and_takes_the_others_along() {
    let setup = Setup::new().await;
    let good = gzip(&tar(&[("good", &noise(300_000, 26))]));
    let bad = gzip(&tar(&[("a/../../../../tmp/evil", b"x")]));
    setup.registry.publish("app", "latest", &TestImage::new(vec![good, bad]));
    assert_fails(&setup, Kind::InvalidArgument, &["a/../../../../tmp/evil"]).await;
    assert!(!std::path::Path::new("/tmp/evil").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_are_no_image_are_refused() {
    let setup = Setup::new().await;
    let path = || "/v2/app/manifests/latest".to_owned();
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let schema1 = json!({"schemaVersion": 1, "name": "app", "fsLayers": [], "signatures": []}).to_string();
    setup.registry.put(
        path(),
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        schema1.into_bytes(),
    );
    assert_fails(&setup, Kind::InvalidArgument, &["schema 1"]).await;
    setup.registry.put(path(), docker, b"<html>".to_vec());
    assert_fails(&setup, Kind::InvalidArgument, &["does not parse"]).await;
    setup.registry.put(path(), docker, vec![b' '; (4 << 20) + 1]);
    assert_fails(&setup, Kind::ResourceExhausted, &["4194304"]).await;
    let layers = vec![gzip(&tar(&[("x", b"x")])); 501];
    setup.registry.publish("app", "latest", &TestImage::new(layers));
    assert_fails(&setup, Kind::ResourceExhausted, &["501 layers"]).await;
    let escape = |manifest: &mut serde_json::Value| manifest["layers"][0]["digest"] = json!("sha256:../../x");
    setup.registry.publish("app", "latest", &TestImage::with(vec![gzip(&tar(&[]))], escape));
    assert_fails(&setup, Kind::InvalidArgument, &["sha256:../../x"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_not_the_pinned_one_is_refused() {
    let setup = Setup::new().await;
    let (asked, given) = (simple(10, 27), simple(10, 28));
    let name = format!("app@{}", digest(&asked.manifest));
    let path = format!("/v2/app/manifests/{}", digest(&asked.manifest));
    setup.registry.put(path, "application/vnd.oci.image.manifest.v1+json", given.manifest.clone());
    let error = setup.pull(&name).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss, "{}", text(&error));
    setup.assert_holds(0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_registry_is_asked_again_when_it_says() {
    let setup = Setup::new().await;
    let image = simple(10_000, 29);
    setup.registry.publish("app", "latest", &image);
    setup.registry.rule(|request| match request.earlier {
        0 if request.path().contains("/manifests/") => Some(Reply::status(429).header("Retry-After", "1")),
        0 | 1 if request.path().contains("/blobs/") => Some(Reply::status(503)),
        _ => None,
    });
    let start = Instant::now();
    setup.pull("app").await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(setup.registry.count("/manifests/"), 2);
    setup.assert_holds(3, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_registry_is_not_asked_for_ever() {
    let setup = Setup::new().await;
    setup.registry.rule(|_| Some(Reply::status(500)));
    assert_fails(&setup, Kind::Unavailable, &["answers 500", "manifest latest of app"]).await;
    assert_eq!(setup.registry.count("/manifests/"), 5);
    setup.registry.rule(|_| None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_beyond_reason_is_not_waited() {
    let setup = Setup::new().await;
    setup.registry.rule(|_| Some(Reply::status(429).header("Retry-After", "86400")));
    assert_fails(&setup, Kind::ResourceExhausted, &["answers 429"]).await;
    assert_eq!(setup.registry.count("/manifests/"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_goes_on_where_it_broke() {
    let setup = Setup::new().await;
    let image = simple(5_000_000, 30);
    setup.registry.publish("app", "latest", &image);
    let blob = image.layers[0].blob.clone();
    let sent = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    setup.registry.rule(move |request| {
        // A connection carries 64 KiB and breaks.
        let wanted = request.path().contains(&digest(&blob));
        wanted.then(|| {
            counted.fetch_add((blob.len() - request.from()).min(65_536), Ordering::SeqCst);
            Reply::blob(request, &blob).cut(65_536)
        })
    });
    let pulled = setup.pull("app").await.unwrap();
    let file = layer_directory(setup.root.path(), &pulled, 0).join("data");
    assert_eq!(std::fs::read(file).unwrap(), noise(5_000_000, 30));
    let again = sent.load(Ordering::SeqCst) - image.layers[0].blob.len();
    assert!(again <= 1 << 20, "{again} bytes were sent again");
    setup.assert_holds(3, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_ignores_ranges_is_listened_to_again() {
    let setup = Setup::new().await;
    let image = simple(500_000, 31);
    setup.registry.publish("app", "latest", &image);
    let blob = image.layers[0].blob.clone();
    setup.registry.rule(move |request| match request.earlier {
        _ if !request.path().contains(&digest(&blob)) => None,
        0 => Some(Reply::ok(&blob[..]).cut(200_000)),
        1 => Some(Reply::ok(&blob[..]).cut(100_000)),
        _ => Some(Reply::ok(&blob[..])),
    });
    let pulled = setup.pull("app").await.unwrap();
    let file = layer_directory(setup.root.path(), &pulled, 0).join("data");
    assert_eq!(std::fs::read(file).unwrap(), noise(500_000, 31));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_range_than_asked_for_is_refused() {
    let setup = Setup::new().await;
    let image = simple(500_000, 32);
    setup.registry.publish("app", "latest", &image);
    let blob = image.layers[0].blob.clone();
    setup.registry.rule(move |request| match request.from() {
        _ if !request.path().contains(&digest(&blob)) => None,
        0 => Some(Reply::ok(&blob[..]).cut(200_000)),
        from => Some(
            Reply { status: 206, ..Reply::ok(&blob[from..]) }
                .header("Content-Range", format!("bytes 7-{0}/{0}", blob.len())),
        ),
    });
    let error = setup.pull("app").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{}", text(&error));
    assert!(text(&error).contains("another range"), "{}", text(&error));
    assert_no_leftovers(setup.root.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_falls_silent_or_drips_is_given_up_in_time() {
    for (cut, pace) in [(100_000, None), (usize::MAX, Some(Duration::from_millis(400)))] {
        let setup = Setup::new().await;
        let image = simple(300_000, 33);
        setup.registry.publish("app", "latest", &image);
        let blob = image.layers[0].blob.clone();
        setup.registry.rule(move |request| {
            // Whatever is asked for, it goes no further than this.
            let end = cut.min(blob.len());
            let hang = Reply { hang: true, pace, ..Reply::blob(request, &blob) };
            let wanted = request.path().contains(&digest(&blob));
            wanted.then(|| hang.cut(end.saturating_sub(request.from())))
        });
        let start = Instant::now();
        let error = setup.pull("app").await.unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded, "{}", text(&error));
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        assert_no_leftovers(setup.root.path());
    }
}

/// A small file system of its own, gone with the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> SmallDisk {
        let directory = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        let flags = rustix::mount::MountFlags::NOSUID;
        rustix::mount::mount("none", directory.path(), "tmpfs", flags, options.as_c_str()).unwrap();
        SmallDisk(directory)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_an_error_and_not_full_afterwards() {
    let setup = Setup::new().await;
    let disk = SmallDisk::new("4m");
    let store = Store::open(disk.0.path(), options()).unwrap();
    setup.registry.publish("small", "latest", &simple(100_000, 34));
    let small = store.pull(&setup.reference("small"), None, Progress::none()).await.unwrap();
    // Either the blob or, with the blob in place, the files do not fit.
    for length in [6_000_000, 2_500_000] {
        let image = TestImage::new(vec![
            gzip(&tar(&[("a", &noise(200_000, 35))])),
            gzip(&tar(&[("b", &noise(length, 36))])),
        ]);
        setup.registry.publish("big", "latest", &image);
        let error = store.pull(&setup.reference("big"), None, Progress::none()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::ResourceExhausted, "{}", text(&error));
        assert!(text(&error).contains("No space left"), "{}", text(&error));
        assert_no_leftovers(disk.0.path());
        assert_eq!(broken_off(disk.0.path()), [""; 0]);
        assert_eq!(std::fs::read_dir(disk.0.path().join("content/blobs/sha256")).unwrap().count(), 3);
    }
    store.remove(&small.id).unwrap();
    assert_eq!(store.usage().unwrap().images.bytes, 0);
}
