//! Commits: from a chain of layers, a writable directory and a configuration to an image.
//!
//! The directory is read once. On the way its layer is hashed, compressed into the content store and unpacked under its
//! chain id, all at the same time; so the image can be run and pushed at once. Nothing of the image beneath is read but
//! its two documents: the cost is that of what changed. The same directory, configuration and time give the same image.

mod change;
mod error;
#[cfg(test)]
mod tests;

use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    ChainId, Digest, Image, Reference,
    assemble::assemble,
    content::Ingest,
    diff::{self, DiffOptions},
    gc::Lease,
    history::made_layers,
    image::Layer,
    layer,
    manifest::{MAX_DOCUMENT, OCI_CONFIG, OCI_MANIFEST, oci_layer_type},
    store::Inner,
};

pub use change::{ChangeError, apply_changes};
pub(crate) use error::Error;

/// What passes to the thread that unpacks, and how many of these may wait.
const PIECE: usize = 256 << 10;
const WAITING: usize = 4;

/// What is said of the step that made an image.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// Nanoseconds since 1970.
    pub created: i64,
    /// The command that the container ran.
    pub created_by: String,
    /// Who made it; may be empty.
    pub author: String,
    /// What was noted; may be empty.
    pub comment: String,
    /// The image's `config` member: how to run it.
    pub config: Map<String, Value>,
    /// How to look at the writable directory.
    pub options: DiffOptions,
}

/// Makes an image of `parent` and what the active snapshot `key`, which stands on it, has changed.
pub(crate) fn commit(
    store: &Arc<Inner>,
    parent: &Image,
    key: &str,
    commit: &Commit,
    names: &[Reference],
) -> Result<Arc<Image>, Error> {
    let mut lease = store.leases.take(parent.blobs().cloned().collect());
    let layer = commit_layer(store, key, &commit.options, &mut lease)?;
    let config = configuration(store, parent, layer.as_ref(), commit)?;
    let manifest = manifest(store, parent, layer.as_ref(), &config)?;
    Ok(assemble(store, &manifest, &config, names)?)
}

/// Makes what the active snapshot `key` has changed a layer on top of its chain, in the content store and unpacked, and
/// held by the lease. None when nothing has changed.
pub(crate) fn commit_layer(
    store: &Arc<Inner>,
    key: &str,
    options: &DiffOptions,
    lease: &mut Lease,
) -> Result<Option<Layer>, Error> {
    let upper = store.snapshots.upper(key)?;
    let stage = store.snapshots.stage()?;
    let ingest = store.content.ingest()?;
    let (sender, receiver) = sync_channel(WAITING);
    let mut tee = Tee {
        hash: Sha256::new(),
        blob: GzEncoder::new(ingest, Compression::fast()),
        sender,
        piece: Vec::with_capacity(PIECE),
    };
    let (written, unpacked) = thread::scope(|scope| {
        let root = stage.root();
        let unpacking = thread::Builder::new()
            .name("unpack".to_owned())
            .spawn_scoped(scope, move || layer::unpack(Pieces { receiver, piece: Vec::new(), at: 0 }, root))
            .map_err(|source| Error::Thread { source })?;
        let written = diff::write(&upper, options, &mut tee).and_then(|entries| {
            let Tee { hash, blob, sender, piece } = tee;
            let failed = |source| diff::Error::Write { source };
            // Unwanted only if the other side has failed, and then it says why.
            let _ = sender.send(piece);
            drop(sender);
            Ok((entries, Digest::from_sha256(&hash.finalize().into()), blob.finish().map_err(failed)?))
        });
        let unpacked = unpacking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, Error>((written, unpacked))
    })?;
    let (entries, diff_id, ingest) = match (written, &unpacked) {
        (Ok(written), _) => written,
        // Nobody took what was written, for a reason of their own.
        (Err(diff::Error::Write { .. }), Err(_)) => return Err(unpacked.map(|_| ()).unwrap_err().into()),
        (Err(error), _) => return Err(error.into()),
    };
    if entries == 0 {
        return Ok(None);
    }
    let unpacked = unpacked?;
    if unpacked.diff_id != diff_id {
        return Err(Error::Torn { written: diff_id, unpacked: unpacked.diff_id });
    }
    let chain_id = match upper.parent() {
        Some(parent) => parent.child(&diff_id),
        None => ChainId::base(&diff_id),
    };
    let layer = Layer { digest: ingest.digest(), size: ingest.size(), diff_id, chain_id };
    lease.hold(layer.names());
    if store.content.size(&layer.digest) != Some(layer.size) {
        ingest.commit(&layer.digest, layer.size)?;
    }
    store.snapshots.commit(stage, &layer.chain_id, upper.parent(), &unpacked)?;
    Ok(Some(layer))
}

