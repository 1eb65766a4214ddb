//! One layer of a pull: from the registry's blob to files that wait to be committed.
//!
//! A layer is unpacked while it downloads if a place to unpack is free, and from the store afterwards if not.
//! Nothing is kept unless the blob hashes to its digest and its tar to its diff id. Whatever ends the work
//! early, the thread that does it has deleted its files before the result is told.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    sync::Arc,
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, task::spawn_blocking};

use super::{
    Error, Phase, Work,
    download::{Download, WAITING},
    inflate::{Allowance, inflate},
};
use crate::{
    Image, Kind, Snapshots,
    content::{self, Content, Ingest},
    image::{EMPTY, Layer, NOTHING},
    layer::{self, Unpacked},
    snapshot::Stage,
};

/// A layer that is laid out and only lacks its name.
pub(super) struct Ready {
    pub(super) stage: Stage,
    pub(super) unpacked: Unpacked,
}

/// Gets the layer at `index` ready; `None` if it is here already.
pub(super) async fn prepare(work: Arc<Work>, index: usize) -> Result<Option<Ready>, Error> {
    let layer = &work.layers[index];
    let report = |phase, current| work.report(index, phase, current);
    report(Phase::Waiting, 0);

    let wanted = !work.store.snapshots.contains(&layer.chain_id);
    // Of pulls that share a layer one fetches it, and the others find it here.
    let lock = work.store.blob_lock(&work.domain, &layer.digest);
    let guard = work.until_cancelled(lock.lock_owned()).await?;
    let mut ready = None;
    if work.store.content.size(&layer.digest).is_none() {
        let _permit = work.until_cancelled(work.downloads.acquire()).await?;
        // A free place is used at once; waiting for one would leave the network idle.
        let place = if wanted { work.unpacks.try_acquire().ok() } else { None };
        report(Phase::Downloading, 0);
        ready = download(&work, index, place.is_some()).await?;
    }
    drop(guard);
    if wanted && ready.is_none() {
        let _place = work.until_cancelled(work.unpacks.acquire()).await?;
        report(Phase::Unpacking, 0);
        let unpack = move |work: &Work| {
            let report = |current| work.report(index, Phase::Unpacking, current);
            unpack_stored(
                &work.store.content,
                &work.store.snapshots,
                &work.layers[index],
                &work.allowance,
                report,
            )
        };
        ready = match on_a_thread(&work, unpack).await {
            // It was good when it was stored, so the disk is to blame, and the registry has another.
            Err(Error::Content(content::Error::Mismatch { .. })) => {
                work.store.content.remove(&layer.digest)?;
                report(Phase::Downloading, 0);
                download(&work, index, true).await?
            }
            other => Some(other?),
        };
    }
    report(if wanted { Phase::Done } else { Phase::Exists }, layer.size);
    Ok(ready)
}

/// Fetches the blob into the store, and unpacks it on the way if `unpack` is set.
async fn download(work: &Arc<Work>, index: usize, unpack: bool) -> Result<Option<Ready>, Error> {
    let layer = &work.layers[index];
    let mut found = 0;
    match attempt(work, index, unpack, false, &mut found).await {
        // What was here of it, or what a mirror gave, was something else: once more, all of it, from the registry.
        Err(Error::Content(content::Error::Mismatch { .. }))
            if found > 0 || work.repository.has_mirrors() =>
        {
            attempt(work, index, unpack, true, &mut found).await
        }
        Err(error) => {
            // The network may be better another time; everything else would be the same.
            if !super::may_succeed_later(error.kind()) {
                work.store.content.discard(&layer.digest);
            }
            Err(error)
        }
        done => done,
    }
}

/// One download, from where an earlier one broke off; `found` is how much there was.
async fn attempt(
    work: &Arc<Work>,
    index: usize,
    unpack: bool,
    own_only: bool,
    found: &mut u64,
) -> Result<Option<Ready>, Error> {
    let layer = &work.layers[index];
    let ingest = on_a_thread(work, move |work| {
        let layer = &work.layers[index];
        Ok(work.store.content.resume(&layer.digest, layer.size)?)
    });
    let ingest = ingest.await?;
    *found = ingest.found();
    let (sender, receiver) = mpsc::channel(WAITING);
    let taker = on_a_thread(work, move |work| receive(work, index, (ingest, receiver), unpack));
    let range = (*found, layer.size);
    let fetched = async {
        let blob = work.repository.blob(&layer.digest, range, own_only, &sender);
        let fetched = work.until_cancelled(blob).await;
        // The end of the channel is how the thread learns that no more will come.
        drop(sender);
        fetched
    };
    let (fetched, taken) = tokio::join!(fetched, taker);
    match fetched {
        Ok(Ok(())) | Ok(Err(crate::registry::Error::Unwanted)) => taken,
        // The thread only saw that nothing came any more.
        Ok(Err(error)) => Err(error.into()),
        Err(cancelled) => Err(cancelled),
    }
}

async fn on_a_thread<T: Send + 'static>(
    work: &Arc<Work>,
    job: impl FnOnce(&Work) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (work, span) = (work.clone(), tracing::Span::current());
    spawn_blocking(move || span.in_scope(|| job(&work))).await.unwrap_or(Err(Error::Lost))
}

