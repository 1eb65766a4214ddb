//! What cannot be beaten by much: the layers of an image, each inflated by pigz into tar, all at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A layer's blob.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

/// The layers of the only image of a layout.
pub(crate) fn layers(layout: &Path) -> Result<Vec<Layer>> {
    let read = |path: PathBuf| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    let blob = |descriptor: &Value| {
        layout.join("blobs").join(descriptor["digest"].as_str().unwrap_or_default().replace(':', "/"))
    };
    let manifest = read(blob(&read(layout.join("index.json"))?["manifests"][0]))?;
    let layers = manifest["layers"].as_array().context("a manifest without layers")?;
    let layer = |layer| Layer { path: blob(layer), bytes: layer["size"].as_u64().unwrap_or_default() };
    Ok(layers.iter().map(layer).collect())
}

/// On the file system of the stores.
const BASE: &str = "/tmp/sp-floor";

/// Unpacks all layers side by side.
pub(crate) fn unpack(layers: &[Layer]) -> Result<()> {
    let mut pairs: Vec<[Child; 2]> = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let target = Path::new(BASE).join(number.to_string());
        fs::create_dir_all(&target)?;
        let mut pigz = Command::new("pigz");
        pigz.arg("-dc").stdin(fs::File::open(&layer.path)?).stdout(Stdio::piped());
        let mut pigz = pigz.spawn().context("start pigz: apt-get install pigz")?;
        let tar = pigz.stdout.take().context("a pipe")?;
        let tar = Command::new("tar").arg("-xC").arg(&target).stdin(tar).spawn().context("start tar")?;
        pairs.push([pigz, tar]);
    }
    for child in pairs.iter_mut().flatten() {
        ensure!(child.wait()?.success(), "pigz or tar failed");
    }
    Ok(())
}

/// Removes what was unpacked.
pub(crate) fn clear() -> Result<()> {
    Ok(fs::remove_dir_all(BASE)?)
}
