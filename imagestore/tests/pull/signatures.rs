//! Signed images: what the policy of the node lets in. Keys and signatures are openssl's, which cosign's are equal to.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sampan_imagestore::{Image, Kind, Progress, Store, StoreOptions};
use serde_json::json;

use crate::{
    images::{Setup, TestImage, options, simple, text},
    server::digest,
};

const LIST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Runs openssl. It makes what the store, which has other code, is to read.
#[allow(clippy::disallowed_methods)]
fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl is installed");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}");
    output.stdout
}

/// Somebody who signs.
struct Signer {
    directory: tempfile::TempDir,
}

impl Signer {
    fn new() -> Signer {
        let directory = tempfile::tempdir().unwrap();
        let key = openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout"], b"");
        fs::write(directory.path().join("key.pub"), openssl(&["ec", "-pubout"], &key)).unwrap();
        fs::write(directory.path().join("key.pem"), key).unwrap();
        Signer { directory }
    }

    fn public(&self) -> PathBuf {
        self.directory.path().join("key.pub")
    }

    fn sign(&self, payload: &[u8]) -> String {
        let key = self.directory.path().join("key.pem");
        STANDARD.encode(openssl(&["dgst", "-sha256", "-sign", key.to_str().unwrap()], payload))
    }
}

/// The document that is signed.
fn payload(reference: &str, image: &str) -> Vec<u8> {
    let critical = json!({
        "identity": {"docker-reference": reference},
        "image": {"docker-manifest-digest": image},
        "type": "cosign container image signature",
    });
    json!({"critical": critical, "optional": null}).to_string().into_bytes()
}

/// A registry with an image, and a store with a policy.
struct Signed {
    setup: Setup,
    image: TestImage,
    policy: tempfile::TempDir,
}

impl Signed {
    async fn new(seed: u64) -> Signed {
        let (setup, image) = (Setup::new().await, simple(50_000, seed));
        setup.registry.publish("app", "latest", &image);
        Signed { setup, image, policy: tempfile::tempdir().unwrap() }
    }

    fn name(&self) -> String {
        self.setup.registry.name("app")
    }

    fn image(&self) -> String {
        digest(&self.image.manifest)
    }

    /// Demands signatures with this key for the repository, and nothing for others.
    fn demand(&self, signer: &Signer, identity: &str) {
        let signed = json!({"type": "sigstoreSigned", "keyPath": signer.public(), "signedIdentity": {"type": identity}});
        let policy = json!({
            "default": [{"type": "insecureAcceptAnything"}],
            "transports": {"docker": {self.name(): [signed]}},
        });
        fs::write(self.policy.path().join("policy.json"), policy.to_string()).unwrap();
    }

