//! Saving: an OCI layout that is a Docker archive too.
//!
//! Blobs go out as they are in the store, byte for byte, each once however many images share it; so manifests keep
//! their digests. Docker's part names the same files: its readers take compressed layers.

use std::{collections::HashSet, io::Write, sync::Arc};

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::{BLOBS, CONTAINERD_NAME, Error, INDEX, LAYOUT, MANIFEST, OCI_NAME};
use crate::{
    Digest, Image, Reference, content,
    manifest::{MAX_DOCUMENT, OCI_INDEX, OCI_MANIFEST},
    store::Inner,
};

/// Writes the images, each under the given names.
pub(crate) fn save(
    store: &Inner,
    images: &[(Arc<Image>, Vec<Reference>)],
    out: impl Write,
) -> Result<(), Error> {
    // Nothing of them goes while it is on its way out.
    let _lease = store.leases.take(images.iter().flat_map(|(image, _)| image.blobs().cloned()).collect());
    let mut index = Vec::new();
    let mut docker = Vec::new();
    for (image, names) in images {
        let manifest = store.content.read(&image.manifest, MAX_DOCUMENT)?;
        index.extend(descriptors(image, &manifest, names)?);
        docker.push(json!({
            "Config": path(&image.id),
            "RepoTags": names.iter().map(Reference::familiar).collect::<Vec<_>>(),
            "Layers": image.layers.iter().map(|layer| path(&layer.digest)).collect::<Vec<_>>(),
        }));
    }
    let layout = json!({ "imageLayoutVersion": "1.0.0" });
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": index });
    let mut tar = Builder::new(out);
    for (name, document) in [(LAYOUT, layout), (INDEX, index), (MANIFEST, Value::Array(docker))] {
        let bytes = document.to_string().into_bytes();
        append(&mut tar, name, EntryType::Regular, bytes.len() as u64, &bytes[..])?;
    }
    append(&mut tar, "blobs/", EntryType::Directory, 0, &[][..])?;
    append(&mut tar, BLOBS, EntryType::Directory, 0, &[][..])?;
    let mut written: HashSet<&Digest> = HashSet::new();
    for digest in images.iter().flat_map(|(image, _)| image.blobs()) {
        if written.insert(digest) {
            let size = store.content.size(digest);
            let size = size.ok_or_else(|| content::Error::Missing { digest: digest.clone() })?;
            append(&mut tar, &path(digest), EntryType::Regular, size, store.content.reader(digest)?)?;
        }
    }
    tar.into_inner().and_then(|mut out| out.flush()).map_err(|source| Error::Write { source })
}

/// The entries of the index for one image: one for each name, or a single one without.
fn descriptors(image: &Image, manifest: &[u8], names: &[Reference]) -> Result<Vec<Value>, Error> {
    let document: Value = serde_json::from_slice(manifest)
        .map_err(|source| Error::Document { path: path(&image.manifest), source })?;
    let media_type = document.get("mediaType").and_then(Value::as_str).unwrap_or(OCI_MANIFEST);
    let descriptor = json!({
        "mediaType": media_type,
        "digest": image.manifest,
        "size": manifest.len(),
        "platform": { "architecture": image.config.architecture(), "os": image.config.os() },
    });
    let named = |name: &Reference| {
        let mut descriptor = descriptor.clone();
        // The whole name in both: the tags of two images in one archive may be equal.
        let name = name.to_string();
        descriptor["annotations"] = json!({ CONTAINERD_NAME: name, OCI_NAME: name });
        descriptor
    };
    Ok(if names.is_empty() { vec![descriptor] } else { names.iter().map(named).collect() })
}

fn path(digest: &Digest) -> String {
    format!("{BLOBS}{}", digest.hex())
}

/// The same input gives the same archive: no times, no owners.
fn append<W: Write>(
    tar: &mut Builder<W>,
    path: &str,
    kind: EntryType,
    size: u64,
    data: impl std::io::Read,
) -> Result<(), Error> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    tar.append_data(&mut header, path, data.take(size)).map_err(|source| Error::Write { source })
}
