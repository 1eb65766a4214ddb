//! Images made in memory, and a look at what became of them on the disk.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sampan_imagestore::{Digest, Image, Patience, Reference, Store, StoreOptions};
use serde_json::{Value, json};

use crate::server::{Registry, digest};

pub(crate) type Blob = Arc<[u8]>;

/// A layer with its two digests.
#[derive(Clone)]
pub(crate) struct TestLayer {
    pub(crate) blob: Blob,
    pub(crate) diff_id: String,
    pub(crate) media_type: &'static str,
}

pub(crate) struct TestImage {
    pub(crate) layers: Vec<TestLayer>,
    pub(crate) config: Blob,
    pub(crate) manifest: Blob,
}

/// A tar with these files.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        // Not by the crate's own means, which refuse what a test of refusals needs.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(tar: &[u8]) -> TestLayer {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(tar).unwrap();
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    TestLayer { blob: encoder.finish().unwrap().into(), diff_id: digest(tar), media_type }
}

pub(crate) fn zstd(tar: &[u8]) -> TestLayer {
    let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
    TestLayer { blob: zstd::encode_all(tar, 1).unwrap().into(), diff_id: digest(tar), media_type }
}

pub(crate) fn plain(tar: &[u8]) -> TestLayer {
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    TestLayer { blob: tar.into(), diff_id: digest(tar), media_type }
}

/// Bytes that do not compress.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// One gzip layer with one file of noise: about `length` bytes on the wire.
pub(crate) fn simple(length: usize, seed: u64) -> TestImage {
    TestImage::new(vec![gzip(&tar(&[("data", &noise(length, seed))]))])
}

impl TestLayer {
    pub(crate) fn blob_hex(&self) -> String {
        digest(&self.blob)["sha256:".len()..].to_owned()
    }
}

impl TestImage {
    pub(crate) fn new(layers: Vec<TestLayer>) -> TestImage {
        TestImage::with(layers, |_| ())
    }

    /// With a manifest that was changed before it was sealed.
    pub(crate) fn with(layers: Vec<TestLayer>, change: impl FnOnce(&mut Value)) -> TestImage {
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "2024-02-29T12:00:00.5Z",
            "config": {"Cmd": ["/bin/sh"], "Env": ["A=b"], "ExposedPorts": null, "Volumes": {"/data": {}}},
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| l.diff_id.clone()).collect::<Vec<_>>()},
        });
        let config = config.to_string().into_bytes();
        let describe = |layer: &TestLayer| json!({"mediaType": layer.media_type, "digest": digest(&layer.blob), "size": layer.blob.len()});
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config), "size": config.len(),
            },
            "layers": layers.iter().map(describe).collect::<Vec<_>>(),
        });
        change(&mut manifest);
        TestImage { layers, config: config.into(), manifest: manifest.to_string().into_bytes().into() }
    }

    pub(crate) fn blobs(&self) -> Vec<Blob> {
        self.layers.iter().map(|layer| layer.blob.clone()).chain([self.config.clone()]).collect()
    }

    pub(crate) fn id(&self) -> Digest {
        Digest::of(&self.config)
    }
}

/// A store in a directory of its own, and a registry to pull from.
pub(crate) struct Setup {
    pub(crate) root: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) registry: Registry,
}

pub(crate) fn options() -> StoreOptions {
    let patience = Patience {
        connect: Duration::from_secs(2),
        stall: Duration::from_millis(500),
        backoff: Duration::from_millis(5),
        ..Patience::default()
    };
    StoreOptions { patience, ..StoreOptions::default() }
}

impl Setup {
    pub(crate) async fn new() -> Setup {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path(), options()).unwrap();
        Setup { root, store, registry: Registry::start().await }
    }

    pub(crate) fn reference(&self, name: &str) -> Reference {
        self.registry.name(name).parse().unwrap()
    }

    pub(crate) async fn pull(&self, name: &str) -> Result<Image, sampan_imagestore::Error> {
        self.store.pull(&self.reference(name), None, sampan_imagestore::Progress::none()).await
    }

    pub(crate) fn reopen(&self) -> Store {
        Store::open(self.root.path(), options()).unwrap()
    }

    /// Fails if anything temporary is left, or anything beyond `blobs` and `layers`.
    pub(crate) fn assert_holds(&self, blobs: usize, layers: usize) {
        assert_no_leftovers(self.root.path());
        assert_eq!(entries(&self.root.path().join("content/blobs/sha256")).len(), blobs, "blobs");
        assert_eq!(entries(&self.root.path().join("snapshots/committed")).len(), layers, "layers");
    }
}

/// The downloads that broke off and can be gone on with.
pub(crate) fn broken_off(root: &Path) -> Vec<String> {
    let mut names = entries(&root.join("content/ingest"));
    names.retain(|name| name.len() == 64);
    names
}

pub(crate) fn assert_no_leftovers(root: &Path) {
    assert_eq!(entries(&root.join("content/ingest")), broken_off(root));
    for folder in ["snapshots/unpacking", "snapshots/staging", "snapshots/removing"] {
        assert_eq!(entries(&root.join(folder)), [""; 0], "{folder}");
    }
    let records = entries(&root.join("metadata/images"));
    assert!(records.iter().all(|name| name.ends_with(".json")), "{records:?}");
}

pub(crate) fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// The directory of an image's layer, the lowest first.
pub(crate) fn layer_directory(root: &Path, image: &Image, index: usize) -> PathBuf {
    root.join("snapshots/committed").join(image.layers[index].chain_id.digest().hex()).join("fs")
}

/// The whole chain of causes.
pub(crate) fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
