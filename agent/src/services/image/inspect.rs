//! `InspectImage`: all that is known of an image, in the shape that docker taught people.

use sampan_imagestore::{Image, Reference};
use serde_json::{Map, Value, json};

use crate::{context::Context, error::Result};

pub(super) fn inspect(context: &Context, image: &Image) -> Result<Value> {
    let written = configuration(context, image)?;
    let text = |key: &str| written.get(key).and_then(Value::as_str).unwrap_or_default();
    let familiar = |names: &[String]| -> Vec<String> {
        let short = |name: &String| name.parse::<Reference>().map_or(name.clone(), |name| name.familiar());
        names.iter().map(short).collect()
    };
    let layers: Vec<&str> = image.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let blobs: Vec<Value> = image
        .layers
        .iter()
        .map(|layer| json!({ "Digest": layer.digest, "Size": layer.size, "ChainId": layer.chain_id }))
        .collect();
    let mut all = json!({
        "Id": image.id,
        "RepoTags": familiar(&image.repo_tags),
        "RepoDigests": familiar(&image.repo_digests),
        "Parent": "",
        "Comment": comment(&written),
        "Created": text("created"),
        "DockerVersion": text("docker_version"),
        "Author": text("author"),
        "Config": written.get("config").cloned().unwrap_or(Value::Null),
        "Architecture": text("architecture"),
        "Os": text("os"),
        "Size": image.size,
        "GraphDriver": graph_driver(context, image),
        "RootFS": { "Type": "layers", "Layers": layers },
        "Metadata": { "LastTagTime": image.tagged_at.map(super::super::time) },
        "ManifestDigest": image.manifest,
        "Pinned": image.pinned,
        "Blobs": blobs,
    });
    if !text("variant").is_empty() {
        all["Variant"] = text("variant").into();
    }
    Ok(all)
}

/// What was written, with members that only other tools know.
pub(crate) fn configuration(context: &Context, image: &Image) -> Result<Map<String, Value>> {
    let bytes = context.store.configuration(image)?;
    // It parsed when the image came.
    Ok(serde_json::from_slice(&bytes).unwrap_or_default())
}

/// Of the last step, as docker has it.
fn comment(written: &Map<String, Value>) -> &str {
    let last = written.get("history").and_then(Value::as_array).and_then(|steps| steps.last());
    last.and_then(|step| step.get("comment")).and_then(Value::as_str).unwrap_or_default()
}

/// The directories of the layers. An image is not mounted, so it has neither a merged nor a work directory.
fn graph_driver(context: &Context, image: &Image) -> Value {
    let layers = context.store.snapshots().layer_directories(image.chain_id()).unwrap_or_default();
    let mut layers = layers.iter().map(|path| path.display().to_string());
    let upper = layers.next();
    let lower: Vec<String> = layers.collect();
    let mut data = Map::new();
    if !lower.is_empty() {
        data.insert("LowerDir".into(), lower.join(":").into());
    }
    data.insert("UpperDir".into(), upper.into());
    json!({ "Name": "overlay2", "Data": data })
}
