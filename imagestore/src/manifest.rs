//! Manifests: what a registry says an image is made of.
//!
//! Parsing is strict where two readers could come to different conclusions: a document is an index or a
//! manifest and never both, every digest is well formed, and there are limits on how much there is. Foreign
//! URLs in a descriptor are not even read. Nothing here touches the network.

use std::io::Read;

use serde::Deserialize;

use crate::{
    Digest, Kind,
    content::{self, Content},
};

/// The most a manifest, an index or a configuration may have.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// The kernel stacks no more than this in one overlay.
const MAX_LAYERS: usize = 500;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYERS: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];
/// What types of layers begin with whose bytes are not the registry's to give.
const FOREIGN: [&str; 2] =
    ["application/vnd.oci.image.layer.nondistributable.", "application/vnd.docker.image.rootfs.foreign."];

/// What is wrong with a manifest, an index or a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is not JSON of the right shape.
    #[error("it does not parse")]
    Parse {
        /// Where and why.
        #[from]
        source: serde_json::Error,
    },
    /// It is of the time before content was addressed by digest.
    #[error("it is a schema 1 manifest, which is not supported: push the image again with a current tool")]
    Schema1,
    /// It is neither an image manifest nor an index of them.
    #[error("media type {media_type:?} is not that of an image")]
    MediaType {
        /// As found.
        media_type: String,
    },
    /// A layer is on a server of somebody else's.
    #[error(
        "layer {digest} is foreign: its bytes come from wherever the image says and not from the registry, which \
         is not supported; push the image again with all its layers"
    )]
    Foreign {
        /// The layer.
        digest: Digest,
    },
    /// It could be read in two ways.
    #[error("it is ambiguous: {reason}")]
    Ambiguous {
        /// Which two.
        reason: &'static str,
    },
    /// There is no image for this node's kind of machine.
    #[error("it has no image for {platform}; it has {found}")]
    Platform {
        /// This node.
        platform: String,
        /// What there is.
        found: String,
    },
    /// Indexes that point at indexes.
    #[error("it is an index in an index in an index")]
    Nested,
    /// The number of layers is out of bounds.
    #[error("it has {count} layers; up to {MAX_LAYERS} are possible")]
    Layers {
        /// How many.
        count: usize,
    },
    /// The configuration and the manifest do not belong together.
    #[error("it has {layers} layers and its configuration names {diff_ids}")]
    Mismatch {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// The configuration names a layer by something that is not a digest.
    #[error("its configuration names a layer badly")]
    DiffId {
        /// How.
        #[from]
        source: crate::digest::ParseError,
    },
    /// The configuration is larger than allowed.
    #[error("its configuration has {size} bytes; {MAX_DOCUMENT} are allowed")]
    ConfigSize {
        /// As announced.
        size: u64,
    },
}

impl Error {
    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Platform { .. } => Kind::NotFound,
            Error::Layers { .. } | Error::ConfigSize { .. } => Kind::ResourceExhausted,
            _ => Kind::InvalidArgument,
        }
    }
}

/// A pointer to content. `urls` are left out on purpose: layers come from the registry that was asked.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    platform: Option<Platform>,
}

/// A kind of machine.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Deserialize)]
pub struct Platform {
    /// As Go calls it: `linux`.
    pub os: String,
    /// As Go calls it: `amd64`, `arm64`.
    pub architecture: String,
    /// Such as `v8` of `arm64`.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Default for Platform {
    fn default() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        let variant = (architecture == "arm").then(|| "v7".to_owned());
        Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), variant }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl Platform {
    /// How well an image for `other` runs here: the higher the better, `None` not at all. What containerd's matcher
    /// takes, in its order.
    fn rank(&self, other: &Platform) -> Option<u32> {
        if self.os != other.os {
            return None;
        }
        // A machine runs what was made for its variant and for those before it: v7, v8, v8.2, v9.
        let mine = level(&self.architecture, self.variant.as_deref())?;
        let theirs = level(&other.architecture, other.variant.as_deref())?;
        match (self.architecture.as_str(), other.architecture.as_str()) {
            (own, other) if own == other => (theirs <= mine).then_some(OWN + theirs),
            // Most of these machines run programs of their predecessors too; better than nothing.
            ("amd64", "386") => Some(theirs),
            ("arm64", "arm") => (theirs <= 800).then_some(theirs),
            _ => None,
        }
    }

    /// Whether an image for `other` runs here.
    pub(crate) fn runs(&self, other: &Platform) -> bool {
        self.rank(other).is_some()
    }
}

