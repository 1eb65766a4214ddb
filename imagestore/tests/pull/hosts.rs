//! Mirrors, private certificates and credentials kept on the node, as configured for each registry.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use sampan_imagestore::{
    Auth, CredentialHelper, Credentials, HelperAnswer, Image, Kind, Progress, Store, StoreOptions,
};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::{
    images::{Setup, TestImage, gzip, layer_directory, noise, options, simple, tar, text},
    server::{CLOSED, Registry, Reply, digest},
};

/// A registry of which the images have the name, and a store whose settings are to be written.
struct Routed {
    setup: Setup,
    settings: tempfile::TempDir,
}

impl Routed {
    async fn new() -> Routed {
        Routed { setup: Setup::new().await, settings: tempfile::tempdir().unwrap() }
    }

    fn folder(&self) -> std::path::PathBuf {
        let folder = self.settings.path().join(self.setup.registry.address.to_string());
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn write(&self, hosts: &str) {
        fs::write(self.folder().join("hosts.toml"), hosts).unwrap();
    }

    fn store(&self, credentials: Credentials) -> Store {
        let registry_settings = Some(self.settings.path().to_owned());
        let options = StoreOptions { registry_settings, credentials, ..options() };
        Store::open(self.setup.root.path(), options).unwrap()
    }

    async fn pull(&self, auth: Option<Auth>) -> Result<Image, sampan_imagestore::Error> {
        let reference = self.setup.reference("app");
        self.store(Credentials::default()).pull(&reference, auth, Progress::none()).await
    }
}

fn basic() -> Option<Auth> {
    Some(Auth::Basic { username: "user".to_owned(), password: "hunter2".to_owned() })
}

const BASIC: &str = "Basic dXNlcjpodW50ZXIy";

/// Makes a registry ask everybody for a password.
fn guard(registry: &Registry) {
    registry.rule(|request| {
        let asked = request.header("authorization") != Some(BASIC);
        asked.then(|| Reply::status(401).header("WWW-Authenticate", "Basic realm=\"x\""))
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_asked_first_and_the_image_keeps_its_name() {
    let routed = Routed::new().await;
    let mirror = Registry::start().await;
    let image = simple(100_000, 80);
    mirror.publish("proxy/app", "latest", &image);
    let url = mirror.url("/v2/proxy");
    routed.write(&format!(
        "[host.\"{url}\"]\noverride_path = true\n[host.\"{url}\".header]\nx-team = \"blue\""
    ));
    let pulled = routed.pull(None).await.unwrap();
    let name = &routed.setup.registry;
    assert_eq!(pulled.repo_tags, [name.name("app:latest")]);
    assert_eq!(pulled.repo_digests, [format!("{}@{}", name.name("app"), digest(&image.manifest))]);
    assert!(name.requests().is_empty());
    let asked = mirror.requests();
    assert_eq!(asked.len(), 3);
    for request in asked {
        assert_eq!(request.header("x-team"), Some("blue"));
        // A mirror of many registries learns which is meant.
        let encoded = name.address.to_string().replace(':', "%3A");
        assert!(request.target.ends_with(&format!("?ns={encoded}")), "{}", request.target);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_fails_costs_nothing_but_the_way_to_the_registry() {
    let routed = Routed::new().await;
    let mirrors = [Registry::start().await, Registry::start().await, Registry::start().await];
    let image = simple(100_000, 81);
    routed.setup.registry.publish("app", "latest", &image);
    mirrors[0].rule(|_| Some(Reply::status(500)));
    // Knows nothing, and lies: neither is what the registry itself says.
    mirrors[2].rule(|request| request.path().contains("/manifests/").then(|| Reply::status(403)));
    mirrors[2].rule(|request| request.path().contains("/blobs/").then(|| Reply::ok("other bytes")));
    let urls: Vec<_> = mirrors.iter().map(|mirror| mirror.url("")).collect();
    let hosts: String =
        [format!("http://{CLOSED}")].iter().chain(&urls).map(|url| format!("[host.\"{url}\"]\n")).collect();
    routed.write(&hosts);
    let start = std::time::Instant::now();
    routed.pull(None).await.unwrap();
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
    // Once it is known to be down it is left alone.
    assert_eq!(mirrors[0].requests().len(), 1);
    routed.setup.assert_holds(3, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_may_not_resolve_gives_content_only() {
    let routed = Routed::new().await;
    let mirror = Registry::start().await;
    let image = simple(100_000, 82);
    mirror.publish("app", "latest", &simple(10, 83));
    mirror.publish("app", "other", &image);
    routed.setup.registry.publish("app", "latest", &image);
    routed.write(&format!("[host.\"{}\"]\ncapabilities = [\"pull\"]", mirror.url("")));
    let pulled = routed.pull(None).await.unwrap();
    assert_eq!(pulled.id, image.id());
    assert_eq!(routed.setup.registry.requests().len(), 1);
    assert_eq!(mirror.count("/blobs/"), 2);
    routed.write("capabilities = [\"push\"]");
    let error = routed.pull(None).await.unwrap_err();
    assert!(text(&error).contains("no host of its settings"), "{}", text(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_breaks_off_at_a_mirror_goes_on_at_the_registry() {
    let routed = Routed::new().await;
    let mirror = Registry::start().await;
    let image = simple(500_000, 84);
    for registry in [&mirror, &routed.setup.registry] {
        registry.publish("app", "latest", &image);
    }
    let blob = image.layers[0].blob.clone();
    mirror.rule(move |request| {
        request.path().contains(&digest(&blob)).then(|| Reply::blob(request, &blob).cut(200_000))
    });
    routed.write(&format!("[host.\"{}\"]", mirror.url("")));
    let pulled = routed.pull(None).await.unwrap();
    let file = layer_directory(routed.setup.root.path(), &pulled, 0).join("data");
    assert_eq!(fs::read(file).unwrap(), noise(500_000, 84));
    let asked = routed.setup.registry.requests();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].from() >= 100_000, "{}", asked[0].from());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_credentials_of_a_pull_are_not_for_mirrors() {
    let routed = Routed::new().await;
    let mirror = Registry::start().await;
    let image = simple(10_000, 85);
    for registry in [&mirror, &routed.setup.registry] {
        registry.publish("app", "latest", &image);
        guard(registry);
    }
    routed.write(&format!("[host.\"{}\"]", mirror.url("")));
    routed.pull(basic()).await.unwrap();
    assert!(!mirror.requests().is_empty());
    assert!(mirror.requests().iter().all(|request| request.header("authorization").is_none()));
    assert_eq!(routed.setup.registry.requests().last().unwrap().header("authorization"), Some(BASIC));
}

/// Notes what it is asked, and knows one password.
#[derive(Debug, Default)]
struct Helper(Mutex<Vec<String>>);

impl CredentialHelper for Helper {
    fn get<'a>(&'a self, name: &'a str, server: &'a str) -> HelperAnswer<'a> {
        self.0.lock().unwrap().push(format!("{name} {server}"));
        Box::pin(async { Ok(basic()) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_the_node_serve_pulls_without_any() {
    let routed = Routed::new().await;
    let registry = &routed.setup.registry;
    registry.publish("app", "latest", &simple(10_000, 86));
    guard(registry);
    let address = registry.address.to_string();
    let file = routed.settings.path().join("config.json");
    let credentials = Credentials { file: Some(file.clone()), helper: None };
    let store = routed.store(credentials.clone());
    let reference = routed.setup.reference("app");
    let error = store.pull(&reference, None, Progress::none()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthenticated);
    fs::write(&file, format!(r#"{{"auths": {{"{address}": {{"auth": "dXNlcjpodW50ZXIy"}}}}}}"#)).unwrap();
    store.pull(&reference, None, Progress::none()).await.unwrap();
    // Those of the pull come first, right or wrong.
    let wrong = Auth::Basic { username: "user".to_owned(), password: "wrong".to_owned() };
    let error = store.pull(&reference, Some(wrong), Progress::none()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthenticated);

    fs::write(&file, format!(r#"{{"credHelpers": {{"{address}": "vault"}}}}"#)).unwrap();
    let error = store.pull(&reference, None, Progress::none()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(text(&error).contains("\"vault\""), "{}", text(&error));
    drop(store);
    let helper = Arc::new(Helper::default());
    let store = routed.store(Credentials { helper: Some(helper.clone()), ..credentials });
    store.pull(&reference, None, Progress::none()).await.unwrap();
    // Once for all requests of the pull.
    assert_eq!(*helper.0.lock().unwrap(), [format!("vault {address}")]);
}

/// Certificates for a registry on loopback.
pub(crate) struct Authority(pub(crate) CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Authority {
        Authority::named("the authority")
    }

    fn named(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate and its key, in PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    /// A server's side of TLS; with `clients`, only for clients that have a certificate of theirs.
    fn server(&self, clients: Option<&Authority>) -> ServerConfig {
        self.server_of("127.0.0.1", clients)
    }

    pub(crate) fn server_of(&self, name: &str, clients: Option<&Authority>) -> ServerConfig {
        self.server_that(name, clients, true)
    }

    /// With `tells`, clients learn whose certificates are wanted.
    fn server_that(&self, name: &str, clients: Option<&Authority>, tells: bool) -> ServerConfig {
        let (certificate, key) = self.issue(name);
        let certificate = PemObject::from_pem_slice(certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.0.der().clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = if tells { verifier } else { verifier.clear_root_hint_subjects() };
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        builder.with_single_cert(vec![certificate], key).unwrap()
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_certificate_is_trusted_where_it_is_configured() {
    let authority = Authority::new();
    let routed = Routed::new().await;
    let registry = Registry::start_with(Some(authority.server(None))).await;
    registry.publish("app", "latest", &simple(100_000, 87));
    let server = format!("server = \"https://{}\"\n", registry.address);
    routed.write(&server);
    let error = routed.pull(None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{}", text(&error));
    assert!(text(&error).contains("certificate"), "{}", text(&error));
    routed.write(&format!("{server}ca = \"ca.pem\""));
    let error = routed.pull(None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{}", text(&error));
    assert!(text(&error).contains("ca.pem"), "{}", text(&error));
    // Another authority's certificate does not help; the right one does, once it is there.
    write(&routed.folder(), "ca.pem", &Authority::new().0.pem());
    routed.pull(None).await.unwrap_err();
    write(&routed.folder(), "ca.pem", &authority.0.pem());
    routed.pull(None).await.unwrap();
    routed.write(&format!("{server}skip_verify = true"));
    routed.pull(None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_a_client_certificate_gets_it_and_nobody_else_does() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let routed = Routed::new().await;
    let registry = Registry::start_with(Some(authority.server(Some(&clients)))).await;
    let storage = Registry::start_with(Some(authority.server(Some(&clients)))).await;
    let image = TestImage::new(vec![gzip(&tar(&[("x", &noise(50_000, 88))]))]);
    registry.publish("app", "latest", &image);
    let (certificate, key) = clients.issue("node");
    let folder = routed.folder();
    for (name, text) in [("ca.pem", &authority.0.pem()), ("node.pem", &certificate), ("node.key", &key)] {
        write(&folder, name, text);
    }
    let server = format!("server = \"https://{}\"\nca = \"ca.pem\"\n", registry.address);
    routed.write(&server);
    routed.pull(None).await.unwrap_err();
    assert!(registry.requests().is_empty());
    routed.write(&format!("{server}client = [[\"node.pem\", \"node.key\"]]"));
    routed.pull(None).await.unwrap();
    // Where it redirects to, our certificate is nobody's business, though that authority is trusted.
    let blob = image.layers[0].blob.clone();
    let target = format!("https://{}/store", storage.address);
    registry.rule(move |request| {
        let wanted = request.path().contains(&digest(&blob));
        wanted.then(|| Reply::status(307).header("Location", target.clone()))
    });
    let store = routed.store(Credentials::default());
    store.remove(&image.id()).unwrap();
    let error = store.pull(&routed.setup.reference("app"), None, Progress::none()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{}", text(&error));
    assert!(storage.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_client_certificates_a_registry_gets_the_one_of_its_authority() {
    let (authority, clients) = (Authority::new(), Authority::named("of the registry's clients"));
    let routed = Routed::new().await;
    let telling = Registry::start_with(Some(authority.server(Some(&clients)))).await;
    let silent = authority.server_that("127.0.0.1", Some(&clients), false);
    let silent = Registry::start_with(Some(silent)).await;
    let folder = routed.folder();
    write(&folder, "ca.pem", &authority.0.pem());
    for (name, authority) in [("other", &Authority::named("somebody else")), ("node", &clients)] {
        let (certificate, key) = authority.issue(name);
        write(&folder, &format!("{name}.both"), &format!("{certificate}{key}"));
        write(&folder, &format!("{name}.pem"), &certificate);
        write(&folder, &format!("{name}.key"), &key);
    }
    let mut seed = 90;
    let mut pull = async |registry: &Registry, client: &str| {
        seed += 1;
        registry.publish("app", "latest", &simple(1_000, seed));
        let before = registry.requests().len();
        routed.write(&format!("server = \"https://{}\"\nca = \"ca.pem\"\n{client}", registry.address));
        let pulled = routed.pull(None).await;
        if let Err(error) = &pulled {
            assert_eq!(error.kind(), Kind::Unavailable, "{}", text(error));
            assert_eq!(registry.requests().len(), before, "nobody gets in without the right certificate");
        }
        pulled.is_ok()
    };
    let (files, pairs) = (
        r#"client = ["other.both", "node.both"]"#,
        r#"client = [["other.pem", "other.key"], ["node.pem", "node.key"]]"#,
    );
    assert!(pull(&telling, files).await && pull(&telling, pairs).await);
    assert!(!pull(&telling, r#"client = "other.both""#).await);
    // Whoever does not tell is shown the first.
    assert!(!pull(&silent, files).await);
    assert!(pull(&silent, r#"client = ["node.both", "other.both"]"#).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_that_is_none_is_named() {
    let routed = Routed::new().await;
    let (folder, client) = (routed.folder(), Authority::new());
    let ((certificate, key), (_, foreign)) = (client.issue("node"), client.issue("other"));
    let server = "server = \"https://127.0.0.1:1\"\nclient = ";
    for (pem, words) in [
        ("nothing".to_owned(), "node.pem: name PEM files"),
        (certificate.clone(), "node.pem: name PEM files"),
        (key, "node.pem: name PEM files"),
        (format!("{certificate}{foreign}"), "client certificate"),
    ] {
        write(&folder, "node.pem", &pem);
        routed.write(&format!("{server}\"node.pem\""));
        let error = routed.pull(None).await.unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{}", text(&error));
        assert!(text(&error).contains(words), "{}", text(&error));
    }
}
