//! Policies as administrators have them.

use proptest::prelude::*;

use super::{policy::Identity, *};

const KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE36KycXxpZmLFUf3rZ76W1OiExouF\n\
aTZcmUnUktKUO/HhN9qEdMBjiUMoqSm2tOcr7jj/cin79Uf9G7PFUHA9Ng==\n\
-----END PUBLIC KEY-----\n";

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn scope(policy: &str, name: &str) -> String {
    Policy::parse(policy.as_bytes()).unwrap().for_image(&reference(name)).0.to_owned()
}

#[test]
fn the_most_specific_scope_decides() {
    let policy = r#"{"default": [{"type": "reject"}], "transports": {
        "docker-daemon": {"": [{"type": "insecureAcceptAnything"}]},
        "docker": {
            "quay.io": [{"type": "reject"}],
            "quay.io/team": [{"type": "reject"}],
            "quay.io/team/app": [{"type": "reject"}],
            "quay.io/team/app:v1": [{"type": "reject"}],
            "*.example.com": [{"type": "reject"}],
            "docker.io/library/nginx": [{"type": "insecureAcceptAnything"}]
        }}}"#;
    for (name, expected) in [
        ("quay.io/team/app:v1", "quay.io/team/app:v1"),
        ("quay.io/team/app:v2", "quay.io/team/app"),
        ("quay.io/team/other", "quay.io/team"),
        ("quay.io/teams/other", "quay.io"),
        ("a.b.example.com:5000/x", "default"),
        ("a.b.example.com/x", "*.example.com"),
        ("example.com/x", "default"),
        ("nginx", "docker.io/library/nginx"),
        ("redis", "default"),
    ] {
        assert_eq!(scope(policy, name), expected, "{name}");
    }
    let all = policy.replace("\"quay.io\"", "\"\"");
    assert_eq!(scope(&all, "redis"), "docker");
}

#[test]
fn without_a_file_everything_is_accepted_and_with_a_bad_one_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("policy.json");
    assert!(Policy::load(None).unwrap().demands(&reference("x")).is_ok());
    assert!(Policy::load(Some(&path)).unwrap().demands(&reference("x")).is_ok());
    for text in [
        "",
        "{}",
        r#"{"default": []}"#,
        r#"{"default": [{"type": "trustMe"}]}"#,
        r#"{"default": [{"type": "reject"}], "transport": {}}"#,
        r#"{"default": [{"type": "sigstoreSigned"}]}"#,
        r#"{"default": [{"type": "sigstoreSigned", "keyPath": "/k", "keyPth": "/l"}]}"#,
        r#"{"default": [{"type": "reject"}], "transports": {"docker": {"x": [{"type": "?"}]}}}"#,
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Policy::load(Some(&path)).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{text}: {error}");
    }
}

#[test]
fn what_is_not_supported_refuses_only_what_falls_under_it() {
    for requirement in [
        r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/etc/pki/key"}"#,
        r#"{"type": "sigstoreSigned", "fulcio": {"caPath": "/x"}, "rekorPublicKeyPath": "/y"}"#,
        r#"{"type": "sigstoreSigned", "keyPath": "/x", "rekorPublicKeyPath": "/y"}"#,
    ] {
        let policy = format!(
            r#"{{"default": [{{"type": "insecureAcceptAnything"}}], "transports": {{"docker": {{"a.example": [{requirement}]}}}}}}"#
        );
        let policy = Policy::parse(policy.as_bytes()).unwrap();
        assert!(policy.demands(&reference("b.example/x")).is_ok());
        let error = policy.demands(&reference("a.example/x")).unwrap_err();
        assert!(error.to_string().contains("not supported"), "{error}");
        assert_eq!(error.kind(), Kind::Untrusted);
    }
}

