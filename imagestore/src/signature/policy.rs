//! The policy: `policy.json` of the containers project, as far as it is about images in registries.
//!
//! The most specific scope decides alone, and all of its requirements must hold. What is not supported is no error
//! until an image falls under it; then it refuses the image. Keys are read when an image needs them.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::Error;
use crate::Reference;

/// More than any policy or key has.
const MAX_FILE: u64 = 1 << 20;
/// What comes before the point in a P-256 key (RFC 5480: id-ecPublicKey with prime256v1, 66 bits of string).
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Who vouches for which images.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    default: Vec<Requirement>,
    scopes: HashMap<String, Vec<Requirement>>,
}

/// What an image has to have.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Requirement {
    Accept,
    Reject,
    Signed(Signed<Source>),
    Unsupported(&'static str),
}

/// A signature with one of some keys under an acceptable name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Signed<K = Key> {
    pub(super) scope: String,
    pub(super) keys: Vec<K>,
    pub(super) identity: Identity,
}

/// Where a key is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    Path(PathBuf),
    Data(String),
}

/// An uncompressed point of P-256.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Key(Vec<u8>);

/// Which names an image may have been signed under.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub(super) enum Identity {
    MatchExact,
    MatchRepoDigestOrExact,
    MatchRepository,
    ExactReference {
        docker_reference: String,
    },
    ExactRepository {
        docker_repository: String,
    },
    #[serde(rename = "remapIdentity")]
    Remap {
        prefix: String,
        signed_prefix: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    default: Vec<RawRequirement>,
    #[serde(default)]
    transports: HashMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
enum RawRequirement {
    InsecureAcceptAnything,
    Reject,
    SigstoreSigned(Box<RawSigned>),
    /// By GPG, with whatever it has.
    SignedBy(#[allow(dead_code, reason = "it is never looked at")] HashMap<String, IgnoredAny>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawSigned {
    key_path: Option<PathBuf>,
    #[serde(default)]
    key_paths: Vec<PathBuf>,
    key_data: Option<String>,
    #[serde(default)]
    key_datas: Vec<String>,
    fulcio: Option<Value>,
    pki: Option<Value>,
    rekor_public_key_path: Option<Value>,
    rekor_public_key_paths: Option<Value>,
    rekor_public_key_data: Option<Value>,
    rekor_public_key_datas: Option<Value>,
    signed_identity: Option<Identity>,
}

impl Policy {
    /// Reads a policy. Without a file there is none, and everything is accepted.
    pub(crate) fn load(path: Option<&Path>) -> Result<Policy, Error> {
        let Some(path) = path else { return Ok(Policy::default()) };
        match read(path) {
            Ok(bytes) => {
                Policy::parse(&bytes).map_err(|source| Error::Parse { path: path.to_owned(), source })
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Policy::default()),
            Err(source) => Err(Error::Read { path: path.to_owned(), source }),
        }
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Policy, serde_json::Error> {
        let mut raw: Raw = serde_json::from_slice(bytes)?;
        let docker = raw.transports.remove("docker").unwrap_or_else(|| Value::Object(Default::default()));
        let docker: HashMap<String, Vec<RawRequirement>> = serde_json::from_value(docker)?;
        let default = requirements("default", raw.default)?;
        let scopes = docker.into_iter().map(|(scope, raw)| {
            let name = if scope.is_empty() { "docker" } else { &scope };
            let requirements = requirements(name, raw)?;
            Ok((scope, requirements))
        });
        Ok(Policy { default, scopes: scopes.collect::<Result<_, serde_json::Error>>()? })
    }

    /// The requirements for an image, and which scope they are from.
    pub(super) fn for_image(&self, reference: &Reference) -> (&str, &[Requirement]) {
        let found = scopes(reference).into_iter().find_map(|scope| self.scopes.get_key_value(&scope));
        match found {
            Some((scope, requirements)) if scope.is_empty() => ("docker", requirements),
            Some((scope, requirements)) => (scope, requirements),
            None => ("default", &self.default),
        }
    }
}

/// The scopes that an image is in, the most specific first.
fn scopes(reference: &Reference) -> Vec<String> {
    let repository = reference.repository();
    let mut scopes = Vec::new();
    scopes.extend(reference.digest().map(|digest| format!("{repository}@{digest}")));
    scopes.extend(reference.tag().map(|tag| format!("{repository}:{tag}")));
    let mut part = repository.as_str();
    loop {
        scopes.push(part.to_owned());
        match part.rfind('/') {
            Some(slash) => part = &part[..slash],
            None => break,
        }
    }
    let mut host = reference.domain();
    while let Some((_, parent)) = host.split_once('.') {
        scopes.push(format!("*.{parent}"));
        host = parent;
    }
    scopes.push(String::new());
    scopes
}

fn requirements(scope: &str, raw: Vec<RawRequirement>) -> Result<Vec<Requirement>, serde_json::Error> {
    if raw.is_empty() {
        // It would accept everything without saying so.
        return Err(serde::de::Error::custom(format!("{scope:?} has no requirement")));
    }
    raw.into_iter().map(|raw| requirement(scope, raw)).collect()
}

fn requirement(scope: &str, raw: RawRequirement) -> Result<Requirement, serde_json::Error> {
    let raw = match raw {
        RawRequirement::InsecureAcceptAnything => return Ok(Requirement::Accept),
        RawRequirement::Reject => return Ok(Requirement::Reject),
        RawRequirement::SignedBy(_) => return Ok(Requirement::Unsupported("a GPG signature (signedBy)")),
        RawRequirement::SigstoreSigned(raw) => *raw,
    };
    if raw.fulcio.is_some() || raw.pki.is_some() {
        return Ok(Requirement::Unsupported("a signature by certificate (fulcio, pki)"));
    }
    let rekor = [
        raw.rekor_public_key_path,
        raw.rekor_public_key_paths,
        raw.rekor_public_key_data,
        raw.rekor_public_key_datas,
    ];
    if rekor.iter().any(Option::is_some) {
        return Ok(Requirement::Unsupported("an entry in a transparency log (rekor)"));
    }
    let paths = raw.key_path.into_iter().chain(raw.key_paths).map(Source::Path);
    let datas = raw.key_data.into_iter().chain(raw.key_datas).map(Source::Data);
    let keys: Vec<Source> = paths.chain(datas).collect();
    if keys.is_empty() {
        let text = format!("{scope:?} demands a signature and has no keyPath and no keyData");
        return Err(serde::de::Error::custom(text));
    }
    let identity = raw.signed_identity.unwrap_or(Identity::MatchRepoDigestOrExact);
    Ok(Requirement::Signed(Signed { scope: scope.to_owned(), keys, identity }))
}

impl Signed<Source> {
    /// Reads the keys.
    pub(super) fn open(&self, scope: &str) -> Result<Signed, Error> {
        let malformed = |what: String| Error::Policy {
            scope: scope.to_owned(),
            reason: format!("{what} is no ECDSA P-256 public key in PEM"),
        };
        let key = |source: &Source| match source {
            Source::Path(path) => {
                let pem = read(path).map_err(|source| Error::Read { path: path.clone(), source })?;
                Key::from_pem(&pem).ok_or_else(|| malformed(path.display().to_string()))
            }
            Source::Data(data) => {
                let pem = STANDARD.decode(data).ok();
                pem.and_then(|pem| Key::from_pem(&pem)).ok_or_else(|| malformed("keyData".to_owned()))
            }
        };
        let keys = self.keys.iter().map(key).collect::<Result<_, _>>()?;
        Ok(Signed { scope: self.scope.clone(), keys, identity: self.identity.clone() })
    }
}

impl Key {
    pub(super) fn from_pem(pem: &[u8]) -> Option<Key> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).ok()?;
        let point = der.as_ref().strip_prefix(&P256)?;
        (point.len() == 65 && point[0] == 4).then(|| Key(point.to_vec()))
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.0).verify(message, signature).is_ok()
    }
}

