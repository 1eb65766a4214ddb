//! Pulls: from a reference to an image that is complete on this node.
//!
//! ```text
//! manifest ─► configuration ─► policy ─► layers, side by side: download ∥ inflate ∥ unpack ─► commit in order ─► record
//! ```
//!
//! The record is written last, when all blobs that it names are on the disk. The unpacked layers reach the disk
//! some time later: a power cut before that costs unpacking them again, and nobody waits for the disk to take
//! twice the image. A pull that fails says so only when all its threads have cleaned up behind themselves;
//! verified blobs stay for the next attempt if one is worth making.

mod download;
mod error;
mod flight;
mod inflate;
mod layer;
mod progress;
mod window;

use std::{
    io::{self, BufRead},
    sync::Arc,
    thread::available_parallelism,
};

use oci_spec::image::ImageConfiguration;
use tokio::{
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    Auth, Digest, Image, Kind, Platform, Reference,
    image::{Layer, NOTHING, chains, created},
    manifest::{self, Document, Manifest},
    registry::{Fetched, Repository},
    signature::Policy,
    store::Inner,
};

pub(crate) use error::Error;
pub(crate) use flight::Flights;
pub(crate) use inflate::{Allowance, Counted, inflated};
pub(crate) use layer::{restore, restore_within, unpack_again};
pub(crate) use progress::Reports;
pub use progress::{Phase, Progress, ProgressEvent};

/// What a name turned out to be.
struct Resolved {
    /// The digest of the manifest or index that the name led to.
    target: Digest,
    manifest: Fetched,
    id: Digest,
    config: Vec<u8>,
    parsed: ImageConfiguration,
    layers: Vec<Layer>,
}

impl Resolved {
    /// The manifest, and the index that led to it.
    fn digests(&self) -> Vec<&Digest> {
        let mut digests = vec![&self.manifest.digest];
        digests.extend(Some(&self.target).filter(|target| **target != self.manifest.digest));
        digests
    }
}

/// What the layers of one pull share.
struct Work {
    store: Arc<Inner>,
    repository: Repository,
    domain: String,
    layers: Vec<Layer>,
    reports: Arc<Reports>,
    token: CancellationToken,
    allowance: Allowance,
    downloads: Semaphore,
    unpacks: Semaphore,
}

impl Work {
    fn report(&self, index: usize, phase: Phase, current: u64) {
        let Layer { digest, size, .. } = &self.layers[index];
        let event = ProgressEvent { digest: digest.clone(), phase, current, total: *size };
        self.reports.report(index, event);
    }

    async fn until_cancelled<T>(&self, wait: impl Future<Output = T>) -> Result<T, Error> {
        self.token.run_until_cancelled(wait).await.ok_or(Error::Cancelled)
    }
}

/// Pulls an image. It is over, in either sense, only when nothing works for it any more.
pub(crate) async fn run(
    store: Arc<Inner>,
    reference: Reference,
    auth: Option<Auth>,
    reports: Arc<Reports>,
    token: CancellationToken,
) -> Result<Arc<Image>, Error> {
    let (settings, name) = (store.clone(), reference.clone());
    let prepare = move || {
        let demands = Policy::load(settings.options.policy.as_deref())?.demands(&name)?;
        Ok::<_, Error>((demands, Repository::new(&settings.transport, &name, auth)?))
    };
    let (demands, repository) = spawn_blocking(prepare).await.map_err(|_| Error::Lost)??;
    let look = async {
        let resolved = resolve(&store, &repository, &reference).await?;
        demands.check(&repository, &reference, &resolved.digests()).await?;
        Ok::<_, Error>(resolved)
    };
    let resolved = token.run_until_cancelled(look).await.ok_or(Error::Cancelled)??;
    // Held from before the first look at what is here until the record holds everything itself.
    let held = [resolved.manifest.digest.clone(), resolved.id.clone(), NOTHING.digest().clone()];
    let held = held.into_iter().chain(resolved.layers.iter().flat_map(Layer::names)).collect();
    let leases = store.leases.clone();
    let _lease = spawn_blocking(move || leases.take(held)).await.map_err(|_| Error::Lost)?;

    let work = Arc::new(Work {
        downloads: Semaphore::new(store.options.parallel_downloads.max(1)),
        unpacks: Semaphore::new(available_parallelism().map_or(2, usize::from)),
        allowance: Allowance::new(&resolved.layers),
        domain: reference.domain().to_owned(),
        layers: resolved.layers.clone(),
        store,
        repository,
        reports,
        token: token.child_token(),
    });
    let outcome = async {
        let ready = prepare_layers(&work, &resolved).await?;
        // From here on it takes a moment, and half of it is of no use to anybody.
        let (work, span) = (work.clone(), tracing::Span::current());
        let complete = move || span.in_scope(|| complete(&work, ready, resolved, &reference));
        spawn_blocking(complete).await.unwrap_or(Err(Error::Lost))
    };
    outcome.await
}

/// See [`crate::Store::manifest_for`].
pub(crate) async fn manifest_for(
    store: &Arc<Inner>,
    reference: &Reference,
    auth: Option<Auth>,
    platform: &Platform,
) -> Result<Reference, Error> {
    let (settings, name) = (store.clone(), reference.clone());
    let open = move || Repository::new(&settings.transport, &name, auth);
    let repository = spawn_blocking(open).await.map_err(|_| Error::Lost)??;
    let found = find(&repository, reference, platform).await?;
    let led_on = found.target != found.fetched.digest;
    Ok(if led_on { reference.with_digest(&found.fetched.digest) } else { reference.clone() })
}

/// Where a name leads to.
struct Found {
    /// As in [`Resolved`].
    target: Digest,
    fetched: Fetched,
    manifest: Manifest,
}