/// The thread's side of a download.
fn receive(
    work: &Work,
    index: usize,
    (ingest, receiver): (Ingest, mpsc::Receiver<Bytes>),
    unpack: bool,
) -> Result<Option<Ready>, Error> {
    let layer = &work.layers[index];
    let report = |current| {
        let complete = unpack && current == layer.size;
        work.report(index, if complete { Phase::Unpacking } else { Phase::Downloading }, current);
    };
    let mut download = Download::new(receiver, ingest, layer.size, &report);
    let stage = if unpack { Some(work.store.snapshots.stage()?) } else { None };
    let unpacked = match &stage {
        Some(stage) => match lay_out(layer, &mut download, stage, &work.allowance) {
            Ok(unpacked) => Some(unpacked),
            Err(error) if error.kind() == Kind::ResourceExhausted => return Err(error),
            // That the blob is not the one that was asked for explains everything else.
            Err(error) => {
                if download.drain().is_ok() {
                    download.verify(&layer.digest)?;
                }
                return Err(error);
            }
        },
        None => None,
    };
    // What follows the end of the compressed stream is part of the blob.
    download.drain().map_err(|source| store_error(layer, source))?;
    download.commit(&layer.digest)?;
    Ok(stage.zip(unpacked).map(|(stage, unpacked)| Ready { stage, unpacked }))
}

fn store_error(layer: &Layer, source: io::Error) -> Error {
    Error::Content(content::Error::Commit { digest: layer.digest.clone(), source })
}

/// Unpacks a blob of the content store.
fn unpack_stored(
    content: &Content,
    snapshots: &Snapshots,
    layer: &Layer,
    allowance: &Allowance,
    report: impl Fn(u64) + Send,
) -> Result<Ready, Error> {
    let file = content.reader(&layer.digest)?;
    let mut blob =
        Stored { file: BufReader::with_capacity(1 << 18, file), hash: Sha256::new(), at: 0, report };
    let stage = snapshots.stage()?;
    let unpacked = lay_out(layer, &mut blob, &stage, allowance);
    if unpacked.as_ref().err().is_none_or(|error| error.kind() != Kind::ResourceExhausted) {
        blob.drain().map_err(|source| content::Error::Read { digest: layer.digest.clone(), source })?;
        content::check(&blob.hash, &layer.digest, blob.at)?;
    }
    Ok(Ready { stage, unpacked: unpacked? })
}

/// Unpacks again what is missing of a stack of layers, from the blobs that are here.
pub(crate) fn restore(content: &Content, snapshots: &Snapshots, layers: &[Layer]) -> Result<(), Error> {
    restore_within(content, snapshots, layers, &Allowance::new(layers))
}

/// The same, where something else says what the layers may swell to.
pub(crate) fn restore_within(
    content: &Content,
    snapshots: &Snapshots,
    layers: &[Layer],
    allowance: &Allowance,
) -> Result<(), Error> {
    let mut parent = None;
    for layer in layers {
        if !snapshots.contains(&layer.chain_id) {
            let Ready { stage, unpacked } = unpack_stored(content, snapshots, layer, allowance, |_| ())?;
            snapshots.commit(stage, &layer.chain_id, parent, &unpacked)?;
        }
        parent = Some(&layer.chain_id);
    }
    if layers.is_empty() { restore_nothing(snapshots) } else { Ok(()) }
}

/// What an image without layers stands on.
pub(super) fn restore_nothing(snapshots: &Snapshots) -> Result<(), Error> {
    if snapshots.contains(&NOTHING) {
        return Ok(());
    }
    let stage = snapshots.stage()?;
    let unpacked = layer::unpack(&EMPTY[..], stage.root())
        .map_err(|source| Error::Layer { digest: NOTHING.digest().clone(), source })?;
    Ok(snapshots.commit(stage, &NOTHING, None, &unpacked)?)
}

/// Unpacks a blob that is here beside whatever was made of it before.
pub(crate) fn unpack_again(
    content: &Content,
    snapshots: &Snapshots,
    image: &Image,
    layer: &Layer,
) -> Result<(Stage, Unpacked), Error> {
    let Ready { stage, unpacked } =
        unpack_stored(content, snapshots, layer, &Allowance::new(&image.layers), |_| ())?;
    Ok((stage, unpacked))
}

/// A blob of the content store, hashed as it is read: it may have rotted since it was stored.
struct Stored<F> {
    file: BufReader<File>,
    hash: Sha256,
    at: u64,
    report: F,
}

impl<F: Fn(u64)> Stored<F> {
    fn drain(&mut self) -> io::Result<()> {
        loop {
            match self.fill_buf()?.len() {
                0 => return Ok(()),
                length => self.consume(length),
            }
        }
    }
}

impl<F: Fn(u64)> BufRead for Stored<F> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.file.fill_buf()
    }

    fn consume(&mut self, length: usize) {
        self.hash.update(&self.file.buffer()[..length]);
        self.file.consume(length);
        self.at += length as u64;
        (self.report)(self.at);
    }
}

impl<F: Fn(u64)> Read for Stored<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        super::read_buffered(self, buffer)
    }
}

/// Inflates and unpacks `blob` into `stage`, and checks what it is.
fn lay_out<R: BufRead + Send>(
    layer: &Layer,
    blob: &mut R,
    stage: &Stage,
    allowance: &Allowance,
) -> Result<Unpacked, Error> {
    let digest = || layer.digest.clone();
    let unpacked = inflate(blob, allowance, |tar| layer::unpack(tar, stage.root()))
        .map_err(|source| Error::Thread { digest: digest(), source })?
        .map_err(|source| Error::Layer { digest: digest(), source })?;
    if unpacked.diff_id != layer.diff_id {
        let (expected, actual) = (layer.diff_id.clone(), unpacked.diff_id);
        return Err(Error::DiffId { digest: digest(), expected, actual });
    }
    Ok(unpacked)
}
