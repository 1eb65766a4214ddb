//! Images: what a manifest and its configuration amount to on this node.
//!
//! An [`Image`] is known by the digest of its configuration. Names come and go; everything else about it is fixed. One
//! without layers stands on an empty one that is in no manifest, so that every image has a chain to stand on.

use std::sync::LazyLock;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::{ChainId, Digest, Reference};

/// An image that is complete on this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// The digest of the configuration: what orchestrators call the image id.
    pub id: Digest,
    /// The manifest that was pulled last.
    pub manifest: Digest,
    /// Its names with tags, normalised.
    pub repo_tags: Vec<String>,
    /// Its names with digests, normalised; the digest is that of the manifest or index the name led to.
    pub repo_digests: Vec<String>,
    /// Bytes of the unpacked layers and the configuration.
    pub size: u64,
    /// Nanoseconds since 1970, if the configuration says so.
    pub created: Option<i64>,
    /// How to run it.
    pub config: ImageConfiguration,
    /// From the lowest to the uppermost.
    pub layers: Vec<Layer>,
    /// Whether removing unused images spares it.
    pub pinned: bool,
    /// When it last was given a name, in nanoseconds since 1970.
    #[serde(default)]
    pub tagged_at: Option<i64>,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The blob, compressed as the registry has it.
    pub digest: Digest,
    /// The uncompressed tar.
    pub diff_id: Digest,
    /// This layer with all under it.
    pub chain_id: ChainId,
    /// Bytes of the blob.
    pub size: u64,
}

/// A tar with nothing in it, and the chain that it is.
pub(crate) const EMPTY: [u8; 1024] = [0; 1024];
pub(crate) static NOTHING: LazyLock<ChainId> = LazyLock::new(|| ChainId::base(&Digest::of(&EMPTY)));

impl Layer {
    /// What to hold on to while it is being pulled.
    pub(crate) fn names(&self) -> [Digest; 2] {
        [self.digest.clone(), self.chain_id.digest().clone()]
    }
}

impl Image {
    /// The uppermost layer's chain: what a container's root stands on.
    pub fn chain_id(&self) -> &ChainId {
        self.layers.last().map_or(&NOTHING, |layer| &layer.chain_id)
    }

    /// All chains that have to be unpacked for it.
    pub(crate) fn chains(&self) -> impl Iterator<Item = &ChainId> {
        let nothing = self.layers.is_empty().then_some(&*NOTHING);
        self.layers.iter().map(|layer| &layer.chain_id).chain(nothing)
    }

    /// Everything in the content store that the image needs.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Digest> {
        [&self.id, &self.manifest].into_iter().chain(self.layers.iter().map(|layer| &layer.digest))
    }

    /// What to hold on to while it is being used: blobs and chains.
    pub(crate) fn names(&self) -> impl Iterator<Item = Digest> {
        self.blobs().cloned().chain(self.chains().map(|chain| chain.digest().clone()))
    }

    /// Takes on a name. `target` is what the registry that it was pulled from said the name is.
    pub(crate) fn add_name(&mut self, reference: &Reference, target: Option<&Digest>) {
        let add = |names: &mut Vec<String>, name: String| {
            if !names.contains(&name) {
                names.push(name);
                names.sort();
            }
        };
        if let Some(target) = target {
            add(&mut self.repo_digests, reference.with_digest(target).to_string());
        }
        // A name pinned to a digest says nothing about where the tag points now.
        if reference.digest().is_none() {
            add(&mut self.repo_tags, reference.to_string());
        }
    }
}

/// The time of an image's configuration, in nanoseconds since 1970.
pub(crate) fn created(config: &ImageConfiguration) -> Option<i64> {
    instant(config.created().as_ref()?)
}

/// A time of RFC 3339, in nanoseconds since 1970.
pub(crate) fn instant(text: &str) -> Option<i64> {
    let time: jiff::Timestamp = text.parse().ok()?;
    i64::try_from(time.as_nanosecond()).ok()
}

/// The chains of these layers, from the lowest up.
pub(crate) fn chains(diff_ids: &[Digest]) -> Vec<ChainId> {
    let mut chains: Vec<ChainId> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let chain = match chains.last() {
            Some(parent) => parent.child(diff_id),
            None => ChainId::base(diff_id),
        };
        chains.push(chain);
    }
    chains
}
