//! Pushes: an image of this node into its registry, and of that only what is not there.
//!
//! Each blob is asked for first, then taken from a repository of the same registry that is known to have it, and sent
//! only when neither helps. The manifest goes last and byte for byte as it is here, so a pulled image keeps its digest
//! wherever it is pushed to.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::{
    sync::{Semaphore, mpsc},
    task::{JoinSet, spawn_blocking},
};
use tracing::Instrument as _;

use crate::{
    Auth, Digest, Image, Kind, Reference, content,
    manifest::{MAX_DOCUMENT, OCI_MANIFEST},
    metadata,
    registry::{self, Destination, Presence},
    store::Inner,
};

/// Between two counts of one blob.
const PACE: Duration = Duration::from_millis(100);
/// Repositories to take a blob from that are tried: each costs a request.
const SOURCES: usize = 2;

/// Why an image was not pushed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry did not take it.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// A blob of the image could not be read.
    #[error(transparent)]
    Content(#[from] content::Error),
    /// It was pushed, and that could not be noted.
    #[error(transparent)]
    Metadata(#[from] metadata::Error),
    /// A name by digest says what to push and not where.
    #[error("it names an image by another digest, {digest}")]
    Digest {
        /// Of the image.
        digest: Digest,
    },
    /// The code has a mistake; the log has more.
    #[error("it ended without a result")]
    Lost,
}

impl Error {
    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Registry(error) => error.kind(),
            Error::Content(error) => error.kind(),
            Error::Metadata(error) => error.kind(),
            Error::Digest { .. } => Kind::InvalidArgument,
            Error::Lost => Kind::Internal,
        }
    }
}

/// What is being done with a blob.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum UploadPhase {
    /// For others to be done.
    Waiting,
    /// On its way.
    Uploading,
    /// It has arrived.
    Done,
    /// The registry had it.
    Exists,
    /// The registry took it from another of its repositories.
    Mounted,
}

/// How far a blob has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UploadEvent {
    /// The blob.
    pub digest: Digest,
    /// What is being done with it.
    pub phase: UploadPhase,
    /// Bytes that are on their way or there.
    pub current: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What a push put into the registry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pushed {
    /// Of the manifest.
    pub digest: Digest,
    /// Bytes of the manifest.
    pub size: u64,
}

/// One blob on its way.
struct Parcel {
    digest: Digest,
    size: u64,
    /// Repositories of the same registry that have it.
    others: Vec<String>,
}

/// Pushes an image to where its name says. Events are told as long as somebody takes them.
pub(crate) async fn run(
    store: Arc<Inner>,
    image: Arc<Image>,
    reference: Reference,
    auth: Option<Auth>,
    events: mpsc::Sender<UploadEvent>,
) -> Result<Pushed, Error> {
    if let Some(digest) = reference.digest().filter(|digest| **digest != image.manifest) {
        return Err(Error::Digest { digest: digest.clone() });
    }
    let (held, inner, name) = (image.clone(), store.clone(), reference.clone());
    let prepare = move || {
        let lease = inner.leases.take(held.blobs().cloned().collect());
        let manifest = inner.content.read(&held.manifest, MAX_DOCUMENT)?;
        let parcels = parcels(&inner, &held, &name)?;
        let others: BTreeSet<String> =
            parcels.iter().flat_map(|parcel| parcel.others.iter().cloned()).collect();
        let others: Vec<String> = others.into_iter().collect();
        let destination = Destination::new(&inner.transport, &name, auth, &others)?;
        Ok::<_, Error>((lease, manifest, parcels, destination))
    };
    let (_lease, manifest, parcels, destination) =
        spawn_blocking(prepare).await.map_err(|_| Error::Lost)??;
    let media_type = media_type(&manifest);
    let pinned = image.manifest.to_string();
    let target = reference.tag().unwrap_or(&pinned);
    let there = destination.resolve(target, &media_type).await?;
    let destination = Arc::new(destination);
    if there.as_ref() != Some(&image.manifest) {
        send_all(&store, &destination, parcels, &events).await?;
        destination.manifest(target, &media_type, &manifest).await?;
    } else {
        for Parcel { digest, size, .. } in parcels {
            let event = UploadEvent { digest, phase: UploadPhase::Exists, current: size, total: size };
            let _ = events.send(event).await;
        }
    }
    let pushed = Pushed { digest: image.manifest.clone(), size: manifest.len() as u64 };
    let entered = spawn_blocking(move || {
        let known = store.catalog.get(&image.id);
        // Removed meanwhile: there is nothing to note it with.
        known.map_or(Ok(()), |known| {
            store.catalog.enter((*known).clone(), &reference, &image.manifest).map(drop)
        })
    });
    entered.await.map_err(|_| Error::Lost)??;
    Ok(pushed)
}