    /// Attaches signatures to what has this digest.
    fn attach(&self, image: &str, signatures: &[(Vec<u8>, String)]) {
        let mut layers = Vec::new();
        for (payload, signature) in signatures {
            let path = format!("/v2/app/blobs/{}", digest(payload));
            self.setup.registry.put(path, "application/octet-stream", payload.clone());
            layers.push(json!({
                "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
                "digest": digest(payload), "size": payload.len(),
                "annotations": {"dev.cosignproject.cosign/signature": signature},
            }));
        }
        let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(b"{}"), "size": 2});
        let list = json!({"schemaVersion": 2, "mediaType": LIST, "config": config, "layers": layers});
        let path = format!("/v2/app/manifests/{}.sig", image.replace(':', "-"));
        self.setup.registry.put(path, LIST, list.to_string().into_bytes());
    }

    fn store(&self) -> Store {
        let policy = Some(self.policy.path().join("policy.json"));
        Store::open(self.setup.root.path(), StoreOptions { policy, ..options() }).unwrap()
    }

    async fn pull(&self, name: &str) -> Result<Image, sampan_imagestore::Error> {
        self.store().pull(&self.setup.reference(name), None, Progress::none()).await
    }

    async fn assert_refused(&self, words: &str) {
        let error = self.pull("app").await.unwrap_err();
        assert_eq!(error.kind(), Kind::Untrusted, "{}", text(&error));
        assert!(text(&error).contains(words), "{}", text(&error));
        // Nothing of the image is here, and no layer was asked for.
        self.setup.assert_holds(0, 0);
        assert_eq!(self.setup.registry.count(&digest(&self.image.layers[0].blob)), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_image_is_pulled_and_an_unsigned_one_is_not() {
    let signed = Signed::new(100).await;
    let signer = Signer::new();
    signed.demand(&signer, "matchRepository");
    signed.assert_refused("it is not signed").await;
    let payload = payload(&signed.name(), &signed.image());
    signed.attach(&signed.image(), &[(payload.clone(), signer.sign(&payload))]);
    signed.pull("app").await.unwrap();
    signed.setup.assert_holds(3, 1);
    // Other repositories have no such demand.
    signed.setup.registry.publish("other", "latest", &simple(10, 101));
    signed.pull("other").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_that_prove_nothing_are_refused() {
    let signed = Signed::new(102).await;
    let (signer, stranger) = (Signer::new(), Signer::new());
    signed.demand(&signer, "matchRepository");
    let (name, image) = (signed.name(), signed.image());
    let right = payload(&name, &image);

    signed.attach(&image, &[(right.clone(), stranger.sign(&right))]);
    signed.assert_refused("no signature of it was made with the policy's key").await;
    signed.attach(&image, &[(right.clone(), "!".to_owned()), (right.clone(), STANDARD.encode("x"))]);
    signed.assert_refused("no signature").await;
    // Of another statement.
    signed.attach(&image, &[(right.clone(), signer.sign(b"something else"))]);
    signed.assert_refused("no signature").await;

    let other = digest(b"another image");
    let moved = payload(&name, &other);
    signed.attach(&image, &[(moved.clone(), signer.sign(&moved))]);
    signed.assert_refused(&format!("the signature is that of {other}")).await;
    let renamed = payload("elsewhere.example/app", &image);
    signed.attach(&image, &[(renamed.clone(), signer.sign(&renamed))]);
    signed.assert_refused("elsewhere.example/app").await;
    signed.attach(&image, &[(b"{}".to_vec(), signer.sign(b"{}"))]);
    signed.assert_refused("no statement").await;

    // One good one among them is enough.
    signed.attach(&image, &[(moved.clone(), signer.sign(&moved)), (right.clone(), signer.sign(&right))]);
    signed.pull("app").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_vouches_for_what_is_in_it() {
    let signed = Signed::new(103).await;
    let signer = Signer::new();
    let entry = json!({
        "mediaType": LIST, "digest": signed.image(), "size": signed.image.manifest.len(),
        "platform": {"os": "linux", "architecture": sampan_imagestore::Platform::default().architecture},
    });
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index =
        json!({"schemaVersion": 2, "mediaType": media_type, "manifests": [entry]}).to_string().into_bytes();
    signed.setup.registry.put("/v2/app/manifests/latest".to_owned(), media_type, index.clone());
    signed.demand(&signer, "matchExact");
    let payload = payload(&format!("{}:latest", signed.name()), &digest(&index));
    // Attached to something else it is not even found.
    signed.attach(&digest(b"x"), &[(payload.clone(), signer.sign(&payload))]);
    signed.assert_refused("it is not signed").await;
    signed.attach(&digest(&index), &[(payload.clone(), signer.sign(&payload))]);
    signed.pull("app").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_registry_is_not_even_asked() {
    let signed = Signed::new(104).await;
    let policy = json!({"default": [{"type": "reject"}]});
    fs::write(signed.policy.path().join("policy.json"), policy.to_string()).unwrap();
    signed.assert_refused("it rejects all of them").await;
    assert!(signed.setup.registry.requests().is_empty());
    // What cannot be read lets nothing in either.
    fs::write(signed.policy.path().join("policy.json"), "{").unwrap();
    let error = signed.pull("app").await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(text(&error).contains("policy.json"), "{}", text(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_to_give_signatures_is_no_reason_to_do_without() {
    let signed = Signed::new(105).await;
    let signer = Signer::new();
    signed.demand(&signer, "matchRepository");
    signed
        .setup
        .registry
        .rule(|request| request.path().ends_with(".sig").then(|| crate::server::Reply::status(500)));
    let error = signed.pull("app").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{}", text(&error));
    signed.setup.assert_holds(0, 0);
}