impl Identity {
    /// Whether an image that was signed under `signed` may be used under this name.
    pub(super) fn accepts(&self, signed: &str, reference: &Reference) -> bool {
        // A name with neither tag nor digest is not one with the default tag: whoever signed it left that open.
        let last = signed.rsplit('/').next().unwrap_or_default();
        let name_only = !last.contains([':', '@']);
        let Ok(parsed) = signed.parse::<Reference>() else { return false };
        let exact = |parsed: &Reference, wanted: &str| !name_only && parsed.to_string() == wanted;
        let digest_or_exact = |wanted: &str, repository: &str| match reference.digest() {
            Some(_) if reference.tag().is_none() => !name_only && parsed.repository() == repository,
            _ => exact(&parsed, wanted),
        };
        match self {
            Identity::MatchExact => exact(&parsed, &reference.to_string()),
            Identity::MatchRepoDigestOrExact => {
                digest_or_exact(&reference.to_string(), &reference.repository())
            }
            Identity::MatchRepository => parsed.repository() == reference.repository(),
            Identity::ExactReference { docker_reference } => {
                docker_reference.parse::<Reference>().is_ok_and(|wanted| exact(&parsed, &wanted.to_string()))
            }
            Identity::ExactRepository { docker_repository } => docker_repository
                .parse::<Reference>()
                .is_ok_and(|wanted| parsed.repository() == wanted.repository()),
            Identity::Remap { prefix, signed_prefix } => {
                let remap = |name: String| match name.strip_prefix(prefix.as_str()) {
                    Some(rest) if rest.is_empty() || rest.starts_with(['/', ':', '@']) => {
                        format!("{signed_prefix}{rest}")
                    }
                    _ => name,
                };
                digest_or_exact(&remap(reference.to_string()), &remap(reference.repository()))
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other("is larger than 1 MiB"));
    }
    Ok(bytes)
}