#[test]
fn keys_are_read_from_files_and_from_the_policy() {
    let demands = |signed: &str| {
        let policy = format!(r#"{{"default": [{{"type": "sigstoreSigned", {signed}}}]}}"#);
        Policy::parse(policy.as_bytes()).unwrap().demands(&reference("x"))
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), KEY).unwrap();
    let path = file.path().display();
    let found = demands(&format!(r#""keyPath": "{path}", "keyData": "{}""#, STANDARD.encode(KEY))).unwrap();
    assert_eq!(found.signed[0].keys.len(), 2);
    assert_eq!(found.signed[0].keys[0], found.signed[0].keys[1]);
    let missing = demands(r#""keyPath": "/nonexistent/key.pub""#).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/key.pub"), "{missing}");
    let rsa = KEY.replace("MFkwEwYH", "MFkwEwYI");
    std::fs::write(file.path(), rsa).unwrap();
    let wrong = demands(&format!(r#""keyPaths": ["{path}"]"#)).unwrap_err();
    assert!(wrong.to_string().contains("no ECDSA P-256 public key"), "{wrong}");
}

#[test]
fn names_are_accepted_as_the_identity_says() {
    let identity = |json: &str| serde_json::from_str::<Identity>(json).unwrap();
    let exact = || identity(r#"{"type": "matchExact"}"#);
    let either = || identity(r#"{"type": "matchRepoDigestOrExact"}"#);
    let repository = || identity(r#"{"type": "matchRepository"}"#);
    let remap =
        || identity(r#"{"type": "remapIdentity", "prefix": "m.example/up", "signedPrefix": "up.example"}"#);
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let by_digest = format!("a.example/x@{digest}");
    for (identity, signed, used, expected) in [
        (exact(), "a.example/x:1", "a.example/x:1", true),
        (exact(), "a.example/x:1", "a.example/x:2", false),
        (exact(), "a.example/x", "a.example/x:latest", false),
        (exact(), "a.example/x:1", &by_digest, false),
        (either(), "a.example/x:1", &by_digest, true),
        (either(), "a.example/y:1", &by_digest, false),
        (either(), "a.example/x", &by_digest, false),
        (either(), "a.example/x:1", "a.example/x:2", false),
        (repository(), "a.example/x", "a.example/x:2", true),
        (repository(), "index.docker.io/library/nginx", "nginx", true),
        (repository(), "a.example/xx", "a.example/x:2", false),
        (repository(), "!", "a.example/x:2", false),
        (remap(), "up.example/x:1", "m.example/up/x:1", true),
        (remap(), "m.example/up/x:1", "m.example/up/x:1", false),
        (remap(), "m.example/upper/x:1", "m.example/upper/x:1", true),
        (
            identity(r#"{"type": "exactReference", "dockerReference": "b.example/y:1"}"#),
            "b.example/y:1",
            "a.example/x:2",
            true,
        ),
        (
            identity(r#"{"type": "exactRepository", "dockerRepository": "b.example/y"}"#),
            "b.example/y",
            "a.example/x:2",
            true,
        ),
    ] {
        assert_eq!(identity.accepts(signed, &reference(used)), expected, "{identity:?} {signed} {used}");
    }
}

#[test]
fn statements_are_read_strictly() {
    let digest = Digest::of(b"");
    let text = |kind: &str, more: &str| {
        format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"a.example/x"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"{kind}"{more}}},"optional":{{"a":1}}}}"#
        )
    };
    let right = text("cosign container image signature", "");
    let payload = Payload::parse(right.as_bytes()).unwrap();
    assert_eq!(payload, Payload { image: digest.clone(), reference: "a.example/x".to_owned() });
    Payload::parse(right.replace(r#"{"a":1}"#, "null").as_bytes()).unwrap();
    for wrong in [
        text("atomic container signature", ""),
        text("cosign container image signature", r#","more":1"#),
        right.replace(digest.as_str(), "sha256:../x"),
        right[..right.len() - 1].to_owned(),
    ] {
        assert!(Payload::parse(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn reading_anything_ends_without_panic(text in "\\PC*") {
        let _ = Policy::parse(text.as_bytes());
        let _ = Payload::parse(text.as_bytes());
        let _ = attached(text.as_bytes());
        let _ = policy::Key::from_pem(text.as_bytes());
        let _ = Identity::MatchRepository.accepts(&text, &reference("x"));
    }
}
