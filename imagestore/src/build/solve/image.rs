//! The image of a build: configuration, history and manifest, the same for the same steps.
//!
//! Nothing in it is of the moment at which it is put together. A step has the time at which it really ran, however long ago;
//! one that changes the configuration only has that of the step before it; the image has that of its last step.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::{
    Digest, Image, Platform, Reference,
    assemble::assemble,
    build::{Config, Error},
    commit,
    history::made_layers,
    image::{Layer, instant},
    manifest::{self, MAX_DOCUMENT, OCI_CONFIG, OCI_MANIFEST},
    store::Inner,
};

/// The `comment` of every entry of the history.
const COMMENT: &str = "sampan.dockerfile.v1";

/// What was done in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// `created_by`.
    pub(super) by: String,
    /// In nanoseconds since 1970; none for what takes no time.
    pub(super) created: Option<i64>,
    /// Whether it made a layer.
    pub(super) layer: bool,
}

/// All that goes into an image.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) base: Option<Arc<Image>>,
    pub(super) layers: Vec<Layer>,
    /// Of the steps on top of the base.
    pub(super) history: Vec<Entry>,
    pub(super) config: Config,
    pub(super) platform: Platform,
    pub(super) author: String,
    /// The time that all of it gets, in seconds since 1970.
    pub(super) epoch: Option<i64>,
}

/// The configuration of an image as it was written.
pub(super) fn document(store: &Inner, image: &Image) -> Result<Map<String, Value>, Error> {
    let bytes = store.content.read(&image.id, MAX_DOCUMENT)?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Error::Invalid(format!("the configuration of image {} does not parse: {error}", image.id))
    })
}

impl Recipe {
    /// Enters the image under these names. One that is here already, with its names, costs no write.
    pub(super) fn make(&self, store: &Arc<Inner>, names: &[Reference]) -> Result<Arc<Image>, Error> {
        let config = self.configuration(store)?;
        let id = Digest::of(&config);
        if let Some(image) = store.catalog.get(&id) {
            let has = |name: &Reference| image.repo_tags.contains(&name.to_string());
            let whole = image.layers.iter().all(|layer| store.snapshots.contains(&layer.chain_id));
            if whole && names.iter().all(has) {
                return Ok(image);
            }
        }
        let manifest = self.manifest(store, &config)?;
        assemble(store, &manifest, &config, names).map_err(|error| commit::Error::Image(error).into())
    }

    fn configuration(&self, store: &Inner) -> Result<Vec<u8>, Error> {
        let mut document = match &self.base {
            Some(base) => document(store, base)?,
            None => Map::new(),
        };
        document.retain(|key, _| !commit::OF_A_CONTAINER.contains(&key.as_str()));
        let base_time = document.get("created").and_then(Value::as_str).and_then(instant);
        let mut history = document.get("history").and_then(Value::as_array).cloned().unwrap_or_default();
        if let Some(base) = &self.base {
            // Every layer has its step, or those after it would be taken for others'.
            let told = made_layers(base.config.history().as_deref().unwrap_or_default());
            history.extend((told..base.layers.len()).map(|_| json!({ "comment": "not told" })));
        }
        let first = self.history.iter().find_map(|entry| entry.created);
        let mut time = base_time.or(first).unwrap_or_default();
        for entry in &self.history {
            time = entry.created.unwrap_or(time);
            let shown = self.shown(time);
            let mut step = json!({ "created": shown, "created_by": entry.by, "comment": COMMENT });
            if !entry.layer {
                step["empty_layer"] = true.into();
            }
            history.push(step);
        }
        let Platform { os, architecture, variant } = &self.platform;
        document.insert("os".into(), os.as_str().into());
        document.insert("architecture".into(), architecture.as_str().into());
        if let Some(variant) = variant {
            document.insert("variant".into(), variant.as_str().into());
        }
        let diff_ids: Vec<&Digest> = self.layers.iter().map(|layer| &layer.diff_id).collect();
        document.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": diff_ids }));
        document.insert("history".into(), history.into());
        document.insert("created".into(), self.shown(time).into());
        let config = serde_json::to_value(&self.config).map_err(|error| Error::Invalid(error.to_string()))?;
        document.insert("config".into(), config);
        match self.author.as_str() {
            "" => document.remove("author"),
            author => document.insert("author".into(), author.into()),
        };
        Ok(Value::from(document).to_string().into_bytes())
    }

    fn shown(&self, time: i64) -> String {
        let time = self.epoch.map_or(time, |epoch| epoch.saturating_mul(1_000_000_000));
        jiff::Timestamp::from_nanosecond(time.into()).unwrap_or_default().to_string()
    }

    fn manifest(&self, store: &Inner, config: &[u8]) -> Result<Vec<u8>, Error> {
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let kind = manifest::layer_type(&store.content, &layer.digest)?;
            layers.push(json!({ "mediaType": kind, "digest": layer.digest, "size": layer.size }));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": OCI_CONFIG, "digest": Digest::of(config), "size": config.len() },
            "layers": layers,
        });
        Ok(manifest.to_string().into_bytes())
    }
}
