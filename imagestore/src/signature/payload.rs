//! What a signature is about: the simple signing document, as cosign writes it.

use serde::Deserialize;

use crate::Digest;

const TYPE: &str = "cosign container image signature";

/// A statement that somebody signed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Payload {
    /// The digest of the image's manifest or index.
    pub(crate) image: Digest,
    /// The name that it was signed under.
    pub(crate) reference: String,
}

// Nothing critical is passed over: it may change what was meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    critical: Critical,
    #[serde(default)]
    #[expect(dead_code, reason = "may be there, and is nobody's concern")]
    optional: serde::de::IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: Identity,
    image: Image,
    r#type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: Digest,
}

impl Payload {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Payload, serde_json::Error> {
        let Document { critical, .. } = serde_json::from_slice(bytes)?;
        if critical.r#type != TYPE {
            return Err(serde::de::Error::custom("is not the signature of an image"));
        }
        Ok(Payload { image: critical.image.digest, reference: critical.identity.reference })
    }
}