/// Follows a name to the manifest for a platform.
async fn find(repository: &Repository, reference: &Reference, platform: &Platform) -> Result<Found, Error> {
    let name = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.as_str(),
        (None, tag) => tag.unwrap_or_default(),
    };
    let mut fetched = repository.manifest(name).await?;
    let target = fetched.digest.clone();
    let mut depth = 0;
    loop {
        let error = |source| Error::Manifest { digest: fetched.digest.clone(), source };
        match manifest::parse(&fetched.bytes, fetched.content_type.as_deref()).map_err(error)? {
            Document::Manifest(manifest) => return Ok(Found { target, fetched, manifest }),
            Document::Index(_) if depth == 2 => return Err(error(manifest::Error::Nested)),
            Document::Index(index) => {
                let chosen = manifest::select(&index, platform).map_err(error)?;
                fetched = repository.manifest(chosen.digest.as_str()).await?;
                depth += 1;
            }
        }
    }
}

async fn resolve(store: &Inner, repository: &Repository, reference: &Reference) -> Result<Resolved, Error> {
    let Found { target, fetched, manifest } = find(repository, reference, &store.options.platform).await?;
    let config = match store.content.read(&manifest.config.digest, manifest::MAX_DOCUMENT) {
        Ok(config) => config,
        Err(_) => repository.small_blob(&manifest.config.digest).await?,
    };
    let digest = || manifest.config.digest.clone();
    let parsed: ImageConfiguration =
        serde_json::from_slice(&config).map_err(|source| Error::Config { digest: digest(), source })?;
    let diff_ids = manifest::diff_ids(&manifest, &parsed)
        .map_err(|source| Error::Manifest { digest: fetched.digest.clone(), source })?;
    let layers = manifest.layers.iter().zip(chains(&diff_ids)).zip(diff_ids);
    let layers = layers.map(|((blob, chain_id), diff_id)| Layer {
        digest: blob.digest.clone(),
        diff_id,
        chain_id,
        size: blob.size,
    });
    let id = manifest.config.digest.clone();
    Ok(Resolved { target, layers: layers.collect(), manifest: fetched, id, config, parsed })
}

/// Gets all layers ready, the largest first: what takes longest should not begin last.
async fn prepare_layers(work: &Arc<Work>, resolved: &Resolved) -> Result<Vec<Option<layer::Ready>>, Error> {
    let mut order: Vec<usize> = (0..work.layers.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(work.layers[index].size));
    let mut tasks = JoinSet::new();
    for index in order {
        let work = work.clone();
        let task = async move { layer::prepare(work, index).await.map(|ready| Some((index, ready?))) };
        tasks.spawn(task.in_current_span());
    }
    // Their way to the disk takes as long as a small layer's, so they go beside the layers.
    let content = work.store.content.clone();
    let documents = [
        (resolved.manifest.digest.clone(), resolved.manifest.bytes.clone()),
        (resolved.id.clone(), resolved.config.clone()),
    ];
    tasks.spawn_blocking(move || {
        documents.iter().try_for_each(|(digest, bytes)| content.put(digest, bytes))?;
        Ok(None)
    });

    let mut ready: Vec<Option<layer::Ready>> = work.layers.iter().map(|_| None).collect();
    let mut failure = None;
    while let Some(ended) = tasks.join_next().await {
        match ended.unwrap_or(Err(Error::Lost)) {
            Ok(Some((index, layer))) => ready[index] = Some(layer),
            Ok(None) => {}
            Err(error) => {
                // The others end soon, and theirs are consequences of this.
                work.token.cancel();
                failure.get_or_insert(error);
            }
        }
    }
    failure.map_or(Ok(ready), Err)
}

/// Puts everything in its place: layers from the bottom up, then what describes them, the record last.
fn complete(
    work: &Work,
    ready: Vec<Option<layer::Ready>>,
    resolved: Resolved,
    reference: &Reference,
) -> Result<Arc<Image>, Error> {
    let store = &work.store;
    let mut parent = None;
    for (layer, ready) in work.layers.iter().zip(ready) {
        if let Some(layer::Ready { stage, unpacked }) = ready {
            store.snapshots.commit(stage, &layer.chain_id, parent, &unpacked)?;
        }
        parent = Some(&layer.chain_id);
    }
    if work.layers.is_empty() {
        layer::restore_nothing(&store.snapshots)?;
    }
    store.settle_later();

    let usage = work.layers.iter().filter_map(|layer| store.snapshots.layer_usage(&layer.chain_id));
    let image = Image {
        size: resolved.config.len() as u64 + usage.map(|usage| usage.bytes).sum::<u64>(),
        id: resolved.id,
        manifest: resolved.manifest.digest,
        repo_tags: Vec::new(),
        repo_digests: Vec::new(),
        created: created(&resolved.parsed),
        config: resolved.parsed,
        layers: resolved.layers,
        pinned: false,
        tagged_at: None,
    };
    Ok(store.catalog.enter(image, reference, &resolved.target)?)
}

/// Whether what was fetched is worth keeping for another attempt.
pub(crate) fn may_succeed_later(kind: Kind) -> bool {
    !matches!(kind, Kind::InvalidArgument | Kind::Untrusted | Kind::DataLoss | Kind::ResourceExhausted)
}

/// `read` for a reader that is buffered: what it has ready, as much as there is room for.
fn read_buffered(reader: &mut impl BufRead, buffer: &mut [u8]) -> io::Result<usize> {
    let available = reader.fill_buf()?;
    let length = available.len().min(buffer.len());
    buffer[..length].copy_from_slice(&available[..length]);
    reader.consume(length);
    Ok(length)
}
