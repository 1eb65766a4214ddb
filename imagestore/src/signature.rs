//! Signatures: whether an image may be used, by the policy of this node.
//!
//! The policy is asked twice: before the registry is, for what no signature could help, and when the digest is known,
//! before any layer is fetched. A signature is cosign's: attached to the image in its repository under the tag
//! `sha256-HEX.sig`, ECDSA P-256 over a small document that names repository and digest. Without a policy file
//! everything may be used; with one that cannot be read, nothing.

mod error;
mod payload;
mod policy;

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::{
    Digest, Kind, Reference,
    registry::{self, Repository},
};

pub(crate) use error::{Error, Refusal};
pub(crate) use payload::Payload;
pub(crate) use policy::Policy;
use policy::{Key, Requirement, Signed};

/// Whoever signs an image adds to the list; nobody signs it this often.
const MAX_SIGNATURES: usize = 32;
const MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";

/// What the policy asks of one image.
#[derive(Debug)]
pub(crate) struct Demands {
    signed: Vec<Signed>,
}

/// A list of signatures, which has the form of an image.
#[derive(Deserialize)]
struct Attached {
    layers: Vec<Attachment>,
}

#[derive(Deserialize)]
struct Attachment {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: Digest,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

impl Policy {
    /// What is to be shown for an image of this name; an error if nothing will do.
    pub(crate) fn demands(&self, reference: &Reference) -> Result<Demands, Error> {
        let (scope, requirements) = self.for_image(reference);
        let refused = |refusal| Error::Refused { scope: scope.to_owned(), refusal };
        let mut signed = Vec::new();
        for requirement in requirements {
            match requirement {
                Requirement::Accept => {}
                Requirement::Reject => return Err(refused(Refusal::Rejected)),
                Requirement::Unsupported(what) => return Err(refused(Refusal::Unsupported { what })),
                Requirement::Signed(demand) => signed.push(demand.open(scope)?),
            }
        }
        Ok(Demands { signed })
    }
}

impl Demands {
    /// Checks the image at the first of these digests that is signed as demanded: an index vouches for what is in it.
    pub(crate) async fn check(
        &self,
        repository: &Repository,
        reference: &Reference,
        digests: &[&Digest],
    ) -> Result<(), Error> {
        if self.signed.is_empty() {
            return Ok(());
        }
        let mut found = Vec::new();
        for digest in digests {
            found.extend(
                signatures(repository, digest).await?.into_iter().map(|signature| (*digest, signature)),
            );
        }
        for demand in &self.signed {
            let mut refusal = Refusal::Unsigned;
            let accepted = found.iter().any(|(digest, signature)| {
                demand.accepts(signature, reference, digest).map_err(|why| refusal = why).is_ok()
            });
            if !accepted {
                return Err(Error::Refused { scope: demand.scope.clone(), refusal });
            }
        }
        Ok(())
    }
}

/// A document and what was made of it with somebody's key.
struct Signature {
    payload: Vec<u8>,
    bytes: Vec<u8>,
}

/// What is attached to an image.
async fn signatures(repository: &Repository, image: &Digest) -> Result<Vec<Signature>, Error> {
    let tag = format!("sha256-{}.sig", image.hex());
    let fetched = match repository.manifest(&tag).await {
        Ok(fetched) => fetched,
        Err(error) if error.kind() == Kind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for (blob, bytes) in
        attached(&fetched.bytes).map_err(|source| Error::List { image: image.clone(), source })?
    {
        match repository.small_blob(&blob).await {
            Ok(payload) => found.push(Signature { payload, bytes }),
            // One of many that is damaged says nothing about the others.
            Err(registry::Error::NotFound { .. } | registry::Error::Mismatch { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// Where the signed documents are, and their signatures.
pub(crate) fn attached(list: &[u8]) -> Result<Vec<(Digest, Vec<u8>)>, serde_json::Error> {
    let list: Attached = serde_json::from_slice(list)?;
    let signatures = list.layers.into_iter().filter(|layer| layer.media_type == MEDIA_TYPE);
    let signatures = signatures
        .filter_map(|layer| Some((layer.digest, STANDARD.decode(layer.annotations.get(ANNOTATION)?).ok()?)));
    Ok(signatures.take(MAX_SIGNATURES).collect())
}

impl Signed<Key> {
    /// Whether this signature is what is demanded of the image.
    fn accepts(&self, signature: &Signature, reference: &Reference, image: &Digest) -> Result<(), Refusal> {
        // The key first: until it fits, the document is a stranger's.
        if !self.keys.iter().any(|key| key.verifies(&signature.payload, &signature.bytes)) {
            return Err(Refusal::Key);
        }
        let payload = Payload::parse(&signature.payload).map_err(|_| Refusal::Payload)?;
        if payload.image != *image {
            return Err(Refusal::Image { signed: payload.image });
        }
        match self.identity.accepts(&payload.reference, reference) {
            true => Ok(()),
            false => Err(Refusal::Identity { signed: payload.reference }),
        }
    }
}

#[cfg(test)]
mod tests;
