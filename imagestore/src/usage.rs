//! Disk usage: what each image takes, alone and together with others.
//!
//! Counted from the records of layers and the sizes of blobs, never by looking at files: the cost grows with the
//! number of layers only. What an image has alone is what removing it gives back.

use std::{collections::HashMap, sync::Arc};

use crate::{Digest, Image, Snapshots, content::Content, snapshot::Usage};

/// What one image takes.
#[derive(Clone, Debug)]
pub struct ImageUsage {
    /// The image.
    pub image: Arc<Image>,
    /// Layers and blobs that another image has too.
    pub shared: Usage,
    /// Layers and blobs that no other image has.
    pub unique: Usage,
}

/// What each of these images takes: unpacked layers, and blobs as they came from a registry.
pub(crate) fn of_images(
    images: Vec<Arc<Image>>,
    snapshots: &Snapshots,
    content: &Content,
) -> Vec<ImageUsage> {
    let mut users: HashMap<Digest, usize> = HashMap::new();
    let parts: Vec<HashMap<Digest, Usage>> =
        images.iter().map(|image| parts(image, snapshots, content)).collect();
    for part in parts.iter().flat_map(HashMap::keys) {
        *users.entry(part.clone()).or_default() += 1;
    }
    let of_image = |(image, parts): (Arc<Image>, HashMap<Digest, Usage>)| {
        let (mut shared, mut unique) = (Usage::default(), Usage::default());
        for (name, usage) in parts {
            let sum = if users[&name] > 1 { &mut shared } else { &mut unique };
            sum.bytes += usage.bytes;
            sum.inodes += usage.inodes;
        }
        ImageUsage { image, shared, unique }
    };
    images.into_iter().zip(parts).map(of_image).collect()
}

/// What these images take together, what they share counted once.
pub(crate) fn of_all(images: &[Arc<Image>], snapshots: &Snapshots, content: &Content) -> Usage {
    let parts: HashMap<Digest, Usage> =
        images.iter().flat_map(|image| parts(image, snapshots, content)).collect();
    parts.values().fold(Usage::default(), |sum, part| Usage {
        bytes: sum.bytes + part.bytes,
        inodes: sum.inodes + part.inodes,
    })
}

/// Everything that an image is made of, by its name. A layer that is stored uncompressed has the digest of its
/// lowest chain, so names of layers are told apart from those of blobs.
fn parts(image: &Image, snapshots: &Snapshots, content: &Content) -> HashMap<Digest, Usage> {
    let layers = image.layers.iter().filter_map(|layer| {
        let name = Digest::of(format!("layer {}", layer.chain_id.digest()).as_bytes());
        Some((name, snapshots.layer_usage(&layer.chain_id)?))
    });
    let blobs = image.blobs().filter_map(|digest| {
        let bytes = content.size(digest)?;
        Some((digest.clone(), Usage { bytes, inodes: 1 }))
    });
    layers.chain(blobs).collect()
}