/// What an image for the machine's own architecture ranks above all others by.
const OWN: u32 = 1_000_000;

/// `v8.2` is 802; without a variant an architecture has its usual one.
fn level(architecture: &str, variant: Option<&str>) -> Option<u32> {
    let usual = match architecture {
        "arm64" => 800,
        "arm" => 700,
        _ => 100,
    };
    let Some(text) = variant.filter(|text| !text.is_empty()) else { return Some(usual) };
    let text = text.strip_prefix('v').unwrap_or(text);
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    let (major, minor) = (major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?);
    (major < 1000 && minor < 100).then_some(major * 100 + minor)
}

/// An image's parts.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// What a registry may have under a name.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "schemaVersion", default)]
    schema_version: u32,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Reads a manifest or an index. `content_type` is what the registry called it.
pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Document, Error> {
    let raw: Raw = serde_json::from_slice(bytes)?;
    if raw.schema_version == 1 || raw.fs_layers.is_some() {
        return Err(Error::Schema1);
    }
    // `application/json; charset=utf-8` and the like say nothing.
    let said = content_type
        .map(|text| text.split(';').next().unwrap_or_default().trim())
        .filter(|text| is_image(text) || is_index(text));
    let media_type = raw.media_type.as_deref().filter(|text| !text.is_empty());
    if let (Some(said), Some(written)) = (said, media_type)
        && is_index(said) != is_index(written)
    {
        return Err(Error::Ambiguous { reason: "the registry calls it one thing and it itself another" });
    }
    let index = match media_type.or(said) {
        Some(text) if is_index(text) => true,
        Some(text) if is_image(text) => false,
        Some(text) => return Err(Error::MediaType { media_type: text.chars().take(80).collect() }),
        None => raw.manifests.is_some(),
    };
    match (index, raw.config, raw.layers, raw.manifests) {
        (true, None, None, Some(manifests)) => Ok(Document::Index(manifests)),
        (false, Some(config), Some(layers), None) => manifest(config, layers).map(Document::Manifest),
        (_, _, _, None) => Err(Error::Ambiguous { reason: "it lacks what its type needs" }),
        _ => Err(Error::Ambiguous { reason: "it has the parts of a manifest and of an index" }),
    }
}

fn is_image(media_type: &str) -> bool {
    [OCI_MANIFEST, DOCKER_MANIFEST].contains(&media_type)
}

fn is_index(media_type: &str) -> bool {
    [OCI_INDEX, DOCKER_INDEX].contains(&media_type)
}

fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> Result<Manifest, Error> {
    if layers.len() > MAX_LAYERS {
        return Err(Error::Layers { count: layers.len() });
    }
    if config.size > MAX_DOCUMENT {
        return Err(Error::ConfigSize { size: config.size });
    }
    let known = |descriptor: &Descriptor, types: &[&str]| match descriptor.media_type.as_str() {
        media_type if types.contains(&media_type) => Ok(()),
        media_type => Err(Error::MediaType { media_type: media_type.chars().take(80).collect() }),
    };
    known(&config, &[OCI_CONFIG, DOCKER_CONFIG])?;
    for layer in &layers {
        if FOREIGN.iter().any(|foreign| layer.media_type.starts_with(foreign)) {
            return Err(Error::Foreign { digest: layer.digest.clone() });
        }
        known(layer, &LAYERS)?;
    }
    Ok(Manifest { config, layers })
}

