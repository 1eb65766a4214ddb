//! A list of many images: loaded from one archive, in which they share their only layer.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_cri::v1::ListImagesRequest;
use sampan_tests::Agent;
use serde_json::json;
use sha2::{Digest, Sha256};

/// How often the list is asked for.
const LISTS: usize = 50;

/// How long each list took its client, the first left out.
pub(crate) async fn times(agent: &Agent, images: usize) -> Result<Vec<Duration>> {
    eprintln!("a list of {images} images");
    let archive = agent.base().join("many.tar");
    write(File::create(&archive)?, images)?;
    agent.cli().ok(&["load", "-q", "-i", &archive.display().to_string()]);
    std::fs::remove_file(archive)?;
    let mut times = Vec::new();
    for round in 0..=LISTS {
        let mut client = agent.cri().images;
        let start = Instant::now();
        let listed = client.list_images(ListImagesRequest { filter: None }).await?.into_inner().images;
        if round > 0 {
            times.push(start.elapsed());
        }
        ensure!(listed.len() >= images, "{} of {images} images", listed.len());
    }
    Ok(times)
}

/// An OCI layout of so many images.
fn write(out: impl Write, images: usize) -> Result<()> {
    let mut tar = tar::Builder::new(out);
    let mut add = |path: &str, bytes: &[u8]| -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        Ok(tar.append_data(&mut header, path, bytes)?)
    };
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    layer.append_data(&mut header, "hello", &b"hello"[..])?;
    let layer = layer.into_inner()?;
    let mut blob = |bytes: &[u8]| -> Result<String> {
        let hex = hex::encode(Sha256::digest(bytes));
        add(&format!("blobs/sha256/{hex}"), bytes)?;
        Ok(format!("sha256:{hex}"))
    };
    let diff_id = blob(&layer)?;
    let mut entries = Vec::new();
    for number in 0..images {
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
            "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["/hello"], "Labels": {"number": number.to_string()}},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        });
        let config = config.to_string();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": blob(config.as_bytes())?, "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": diff_id, "size": layer.len()}],
        });
        let manifest = manifest.to_string();
        entries.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": blob(manifest.as_bytes())?, "size": manifest.len(),
            "annotations": {"io.containerd.image.name": format!("registry.example/team/app-{number}:1")},
        }));
    }
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    add("index.json", index.as_bytes())?;
    tar.finish()?;
    Ok(())
}
