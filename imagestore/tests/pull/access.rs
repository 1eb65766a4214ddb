//! Credentials: who is asked for them, and who never sees them.

use sampan_imagestore::{Auth, Credentials, Image, Kind, Progress, Store, StoreOptions};

use crate::{
    images::{Setup, options, simple, text},
    server::{Registry, Reply, Request, digest},
};

const TOKEN: &str = "Bearer opensesame";

fn basic() -> Auth {
    Auth::Basic { username: "user".to_owned(), password: "hunter2".to_owned() }
}

/// What `user:hunter2` looks like on the wire.
const BASIC: &str = "Basic dXNlcjpodW50ZXIy";

async fn pull(setup: &Setup, auth: Option<Auth>) -> Result<Image, sampan_imagestore::Error> {
    setup.store.pull(&setup.reference("app"), auth, Progress::none()).await
}

/// Makes the registry ask for a token of the service at `realm`.
fn guard(registry: &Registry, realm: String) {
    registry.rule(move |request| {
        let asked = request.path().starts_with("/v2/") && request.header("authorization") != Some(TOKEN);
        let challenge =
            format!("Bearer realm=\"{realm}\",service=\"reg\",scope=\"repository:app:pull,push\"");
        asked.then(|| Reply::status(401).header("WWW-Authenticate", challenge))
    });
}