/// The entry of an index that suits this machine best; the first of equals, as every client has it.
pub(crate) fn select<'a>(index: &'a [Descriptor], platform: &Platform) -> Result<&'a Descriptor, Error> {
    let mut best: Option<(u32, &Descriptor)> = None;
    for entry in index {
        // An entry that says nothing of platforms can only be meant for all.
        let rank = entry.platform.as_ref().map_or(Some(0), |other| platform.rank(other));
        if let Some(rank) = rank
            && best.is_none_or(|(highest, _)| rank > highest)
        {
            best = Some((rank, entry));
        }
    }
    best.map(|(_, entry)| entry).ok_or_else(|| {
        let found = index.iter().filter_map(|entry| entry.platform.as_ref()).take(20);
        let found: Vec<String> = found.map(Platform::to_string).collect();
        Error::Platform { platform: platform.to_string(), found: found.join(", ") }
    })
}

/// OCI's word for a type of layers that may be Docker's; gzip when it is none of either.
pub(crate) fn oci_layer_type(media_type: &str) -> &'static str {
    match LAYERS.iter().position(|known| *known == media_type) {
        // Docker's words stand in the same order after OCI's.
        Some(at) => LAYERS[at % 3],
        None => LAYERS[1],
    }
}

/// What OCI calls a layer's blob, by the bytes that it begins with.
pub(crate) fn layer_type(content: &Content, digest: &Digest) -> Result<&'static str, content::Error> {
    let mut magic = Vec::new();
    content
        .reader(digest)?
        .take(4)
        .read_to_end(&mut magic)
        .map_err(|source| content::Error::Read { digest: digest.clone(), source })?;
    Ok(match magic[..] {
        [0x1f, 0x8b, ..] => LAYERS[1],
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => LAYERS[2],
        _ => LAYERS[0],
    })
}

