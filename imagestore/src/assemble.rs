//! Assembly: an image from its manifest, its configuration and blobs that are in the store.
//!
//! This is what loading an archive, committing a container and building have in common with the end of a pull: layers
//! are unpacked where they are not yet, documents are stored, and the record that names all of it is written last.

use std::sync::Arc;

use oci_spec::image::ImageConfiguration;

use crate::{
    Digest, Image, Reference,
    image::{Layer, NOTHING, chains, created},
    manifest::{self, Manifest},
    pull::{self, Allowance, Error},
    store::Inner,
};

/// Enters the image of these two documents under these names, or under none. Everything that the manifest names is
/// in the store and held by the caller's lease.
pub(crate) fn assemble(
    store: &Arc<Inner>,
    manifest: &[u8],
    config: &[u8],
    names: &[Reference],
) -> Result<Arc<Image>, Error> {
    assemble_within(store, (manifest, config), names, None)
}

/// The same, where the layers may swell to no more than is allowed.
pub(crate) fn assemble_within(
    store: &Arc<Inner>,
    (manifest, config): (&[u8], &[u8]),
    names: &[Reference],
    allowance: Option<&Allowance>,
) -> Result<Arc<Image>, Error> {
    let (digest, id) = (Digest::of(manifest), Digest::of(config));
    let described = |source| Error::Manifest { digest: digest.clone(), source };
    let parsed: ImageConfiguration =
        serde_json::from_slice(config).map_err(|source| Error::Config { digest: id.clone(), source })?;
    let layers = match manifest::parse(manifest, None).map_err(described)? {
        manifest::Document::Manifest(manifest) => layers(&manifest, &parsed).map_err(described)?,
        manifest::Document::Index(_) => return Err(described(manifest::Error::Nested)),
    };
    let held = layers.iter().flat_map(Layer::names).chain([digest.clone(), id.clone()]);
    let held = held.chain([NOTHING.digest().clone()]).collect();
    let _lease = store.leases.take(held);
    store.content.put(&digest, manifest)?;
    store.content.put(&id, config)?;
    let mut image = Image {
        size: 0,
        id,
        manifest: digest,
        repo_tags: Vec::new(),
        repo_digests: Vec::new(),
        created: created(&parsed),
        config: parsed,
        layers,
        pinned: false,
        tagged_at: None,
    };
    match allowance {
        Some(allowance) => {
            pull::restore_within(&store.content, &store.snapshots, &image.layers, allowance)?;
        }
        None => pull::restore(&store.content, &store.snapshots, &image.layers)?,
    }
    store.settle_later();
    let usage = image.layers.iter().filter_map(|layer| store.snapshots.layer_usage(&layer.chain_id));
    image.size = config.len() as u64 + usage.map(|usage| usage.bytes).sum::<u64>();
    Ok(store.catalog.adopt(image, names)?)
}

fn layers(manifest: &Manifest, config: &ImageConfiguration) -> Result<Vec<Layer>, manifest::Error> {
    let diff_ids = manifest::diff_ids(manifest, config)?;
    let layers = manifest.layers.iter().zip(chains(&diff_ids)).zip(diff_ids);
    let layer = |((blob, chain_id), diff_id): ((&manifest::Descriptor, _), _)| Layer {
        digest: blob.digest.clone(),
        diff_id,
        chain_id,
        size: blob.size,
    };
    Ok(layers.map(layer).collect())
}