/// Members of Docker's configurations that speak of the container an image was made in.
pub(crate) const OF_A_CONTAINER: [&str; 7] =
    ["container", "container_config", "docker_version", "id", "parent", "parent_id", "throwaway"];

/// The parent's configuration with this step on top.
fn configuration(
    store: &Inner,
    parent: &Image,
    layer: Option<&Layer>,
    commit: &Commit,
) -> Result<Vec<u8>, Error> {
    let damaged = |digest: &Digest| {
        let digest = digest.clone();
        move |source| Error::Document { digest, source }
    };
    let bytes = store.content.read(&parent.id, MAX_DOCUMENT)?;
    let mut config: Map<String, Value> = serde_json::from_slice(&bytes).map_err(damaged(&parent.id))?;
    config.retain(|key, _| !OF_A_CONTAINER.contains(&key.as_str()));
    let created = jiff::Timestamp::from_nanosecond(commit.created.into()).unwrap_or_default().to_string();
    let mut step = json!({ "created": created, "created_by": commit.created_by });
    for (key, text) in [("author", &commit.author), ("comment", &commit.comment)] {
        if !text.is_empty() {
            step[key] = text.as_str().into();
        }
    }
    if layer.is_none() {
        step["empty_layer"] = true.into();
    }
    let mut history = config.get("history").and_then(Value::as_array).cloned().unwrap_or_default();
    // Every layer has its step, or those after it would be taken for others'.
    let told = made_layers(parent.config.history().as_deref().unwrap_or_default());
    history.extend((told..parent.layers.len()).map(|_| json!({ "comment": "not told" })));
    history.push(step);
    let diff_ids = parent.layers.iter().chain(layer).map(|layer| &layer.diff_id).collect::<Vec<_>>();
    config.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": diff_ids }));
    config.insert("history".into(), history.into());
    config.insert("created".into(), created.into());
    config.insert("config".into(), commit.config.clone().into());
    match commit.author.as_str() {
        "" => config.remove("author"),
        author => config.insert("author".into(), author.into()),
    };
    Ok(Value::from(config).to_string().into_bytes())
}

/// A manifest with the parent's layers as they are, in OCI's words.
fn manifest(store: &Inner, parent: &Image, layer: Option<&Layer>, config: &[u8]) -> Result<Vec<u8>, Error> {
    let bytes = store.content.read(&parent.manifest, MAX_DOCUMENT)?;
    let document: Value = serde_json::from_slice(&bytes)
        .map_err(|source| Error::Document { digest: parent.manifest.clone(), source })?;
    let media_type = |at: usize| {
        let written = document.get("layers").and_then(|layers| layers.get(at)?.get("mediaType")?.as_str());
        oci_layer_type(written.unwrap_or_default())
    };
    let inherited = parent.layers.iter().enumerate().map(|(at, layer)| (media_type(at), layer));
    let own = layer.map(|layer| (oci_layer_type(""), layer));
    let layers: Vec<Value> = inherited
        .chain(own)
        .map(|(kind, layer)| json!({ "mediaType": kind, "digest": layer.digest, "size": layer.size }))
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": { "mediaType": OCI_CONFIG, "digest": Digest::of(config), "size": config.len() },
        "layers": layers,
    });
    Ok(manifest.to_string().into_bytes())
}

/// A layer's bytes on three ways at once.
struct Tee {
    hash: Sha256,
    blob: GzEncoder<Ingest>,
    sender: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.blob.write_all(bytes)?;
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
            self.sender.send(piece).map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The unpacking side.
struct Pieces {
    receiver: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            match self.receiver.recv() {
                Ok(piece) => (self.piece, self.at) = (piece, 0),
                Err(_) => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len() - self.at);
        buffer[..length].copy_from_slice(&self.piece[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}
