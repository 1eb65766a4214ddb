//! History: how an image came to be, step by step, as its configuration tells it.
//!
//! Steps and layers are matched in order: a step that is not marked empty made the next layer. What the
//! configuration says is repeated and not believed: a history that does not fit the layers is shown as far as it goes,
//! and layers that no step accounts for are shown without one.

use std::sync::Arc;

use oci_spec::image::History;

use crate::{Digest, Image, Snapshots, image::instant};

/// One step in the making of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The image that this step completed, if it is in the store.
    pub image: Option<Digest>,
    /// The names of that image.
    pub tags: Vec<String>,
    /// Nanoseconds since 1970, if it is told.
    pub created: Option<i64>,
    /// The command that made it.
    pub created_by: String,
    /// What was noted with it.
    pub comment: String,
    /// Bytes of the layer that it made; 0 without one.
    pub size: u64,
}

/// The steps of an image, the newest first.
pub(crate) fn steps(image: &Image, images: &[Arc<Image>], snapshots: &Snapshots) -> Vec<Step> {
    let told: &[History] = history(image);
    let mut layers = image.layers.iter();
    let mut size = || {
        layers.next().and_then(|layer| snapshots.layer_usage(&layer.chain_id)).map_or(0, |usage| usage.bytes)
    };
    let mut steps: Vec<Step> = told
        .iter()
        .enumerate()
        .map(|(at, entry)| {
            let made = images.iter().find(|other| is_prefix(other, image, at + 1));
            Step {
                image: made.map(|made| made.id.clone()),
                tags: made.map(|made| made.repo_tags.clone()).unwrap_or_default(),
                created: entry.created().as_deref().and_then(instant),
                created_by: entry.created_by().clone().unwrap_or_default(),
                comment: entry.comment().clone().unwrap_or_default(),
                size: if entry.empty_layer().unwrap_or(false) { 0 } else { size() },
            }
        })
        .collect();
    let untold = image.layers.len().saturating_sub(made_layers(told));
    steps.extend((0..untold).map(|_| Step { size: size(), ..Step::default() }));
    // Whatever else is known, the last step made the image itself.
    if let Some(last) = steps.last_mut() {
        last.image = Some(image.id.clone());
        last.tags.clone_from(&image.repo_tags);
    }
    steps.reverse();
    steps
}

/// How many layers these steps made.
pub(crate) fn made_layers(history: &[History]) -> usize {
    history.iter().filter(|entry| !entry.empty_layer().unwrap_or(false)).count()
}

fn history(image: &Image) -> &[History] {
    image.config.history().as_deref().unwrap_or_default()
}

/// Whether `image` after its first `steps` was `other`.
fn is_prefix(other: &Image, image: &Image, steps: usize) -> bool {
    let (base, whole) = (history(other), history(image));
    base.len() == steps
        && whole[..steps] == *base
        && other.layers.len() == made_layers(base)
        && image.layers.len() >= other.layers.len()
        && other.layers.iter().zip(&image.layers).all(|(a, b)| a.diff_id == b.diff_id)
}