async fn send_all(
    store: &Arc<Inner>,
    destination: &Arc<Destination>,
    parcels: Vec<Parcel>,
    events: &mpsc::Sender<UploadEvent>,
) -> Result<(), Error> {
    let places = Arc::new(Semaphore::new(store.options.parallel_downloads.max(1)));
    let mut tasks = JoinSet::new();
    for parcel in parcels {
        let (store, destination) = (store.clone(), destination.clone());
        let (places, events) = (places.clone(), events.clone());
        let task = async move {
            tell(&events, &parcel, UploadPhase::Waiting, 0).await;
            let _place = places.acquire().await.map_err(|_| Error::Lost)?;
            send(&store, &destination, &parcel, &events).await
        };
        tasks.spawn(task.in_current_span());
    }
    // The first failure ends the others with the set.
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap_or(Err(Error::Lost))?;
    }
    Ok(())
}

async fn send(
    store: &Arc<Inner>,
    destination: &Destination,
    parcel: &Parcel,
    events: &mpsc::Sender<UploadEvent>,
) -> Result<(), Error> {
    let file = Arc::new(store.content.reader(&parcel.digest)?);
    let sent = Arc::new(AtomicU64::new(0));
    let work = destination.blob(&parcel.digest, &file, parcel.size, &parcel.others, &sent);
    let mut work = std::pin::pin!(work);
    let mut told = 0;
    let presence = loop {
        match tokio::time::timeout(PACE, &mut work).await {
            Ok(presence) => break presence?,
            Err(_) => {
                let current = sent.load(Ordering::Relaxed);
                if current != told {
                    told = current;
                    let digest = parcel.digest.clone();
                    let event =
                        UploadEvent { digest, phase: UploadPhase::Uploading, current, total: parcel.size };
                    // Whoever does not keep up misses counts.
                    let _ = events.try_send(event);
                }
            }
        }
    };
    let phase = match presence {
        Presence::Found => UploadPhase::Exists,
        Presence::Mounted => UploadPhase::Mounted,
        Presence::Sent => UploadPhase::Done,
    };
    tell(events, parcel, phase, parcel.size).await;
    Ok(())
}

async fn tell(events: &mpsc::Sender<UploadEvent>, parcel: &Parcel, phase: UploadPhase, current: u64) {
    let event = UploadEvent { digest: parcel.digest.clone(), phase, current, total: parcel.size };
    let _ = events.send(event).await;
}

/// The blobs of an image, each once, with the repositories of the same registry where it came from.
fn parcels(store: &Inner, image: &Image, reference: &Reference) -> Result<Vec<Parcel>, Error> {
    let images = store.catalog.images();
    let mut parcels: Vec<Parcel> = Vec::new();
    let layers = image.layers.iter().map(|layer| &layer.digest);
    for digest in layers.chain([&image.id]) {
        if parcels.iter().any(|parcel| parcel.digest == *digest) {
            continue;
        }
        let size = store.content.size(digest);
        let size = size.ok_or_else(|| content::Error::Missing { digest: digest.clone() })?;
        let owners = images.iter().filter(|image| image.blobs().any(|blob| blob == digest));
        let names =
            owners.flat_map(|image| &image.repo_digests).filter_map(|name| name.parse::<Reference>().ok());
        let others: BTreeSet<String> = names
            .filter(|name| name.domain() == reference.domain() && name.path() != reference.path())
            .map(|name| name.path().to_owned())
            .collect();
        parcels.push(Parcel {
            digest: digest.clone(),
            size,
            others: others.into_iter().take(SOURCES).collect(),
        });
    }
    Ok(parcels)
}

/// What the manifest says it is; OCI leaves it out at will.
fn media_type(manifest: &[u8]) -> String {
    let document: Option<Value> = serde_json::from_slice(manifest).ok();
    let written = document.as_ref().and_then(|document| document.get("mediaType")?.as_str());
    written.unwrap_or(OCI_MANIFEST).to_owned()
}