/// Makes a server give the token to whoever `knows`.
fn serve_tokens(registry: &Registry, knows: impl Fn(&Request) -> bool + Send + Sync + 'static) {
    registry.rule(move |request| {
        let reply = if knows(request) { Reply::ok(r#"{"token":"opensesame"}"#) } else { Reply::status(401) };
        (request.path() == "/token").then_some(reply)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_image_is_pulled_with_an_anonymous_token() {
    let setup = Setup::new().await;
    setup.registry.publish("app", "latest", &simple(100_000, 50));
    guard(&setup.registry, setup.registry.url("/token"));
    serve_tokens(&setup.registry, |request| request.header("authorization").is_none());
    pull(&setup, None).await.unwrap();
    // One token serves the manifest and all blobs, and asks for no more than reading.
    let tokens: Vec<_> = setup.registry.requests().into_iter().filter(|r| r.path() == "/token").collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].target, "/token?scope=repository%3Aapp%3Apull&service=reg");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_image_is_pulled_with_a_password_or_an_identity() {
    for auth in
        [basic(), Auth::IdentityToken("identity".to_owned()), Auth::RegistryToken("opensesame".to_owned())]
    {
        let setup = Setup::new().await;
        setup.registry.publish("app", "latest", &simple(100_000, 51));
        guard(&setup.registry, setup.registry.url("/token"));
        serve_tokens(&setup.registry, |request| {
            request.header("authorization") == Some(BASIC) || request.body.contains("refresh_token=identity")
        });
        pull(&setup, Some(auth)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_may_ask_for_the_password_itself() {
    let setup = Setup::new().await;
    setup.registry.publish("app", "latest", &simple(100_000, 52));
    setup.registry.rule(|request| {
        let asked = request.header("authorization") != Some(BASIC);
        asked.then(|| Reply::status(401).header("WWW-Authenticate", "Basic realm=\"x\""))
    });
    pull(&setup, Some(basic())).await.unwrap();
    // Not before it is asked for.
    assert_eq!(setup.registry.requests()[0].header("authorization"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_or_missing_credentials_are_told_apart_from_a_registry_that_is_down() {
    let setup = Setup::new().await;
    setup.registry.publish("app", "latest", &simple(10, 53));
    guard(&setup.registry, setup.registry.url("/token"));
    serve_tokens(&setup.registry, |_| false);
    for auth in [None, Some(basic()), Some(Auth::RegistryToken("hunter3".to_owned()))] {
        let error = pull(&setup, auth).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unauthenticated, "{}", text(&error));
        assert!(!text(&error).contains("hunter") && !format!("{error:?}").contains("hunter"));
    }
    setup.assert_holds(0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_during_the_pull_is_renewed() {
    let setup = Setup::new().await;
    let image = simple(100_000, 54);
    setup.registry.publish("app", "latest", &image);
    let blob = digest(&image.layers[0].blob);
    // The first token is good for the manifest only.
    let realm = setup.registry.url("/token");
    setup.registry.rule(move |request| {
        let wanted = match request.path() {
            path if !path.starts_with("/v2/") => return None,
            path if path.contains(&blob) => "Bearer t1",
            _ => "Bearer t0",
        };
        let known = request.header("authorization");
        let challenge = Reply::status(401).header("WWW-Authenticate", format!("Bearer realm=\"{realm}\""));
        (known != Some(wanted) && known != Some("Bearer t1")).then_some(challenge)
    });
    setup.registry.rule(|request| {
        let token = Reply::ok(format!(r#"{{"access_token":"t{}"}}"#, request.earlier));
        (request.path() == "/token").then_some(token)
    });
    pull(&setup, None).await.unwrap();
    assert_eq!(setup.registry.count("/token"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_service_elsewhere_gets_no_password() {
    let setup = Setup::new().await;
    setup.registry.publish("app", "latest", &simple(10, 55));
    let elsewhere = Registry::start().await;
    // The same machine by another name is another host.
    guard(&setup.registry, format!("http://localhost:{}/token", elsewhere.address.port()));
    serve_tokens(&elsewhere, |_| true);
    pull(&setup, Some(basic())).await.unwrap();
    let asked = elsewhere.requests();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), None);
    pull(&setup, Some(Auth::IdentityToken("identity".to_owned()))).await.unwrap();
    assert!(elsewhere.requests().iter().all(|request| !request.body.contains("identity")));
    assert!(elsewhere.requests().iter().all(|request| !request.target.contains("identity")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_takes_no_credentials_to_another_host() {
    let setup = Setup::new().await;
    let image = simple(100_000, 56);
    setup.registry.publish("app", "latest", &image);
    guard(&setup.registry, setup.registry.url("/token"));
    serve_tokens(&setup.registry, |_| true);
    let storage = Registry::start().await;
    let blob = image.layers[0].blob.clone();
    let target = storage.url("/store/blob?signature=secret");
    let blob_digest = digest(&blob);
    setup.registry.rule(move |request| {
        let wanted = request.path().contains(&blob_digest);
        wanted.then(|| Reply::status(307).header("Location", target.clone()))
    });
    storage.rule(move |request| Some(Reply::blob(request, &blob)));
    pull(&setup, Some(basic())).await.unwrap();
    assert!(storage.count("/store/blob") >= 1);
    assert!(storage.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_redirected_to_cannot_ask_for_credentials() {
    let setup = Setup::new().await;
    let image = simple(100_000, 57);
    setup.registry.publish("app", "latest", &image);
    let hostile = Registry::start().await;
    let (target, blob) = (hostile.url("/blob?signature=secret"), digest(&image.layers[0].blob));
    setup.registry.rule(move |request| {
        let wanted = request.path().contains(&blob);
        wanted.then(|| Reply::status(302).header("Location", target.clone()))
    });
    let realm = hostile.url("/token");
    hostile.rule(move |_| {
        Some(
            Reply::status(401).header("WWW-Authenticate", format!("Bearer realm=\"{realm}\", Basic realm=x")),
        )
    });
    let error = pull(&setup, Some(basic())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthenticated, "{}", text(&error));
    assert_eq!(hostile.count("/token"), 0);
    assert!(hostile.requests().iter().all(|request| request.header("authorization").is_none()));
    assert!(!text(&error).contains("secret"), "{}", text(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_without_end_end() {
    let setup = Setup::new().await;
    setup
        .registry
        .rule(|request| Some(Reply::status(302).header("Location", format!("{}x", request.target))));
    let error = pull(&setup, None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(text(&error).contains("redirects without end"), "{}", text(&error));
    assert_eq!(setup.registry.requests().len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_uses_the_credentials_that_the_node_keeps() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::start().await;
    registry.publish("app", "latest", &simple(100_000, 59));
    registry.rule(|request| {
        let asked = request.header("authorization") != Some(BASIC);
        asked.then(|| Reply::status(401).header("WWW-Authenticate", "Basic realm=\"x\""))
    });
    let file = root.path().join("auth.json");
    let open = |credentials: bool| {
        let file = credentials.then(|| file.clone());
        let credentials = Credentials { file, helper: None };
        Store::open(&root.path().join("store"), StoreOptions { credentials, ..options() }).unwrap()
    };
    let store = open(false);
    let reference = registry.name("app").parse().unwrap();
    let image = store.pull(&reference, Some(basic()), Progress::none()).await.unwrap();
    let blob = root.path().join("store/content/blobs/sha256").join(image.layers[0].digest.hex());
    std::fs::write(&blob, "rotten").unwrap();
    let check = async |store: Store| {
        let (faults, mut found) = tokio::sync::mpsc::channel(16);
        let summary = store.check(true, faults).await.unwrap();
        let mut problems = String::new();
        while let Some(fault) = found.recv().await {
            problems += &fault.problem;
        }
        (summary.repaired, problems)
    };
    // What came with the pull is not kept, and the fault says what is missing.
    let (repaired, problems) = check(store).await;
    assert!(repaired == 0 && problems.contains("401") | problems.contains("credentials"), "{problems}");
    let auths = format!(r#"{{"auths":{{"{}":{{"auth":"dXNlcjpodW50ZXIy"}}}}}}"#, registry.address);
    std::fs::write(&file, auths).unwrap();
    assert_eq!(check(open(true)).await.0, 1);
    assert_eq!(digest(&std::fs::read(blob).unwrap()), image.layers[0].digest.to_string());
}
