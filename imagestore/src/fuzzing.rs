//! Ways in for the fuzz targets: each reads what a stranger wrote, and checks what must hold whatever that was.
//!
//! Behind a feature that only `imagestore/fuzz` turns on. A panic, an endless loop or too much memory is a finding;
//! any error is a good answer.

use std::{
    io::{self, Read},
    os::fd::AsFd,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::{Mode, OFlags};

use crate::{
    Digest, Reference, Store, StoreOptions, layer as layers, manifest as manifests, pull, registry,
    signature as signatures,
};

/// More of a layer than this finds nothing new and only takes time.
const INFLATED: u64 = 4 << 20;

/// A tar is laid out beneath a directory, and beside that directory nothing changes.
pub fn layer(bytes: &[u8]) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let world = std::env::temp_dir().join(format!("sampan-fuzz-{}-{number}", std::process::id()));
    std::fs::create_dir_all(world.join("root")).expect("make a directory");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(world.join("root"), flags, Mode::empty()).expect("open the directory");
    if let Ok(unpacked) = layers::unpack(bytes, root.as_fd()) {
        assert_eq!(unpacked.diff_id, Digest::of(bytes), "a layer is what all of its bytes hash to");
    }
    let beside = std::fs::read_dir(&world).expect("list the directory").count();
    assert_eq!(beside, 1, "an entry reached outside the root");
    let parent = rustix::fs::open(std::env::temp_dir(), flags, Mode::empty()).expect("open the parent");
    let name =
        std::ffi::CString::new(world.file_name().expect("has a name").as_encoded_bytes()).expect("no NUL");
    layers::remove_tree(parent.as_fd(), &name, &mut |_, _| {}).expect("remove what was made");
}

/// An archive of images, loaded into a store that a failed load leaves empty.
pub fn load(bytes: &[u8]) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let root = std::env::temp_dir().join(format!("sampan-fuzz-load-{}-{number}", std::process::id()));
    let store = Store::open(&root, StoreOptions::default()).expect("open a store");
    match store.load(bytes) {
        Ok(loaded) => assert!(!loaded.is_empty(), "a load that succeeds has loaded something"),
        // Of several images some may be in before one turns out to be none.
        Err(_) if !store.images().is_empty() => {}
        Err(_) => assert_eq!(store.usage().expect("add up").images.bytes, 0, "a failed load leaves nothing"),
    }
    drop(store);
    std::fs::remove_dir_all(&root).expect("remove the store");
}

/// A Dockerfile.
pub fn dockerfile(bytes: &[u8]) {
    let _ = crate::build::Dockerfile::parse("Dockerfile", bytes);
}

/// A `.dockerignore`, asked about its own lines.
pub fn ignore(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(ignore) = crate::build::Ignore::parse(text) else { return };
    for line in bytes.split(|byte| *byte == b'\n') {
        assert!(!(ignore.is_empty() && ignore.excludes(line)), "without a pattern nothing is excluded");
        ignore.may_include_below(line);
    }
}

/// A blob of unknown compression.
pub fn inflate(bytes: &[u8]) {
    let mut blob = bytes;
    let allowance = pull::Allowance::of(0);
    let mut blob = pull::Counted { inner: &mut blob, allowance: &allowance };
    if let Ok(inflated) = pull::inflated(&mut blob, &allowance) {
        let _ = io::copy(&mut inflated.take(INFLATED), &mut io::sink());
    }
}

/// A manifest, an index or a configuration.
pub fn manifest(bytes: &[u8]) {
    let (kind, bytes) = bytes.split_first().unwrap_or((&0, b""));
    let content_type = [None, Some(manifests::OCI_MANIFEST), Some(manifests::OCI_INDEX)];
    match manifests::parse(bytes, content_type[usize::from(*kind) % content_type.len()]) {
        Ok(manifests::Document::Index(index)) => drop(manifests::select(&index, &crate::Platform::default())),
        Ok(manifests::Document::Manifest(manifest)) => {
            if let Ok(config) = serde_json::from_slice(bytes) {
                let _ = manifests::diff_ids(&manifest, &config);
            }
        }
        Err(_) => {}
    }
    if let Ok(config) = serde_json::from_slice(bytes) {
        let _ = crate::image::created(&config);
    }
}

/// The name of an image; what is read is what is written.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(reference) = text.parse::<Reference>() {
        let again: Reference = reference.to_string().parse().expect("a normalised name is a name");
        assert_eq!(again, reference);
        let familiar: Reference = reference.familiar().parse().expect("a short name is a name");
        assert_eq!(familiar, reference);
    }
}

/// A `hosts.toml`, and a configuration with credentials.
pub fn hosts(bytes: &[u8]) {
    registry::fuzzing::settings(bytes);
}

/// A `WWW-Authenticate` header.
pub fn challenge(bytes: &[u8]) {
    registry::fuzzing::challenge(bytes);
}

/// A policy, a list of signatures, and what was signed.
pub fn signature(bytes: &[u8]) {
    let _ = signatures::Policy::parse(bytes);
    let _ = signatures::Payload::parse(bytes);
    let _ = signatures::attached(bytes);
}
