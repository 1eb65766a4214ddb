//! Pushes to a registry that takes uploads as the distribution specification has them, and misbehaves.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use sampan_imagestore::{Auth, Kind, Pushed, Reference};
use tokio::sync::mpsc;

use crate::{
    images::{Setup, TestImage, gzip, noise, simple, tar, text},
    server::{NO_ANSWER, Registry, Reply, Request, digest},
};

/// The uploads of a registry: what came of each, and what was completed.
#[derive(Clone, Default)]
pub(crate) struct Uploads {
    open: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    done: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    next: Arc<AtomicUsize>,
}

impl Uploads {
    /// Has `registry` take uploads for any repository.
    pub(crate) fn at(registry: &Registry) -> Uploads {
        let uploads = Uploads::default();
        let taking = uploads.clone();
        registry.rule(move |request| taking.answer(request));
        uploads
    }

    fn answer(&self, request: &Request) -> Option<Reply> {
        let (path, method) = (request.path().to_owned(), request.method.as_str());
        if let Some(digest) = path.split("/blobs/sha256:").nth(1)
            && method == "HEAD"
        {
            let known = self.done.lock().unwrap().contains_key(&format!("sha256:{digest}"));
            return Some(Reply::status(if known { 200 } else { 404 }));
        }
        if path.contains("/manifests/") && method == "PUT" {
            let name = path.rsplit('/').next().unwrap().to_owned();
            self.done.lock().unwrap().insert(name, request.bytes.clone());
            return Some(Reply::status(201));
        }
        if path.contains("/manifests/") && method == "HEAD" {
            return Some(Reply::status(404));
        }
        if !path.contains("/blobs/uploads/") {
            return None;
        }
        if method == "POST" {
            let location = format!("{path}{}", self.next.fetch_add(1, Ordering::Relaxed));
            self.open.lock().unwrap().insert(location.clone(), Vec::new());
            return Some(Reply::status(202).header("Location", location));
        }
        let mut open = self.open.lock().unwrap();
        let upload = open.get_mut(&path)?;
        let range = |length: usize| format!("0-{}", length.saturating_sub(1));
        match method {
            "GET" => Some(Reply::status(204).header("Location", path).header("Range", range(upload.len()))),
            "PATCH" => {
                let from: usize = request.header("content-range")?.split('-').next()?.parse().ok()?;
                if from != upload.len() {
                    return Some(Reply::status(416));
                }
                upload.extend(&request.bytes);
                let length = upload.len();
                Some(Reply::status(202).header("Location", path).header("Range", range(length)))
            }
            _ => {
                upload.extend(&request.bytes);
                let wanted = request.target.split("digest=").nth(1)?.replace("%3A", ":");
                if digest(upload) != wanted {
                    return Some(Reply::status(400));
                }
                self.done.lock().unwrap().insert(wanted, upload.clone());
                Some(Reply::status(201))
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        self.done.lock().unwrap().contains_key(name)
    }
}

/// A store with an image, from a registry that is of no further interest.
async fn with_image(image: &TestImage) -> Setup {
    let setup = Setup::new().await;
    setup.registry.publish("app", "latest", image);
    setup.pull("app").await.unwrap();
    setup
}

async fn push(setup: &Setup, to: &Registry, auth: Option<Auth>) -> Result<Pushed, sampan_imagestore::Error> {
    let image = setup.store.images().remove(0);
    let reference: Reference = to.name("copy:1").parse().unwrap();
    let (events, mut told) = mpsc::channel(16);
    let drain = tokio::spawn(async move { while told.recv().await.is_some() {} });
    let pushed = setup.store.push(image, &reference, auth, events).await;
    drain.await.unwrap();
    pushed
}

fn assert_arrived(uploads: &Uploads, image: &TestImage) {
    for blob in image.blobs() {
        assert!(uploads.has(&digest(&blob)), "a blob of {} bytes is missing", blob.len());
    }
    assert!(uploads.has("1"), "the manifest is missing");
}

/// More than two pieces.
fn large() -> TestImage {
    TestImage::new(vec![gzip(&tar(&[("data", &noise(20 << 20, 71))]))])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_too_much_at_a_time_goes_in_pieces() {
    let (image, to) = (large(), Registry::start().await);
    let setup = with_image(&image).await;
    to.rule(|request| (request.method == "PUT" && request.bytes.len() > 1 << 20).then(|| Reply::status(413)));
    let uploads = Uploads::at(&to);
    push(&setup, &to, None).await.unwrap();
    assert_arrived(&uploads, &image);
    let pieces = to.requests().iter().filter(|request| request.method == "PATCH").count();
    assert_eq!(pieces, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_pieces_goes_on_where_the_registry_says_that_it_broke() {
    let (image, to) = (large(), Registry::start().await);
    let setup = with_image(&image).await;
    let broken = Arc::new(AtomicUsize::new(0));
    to.rule(|request| (request.method == "PUT" && request.bytes.len() > 1 << 20).then(|| Reply::status(413)));
    // Half of the second piece is taken, then the server falls over; twice.
    let (taking, counting) = (Uploads::default(), broken.clone());
    let uploads = taking.clone();
    to.rule(move |request| {
        let second = request.method == "PATCH" && !request.header("content-range")?.starts_with("0-");
        if second && counting.fetch_add(1, Ordering::Relaxed) < 2 {
            let mut open = taking.open.lock().unwrap();
            open.get_mut(request.path()).unwrap().extend(&request.bytes[..1 << 20]);
            return Some(Reply::status(502));
        }
        taking.answer(request)
    });
    push(&setup, &to, None).await.unwrap();
    assert_arrived(&uploads, &image);
    let sent: usize = to
        .requests()
        .iter()
        .filter(|request| request.method == "PATCH")
        .map(|request| request.bytes.len())
        .sum();
    let size = image.layers[0].blob.len();
    // Two pieces of 8 MiB of which 1 MiB each had been taken, and nothing else twice.
    assert!(sent <= size + 2 * (7 << 20), "{sent} bytes sent of {size}");
    assert!(to.requests().iter().any(|request| request.method == "GET"), "it asks how far it came");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_the_registry_forgot_begins_again() {
    let (image, to) = (large(), Registry::start().await);
    let setup = with_image(&image).await;
    let once = Arc::new(AtomicUsize::new(0));
    to.rule(|request| {
        (request.method == "PUT" && request.bytes.len() > 15 << 20).then(|| Reply::status(413))
    });
    let (taking, counting) = (Uploads::default(), once.clone());
    let uploads = taking.clone();
    to.rule(move |request| {
        let second = request.method == "PATCH" && !request.header("content-range")?.starts_with("0-");
        if second && counting.fetch_add(1, Ordering::Relaxed) == 0 {
            taking.open.lock().unwrap().clear();
            return Some(Reply::status(503));
        }
        taking.answer(request)
    });
    push(&setup, &to, None).await.unwrap();
    assert_arrived(&uploads, &image);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_stumbles_is_asked_again_at_every_step() {
    let image = simple(100_000, 72);
    let setup = with_image(&image).await;
    for (method, part) in
        [("HEAD", "/blobs/"), ("POST", "/blobs/uploads/"), ("PUT", "/blobs/uploads/"), ("PUT", "/manifests/")]
    {
        for reply in
            [Reply::status(503), Reply::status(429).header("Retry-After", "0"), Reply::status(NO_ANSWER)]
        {
            let to = Registry::start().await;
            let stumbled = AtomicUsize::new(0);
            to.rule(move |request| {
                let here = request.method == method && request.path().contains(part);
                (here && stumbled.fetch_add(1, Ordering::Relaxed) == 0).then(|| reply.clone())
            });
            let uploads = Uploads::at(&to);
            let pushed = push(&setup, &to, None).await;
            if let Err(error) = &pushed {
                panic!("{method} {part}: {}", text(error));
            }
            assert_arrived(&uploads, &image);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_refused_names_no_image() {
    let image = simple(100_000, 73);
    let setup = with_image(&image).await;
    for (status, kind) in [(401, Kind::Unauthenticated), (403, Kind::Unauthenticated), (400, Kind::Internal)]
    {
        let to = Registry::start().await;
        to.rule(move |request| {
            (request.method == "PUT" && request.path().contains("/blobs/")).then(|| Reply::status(status))
        });
        let uploads = Uploads::at(&to);
        let error = push(&setup, &to, None).await.unwrap_err();
        assert!(error.kind() == kind || status == 400, "{status}: {:?} {}", error.kind(), text(&error));
        assert!(!uploads.has("1"), "{status}: a manifest without its blobs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_elsewhere_gets_no_credentials() {
    let image = simple(100_000, 74);
    let setup = with_image(&image).await;
    let (to, elsewhere) = (Registry::start().await, Registry::start().await);
    let uploads = Uploads::at(&elsewhere);
    let address = elsewhere.url("");
    to.rule(move |request| {
        if request.header("authorization").is_none() {
            return Some(Reply::status(401).header("WWW-Authenticate", "Basic realm=\"x\""));
        }
        match request.method.as_str() {
            "POST" => {
                let location = format!("{address}{}", request.path());
                // What that server would have said.
                Some(Reply::status(202).header("Location", format!("{location}x")))
            }
            "HEAD" => Some(Reply::status(404)),
            "PUT" if request.path().contains("/manifests/") => Some(Reply::status(201)),
            _ => None,
        }
    });
    uploads.open.lock().unwrap().insert("/v2/copy/blobs/uploads/x".to_owned(), Vec::new());
    let auth = Auth::Basic { username: "user".into(), password: "secret".into() };
    // Both blobs go to the one upload, so one of them is refused; what counts is what was told to whom.
    drop(push(&setup, &to, Some(auth)).await);
    let asked = elsewhere.requests();
    assert!(!asked.is_empty());
    assert!(asked.iter().all(|request| request.header("authorization").is_none()), "{asked:?}");
}