/// The layers' uncompressed digests, as many as the manifest has layers.
pub(crate) fn diff_ids(
    manifest: &Manifest,
    config: &oci_spec::image::ImageConfiguration,
) -> Result<Vec<Digest>, Error> {
    let texts = config.rootfs().diff_ids();
    if texts.len() != manifest.layers.len() {
        return Err(Error::Mismatch { layers: manifest.layers.len(), diff_ids: texts.len() });
    }
    Ok(texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": DIGEST, "size": 7, "urls": ["http://elsewhere/"]})
    }

    fn manifest_of(layers: usize) -> Value {
        json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG),
            "layers": vec![descriptor(LAYERS[1]); layers],
        })
    }

    fn read(document: &Value, content_type: Option<&str>) -> Result<Document, Error> {
        parse(document.to_string().as_bytes(), content_type)
    }

    fn index_of(platforms: &[(&str, &str, Option<&str>)]) -> Vec<Descriptor> {
        let manifests: Vec<Value> = platforms
            .iter()
            .enumerate()
            .map(|(size, (os, architecture, variant))| {
                json!({"mediaType": OCI_MANIFEST, "digest": DIGEST, "size": size,
                    "platform": {"os": os, "architecture": architecture, "variant": variant}})
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        match read(&index, None).unwrap() {
            Document::Index(entries) => entries,
            Document::Manifest(_) => panic!("an index was read as a manifest"),
        }
    }

    #[test]
    fn manifests_of_both_families_are_read() {
        assert!(matches!(read(&manifest_of(3), None).unwrap(), Document::Manifest(m) if m.layers.len() == 3));
        let docker = json!({
            "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": descriptor(DOCKER_CONFIG),
            "layers": [descriptor(LAYERS[3]), descriptor(LAYERS[4]), descriptor(LAYERS[5])],
        });
        assert!(matches!(read(&docker, Some(DOCKER_MANIFEST)).unwrap(), Document::Manifest(_)));
        assert!(matches!(read(&manifest_of(0), None).unwrap(), Document::Manifest(m) if m.layers.is_empty()));
        let mut untyped = manifest_of(1);
        untyped.as_object_mut().unwrap().remove("mediaType");
        assert!(matches!(read(&untyped, Some("text/plain")).unwrap(), Document::Manifest(_)));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let mut both = manifest_of(1);
        both["manifests"] = json!([descriptor(OCI_MANIFEST)]);
        assert!(matches!(read(&both, None), Err(Error::Ambiguous { .. })));
        assert!(matches!(read(&manifest_of(1), Some(OCI_INDEX)), Err(Error::Ambiguous { .. })));
        both["mediaType"] = json!(OCI_INDEX);
        assert!(matches!(read(&both, None), Err(Error::Ambiguous { .. })));
        let neither = json!({"schemaVersion": 2});
        assert!(matches!(read(&neither, None), Err(Error::Ambiguous { .. })));
    }

    #[test]
    fn bad_documents_have_errors_of_their_own() {
        let mut bad_digest = manifest_of(1);
        bad_digest["layers"][0]["digest"] = json!("sha256:../x");
        assert!(matches!(read(&bad_digest, None), Err(Error::Parse { .. })));
        let schema1 = json!({"schemaVersion": 1, "fsLayers": [], "history": []});
        assert!(matches!(read(&schema1, None), Err(Error::Schema1)));
        let mut chart = manifest_of(1);
        chart["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
        assert!(matches!(read(&chart, None), Err(Error::MediaType { .. })));
        for foreign in [
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        ] {
            let mut image = manifest_of(2);
            image["layers"][1]["mediaType"] = json!(foreign);
            assert!(matches!(read(&image, None), Err(Error::Foreign { .. })), "{foreign}");
        }
        assert!(matches!(read(&manifest_of(501), None), Err(Error::Layers { count: 501 })));
        assert!(matches!(parse(b"<html>", None), Err(Error::Parse { .. })));
    }

    #[test]
    fn the_platform_decides_and_not_the_order() {
        let arm = Platform { os: "linux".into(), architecture: "arm".into(), variant: Some("v7".into()) };
        let amd = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        let arm64 = Platform { os: "linux".into(), architecture: "arm64".into(), variant: None };
        let index = index_of(&[
            ("unknown", "unknown", None),
            ("windows", "amd64", None),
            ("linux", "arm", Some("v6")),
            ("linux", "arm", Some("v7")),
            ("linux", "amd64", Some("v3")),
            ("linux", "amd64", None),
            ("linux", "arm64", Some("v8")),
        ]);
        assert_eq!(select(&index, &arm).unwrap().size, 3);
        assert_eq!(select(&index, &amd).unwrap().size, 5);
        assert_eq!(select(&index, &arm64).unwrap().size, 6);
        let newer = Platform { variant: Some("v8.2".into()), ..arm64.clone() };
        let variants =
            [("linux", "arm64", Some("v9")), ("linux", "arm64", Some("v8.1")), ("linux", "arm64", None)];
        assert_eq!(select(&index_of(&variants), &newer).unwrap().size, 1);
        assert_eq!(select(&index_of(&variants), &arm64).unwrap().size, 2);
        assert_eq!(select(&index_of(&[("linux", "arm", None)]), &arm).unwrap().size, 0);
        // Levels of amd64: the highest that runs here, and nothing above it.
        let levels = index_of(&[
            ("linux", "amd64", Some("v4")),
            ("linux", "amd64", Some("v1")),
            ("linux", "amd64", Some("v2")),
            ("linux", "386", None),
        ]);
        let third = Platform { variant: Some("v3".into()), ..amd.clone() };
        assert_eq!((select(&levels, &third).unwrap().size, select(&levels, &amd).unwrap().size), (2, 1));
        // What a machine's predecessors ran, if there is nothing better.
        assert_eq!(select(&levels[3..], &amd).unwrap().size, 3);
        let arms = index_of(&[
            ("linux", "arm", Some("v6")),
            ("linux", "arm", Some("v7")),
            ("linux", "arm", Some("v9")),
            ("linux", "386", None),
        ]);
        assert_eq!(select(&arms, &arm64).unwrap().size, 1);
        assert!(select(&arms[3..], &arm64).is_err());
        assert!(select(&index_of(&[("linux", "arm64", None)]), &arm).is_err());
        let none = select(&index[..2], &amd).unwrap_err();
        assert_eq!(
            none.to_string(),
            "it has no image for linux/amd64; it has unknown/unknown, windows/amd64"
        );
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            let _ = parse(text.as_bytes(), None);
        }

        #[test]
        fn parsing_a_damaged_manifest_never_panics(at in 0usize..400, byte in any::<u8>()) {
            let mut bytes = manifest_of(2).to_string().into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = parse(&bytes, Some(OCI_MANIFEST));
        }
    }
}
