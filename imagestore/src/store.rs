//! The store: what the agent sees of images.
//!
//! A handle is cheap to clone and safe to use from anywhere. Pulls run on the Tokio runtime of whoever asks;
//! everything else blocks for as long as the disk does. One process at a time may have a root open.

use std::{
    collections::HashMap,
    io::{Read, Write},
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::mpsc;

use crate::{
    Auth, ChainId, Change, CheckSummary, Commit, Credentials, DiffOptions, Digest, Error, Fault, Image,
    ImageUsage, Kind, Loaded, Patience, Platform, Progress, ProjectQuota, Pushed, Reclaimed, Reference,
    Removed, Snapshots, Step, Unneeded, UploadEvent, Watermarks, archive,
    catalog::Catalog,
    check, commit,
    content::Content,
    diff, error, folder,
    gc::{Lease, Leases},
    history, layer, manifest,
    pull::{self, Flights, Reports},
    push, reclaim,
    registry::{Routes, Transport},
    snapshot::Usage,
    usage,
};

/// How a store goes about things.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Registries to speak plain HTTP to, as `host` or `host:port`. Loopback always is.
    pub insecure_registries: Vec<String>,
    /// The folder with the settings of registries, `HOST/hosts.toml` as containerd has them; it need not exist.
    pub registry_settings: Option<PathBuf>,
    /// Credentials for pulls that bring none.
    pub credentials: Credentials,
    /// Which images may be pulled, as `policy.json` of the containers project; without the file all may.
    pub policy: Option<PathBuf>,
    /// How many layers of an image to fetch at a time.
    pub parallel_downloads: usize,
    /// Names of images that are spared when unused ones are removed.
    pub pinned: Vec<Reference>,
    /// Which image of an index to take.
    pub platform: Platform,
    /// How long to wait for a registry.
    pub patience: Patience,
    /// How to count and limit writable layers where the file system can.
    pub quota: Option<Arc<dyn ProjectQuota>>,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            insecure_registries: Vec::new(),
            registry_settings: None,
            credentials: Credentials::default(),
            policy: None,
            parallel_downloads: 4,
            pinned: Vec::new(),
            platform: Platform::default(),
            patience: Patience::default(),
            quota: None,
        }
    }
}

/// What a store takes on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Blobs and unpacked layers.
    pub images: Usage,
    /// What containers have written.
    pub containers: Usage,
}

/// The images of a node.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
    flights: Flights<(Reference, Option<Auth>), Reports, Pulled>,
}

/// An image that is in use. No clean-up takes it, and what it is made of outlives even its removal, until this is dropped.
#[derive(Debug)]
pub struct Held {
    image: Arc<Image>,
    _lease: Lease,
}

impl Deref for Held {
    type Target = Arc<Image>;

    fn deref(&self) -> &Arc<Image> {
        &self.image
    }
}

type Pulled = Result<Arc<Image>, Arc<pull::Error>>;
type BlobLock = tokio::sync::Mutex<()>;

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) options: StoreOptions,
    pub(crate) content: Arc<Content>,
    pub(crate) snapshots: Snapshots,
    pub(crate) catalog: Catalog,
    pub(crate) leases: Leases,
    pub(crate) transport: Arc<Transport>,
    /// Of the blobs that are being fetched, by registry: a slow one holds nobody else up.
    fetching: Mutex<HashMap<(String, Digest), Weak<BlobLock>>>,
    /// Whether a thread is waiting to sync what was unpacked.
    settling: AtomicBool,
    faults: Vec<String>,
}

/// How long unpacked layers may stay in memory only. Right after a pull somebody wants to start what was pulled,
/// and on ext4 every small durable write waits for a large sync that runs.
const SETTLE: Duration = Duration::from_secs(10);

impl Store {
    /// Opens the store below `root`, made if missing, and deletes what an earlier process left half done.
    pub fn open(root: &Path, options: StoreOptions) -> Result<Store, Error> {
        folder::closed(root).map_err(|source| Error::Open { path: root.to_owned(), source })?;
        let content = Arc::new(Content::open(root)?);
        let snapshots = Snapshots::open_with(&root.join("snapshots"), options.quota.clone())?;
        // After a power cut layers can be missing whose blobs are here.
        let usable = |image: &Image| {
            let mut missing = image.chains().filter(|chain| !snapshots.contains(chain));
            let Some(first) = missing.next() else { return Ok(()) };
            tracing::info!(image.id = %image.id, "layers are unpacked again");
            pull::restore(&content, &snapshots, &image.layers)
                .map_err(|error| format!("layer {first} is not there: {}", error::chain(&error)))
        };
        let (catalog, faults) = Catalog::open(root, &options.pinned, usable)?;
        for fault in &faults {
            tracing::warn!(fault, "image is left out until it is pulled again");
        }
        let routes = Routes {
            insecure: options.insecure_registries.clone(),
            certs: options.registry_settings.clone(),
        };
        let transport = Transport::new(routes, options.patience.clone(), options.credentials.clone());
        let inner = Inner {
            options,
            content,
            snapshots,
            catalog,
            leases: Leases::default(),
            transport: Arc::new(transport),
            fetching: Mutex::default(),
            settling: AtomicBool::new(false),
            faults,
        };
        let store = Store { inner: Arc::new(inner), flights: Flights::default() };
        if store.inner.snapshots.has_unsynced() {
            store.inner.settle_later();
        }
        Ok(store)
    }

    /// What was found damaged when the store was opened. Each cost one image, which a pull brings back.
    pub fn faults(&self) -> &[String] {
        &self.inner.faults
    }

    /// Pulls an image, or waits for a pull of the same name that is under way. The pull is cancelled when nobody
    /// waits for it any more.
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: Option<Auth>,
        progress: Progress,
    ) -> Result<Image, Error> {
        let (inner, name, credentials) = (self.inner.clone(), reference.clone(), auth.clone());
        let start = |reports: Arc<Reports>, token| async move {
            let pulled = pull::run(inner.clone(), name, credentials, reports.clone(), token).await;
            if let Err(error) = &pulled
                && !pull::may_succeed_later(error.kind())
            {
                // Its blobs would only take room until something else is removed.
                let full = pulled.as_ref().is_err_and(|error| error.kind() == Kind::ResourceExhausted);
                let sweep = move || {
                    if full {
                        inner.content.discard_older(Duration::ZERO)?;
                    }
                    inner.collect()
                };
                let swept = tokio::task::spawn_blocking(sweep).await;
                if let Ok(Err(error)) = swept {
                    tracing::warn!(%error, "leftovers of a failed pull stay until the next collection");
                }
            }
            reports.close();
            pulled.map_err(Arc::new)
        };
        let join = |reports: &Reports| reports.listen(progress);
        let pulled = self.flights.run((reference.clone(), auth), join, start).await;
        match pulled.unwrap_or_else(|| Err(Arc::new(pull::Error::Lost))) {
            Ok(image) => Ok((*image).clone()),
            Err(source) => Err(Error::Pull { reference: reference.clone(), source }),
        }
    }

    /// What `reference` has for a platform that need not be this node's: itself at the digest of that manifest, if it is
    /// an index.
    ///
    /// # Errors
    /// Those of a pull; `NotFound` when the index has nothing for the platform.
    pub async fn manifest_for(
        &self,
        reference: &Reference,
        auth: Option<Auth>,
        platform: &Platform,
    ) -> Result<Reference, Error> {
        let failed = |source| Error::Pull { reference: reference.clone(), source: Arc::new(source) };
        pull::manifest_for(&self.inner, reference, auth, platform).await.map_err(failed)
    }

    /// The parts, for the builder.
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// All images, from memory.
    pub fn images(&self) -> Vec<Arc<Image>> {
        self.inner.catalog.images()
    }

    /// The image that goes by this name, id, or beginning of an id that only one has.
    pub fn find(&self, name_or_id: &str) -> Result<Option<Arc<Image>>, Error> {
        self.inner.catalog.find(name_or_id)
    }

    /// The same, and nothing of it goes until the answer is dropped. Waits for a collection to end.
    pub fn hold(&self, name_or_id: &str) -> Result<Option<Held>, Error> {
        while let Some(image) = self.find(name_or_id)? {
            let lease = self.inner.leases.take(image.names().collect());
            // Removed until the lease was taken, or no longer the one of that name: look again.
            if let Some(image) = self.find(name_or_id)?.filter(|now| now.id == image.id) {
                return Ok(Some(Held { image, _lease: lease }));
            }
        }
        Ok(None)
    }

    /// Gives an image one more name, a tag, and takes it from whoever had it.
    ///
    /// # Errors
    /// `InvalidArgument` for a name with a digest, `NotFound` when the image is gone.
    pub fn tag(&self, image_id: &Digest, name: &Reference) -> Result<Arc<Image>, Error> {
        if name.digest().is_some() {
            return Err(Error::TagIsDigest { name: name.clone() });
        }
        let tagged = self.inner.catalog.tag(image_id, name)?;
        tagged.ok_or_else(|| Error::NoImage { id: image_id.clone() })
    }

    /// The steps in which an image was made, the newest first.
    pub fn history(&self, image: &Image) -> Vec<Step> {
        history::steps(image, &self.images(), &self.inner.snapshots)
    }

    /// The configuration of an image as it was written, with what this version does not know of.
    pub fn configuration(&self, image: &Image) -> Result<Vec<u8>, Error> {
        Ok(self.inner.content.read(&image.id, manifest::MAX_DOCUMENT)?)
    }

    /// What each image takes, by itself and together with others. Costs no look at any file.
    pub fn image_usage(&self) -> Vec<ImageUsage> {
        usage::of_images(self.images(), &self.inner.snapshots, &self.inner.content)
    }

    /// What the images that `which` picks take together. Costs no look at any file.
    pub fn usage_of_images(&self, which: impl Fn(&Image) -> bool) -> Usage {
        let mut images = self.images();
        images.retain(|image| which(image));
        usage::of_all(&images, &self.inner.snapshots, &self.inner.content)
    }

    /// Pushes an image to where the name says, and notes the name with it. Events come by `events` as long as somebody
    /// takes them; the push ends when the future is dropped.
    pub async fn push(
        &self,
        image: Arc<Image>,
        reference: &Reference,
        auth: Option<Auth>,
        events: mpsc::Sender<UploadEvent>,
    ) -> Result<Pushed, Error> {
        let pushed = push::run(self.inner.clone(), image, reference.clone(), auth, events).await;
        pushed.map_err(|source| Error::Push { reference: reference.clone(), source: Box::new(source) })
    }

    /// Compares everything here with its digest: blobs are hashed, layers unpacked again and compared entry by entry.
    /// With `repair` what is damaged is made anew, from blobs that are here where that is enough and from registries
    /// where it is not. Each fault goes to `faults`, which has to be read.
    pub async fn check(&self, repair: bool, faults: mpsc::Sender<Fault>) -> Result<CheckSummary, Error> {
        check::run(self.inner.clone(), repair, faults).await
    }

    /// What the active snapshot `key` has changed of its layers, sorted by path.
    pub fn changes(&self, key: &str, options: &DiffOptions) -> Result<Vec<Change>, Error> {
        let upper = self.inner.snapshots.upper(key)?;
        diff::changes(&upper, options)
            .map_err(|source| Error::Diff { key: key.to_owned(), source: Box::new(source) })
    }

    /// Writes what the active snapshot `key` has changed of its layers as a layer's uncompressed tar.
    pub fn write_changes(&self, key: &str, out: &mut impl Write) -> Result<(), Error> {
        let upper = self.inner.snapshots.upper(key)?;
        let written = diff::write(&upper, &DiffOptions::default(), out);
        written.map(drop).map_err(|source| Error::Diff { key: key.to_owned(), source: Box::new(source) })
    }

    /// Lays out what [`Store::write_changes`] has written in the active snapshot `key`, which is new and not mounted yet.
    pub fn apply_changes(&self, key: &str, tar: impl Read) -> Result<(), Error> {
        let upper = self.inner.snapshots.upper(key)?;
        let laid_out = layer::unpack(tar, upper.directory());
        laid_out.map(drop).map_err(|source| Error::Apply { key: key.to_owned(), source: Box::new(source) })
    }

    /// Makes an image of `parent` and what the active snapshot `key`, which stands on it, has changed; under these
    /// names, or under none. Costs as much as was changed.
    pub fn commit(
        &self,
        parent: &Image,
        key: &str,
        commit: &Commit,
        names: &[Reference],
    ) -> Result<Arc<Image>, Error> {
        let made = commit::commit(&self.inner, parent, key, commit, names);
        made.map_err(|source| Error::Commit { key: key.to_owned(), source: Box::new(source) })
    }

    /// Writes images as one tar, each under the given names: an OCI layout and a Docker archive at once.
    pub fn save(&self, images: &[(Arc<Image>, Vec<Reference>)], out: impl Write) -> Result<(), Error> {
        archive::save(&self.inner, images, out).map_err(|source| Error::Save { source: Box::new(source) })
    }

    /// Takes in the images of a tar that is an OCI layout or a Docker archive, compressed or not.
    pub fn load(&self, input: impl Read + Send) -> Result<Vec<Loaded>, Error> {
        archive::load(&self.inner, input).map_err(|source| Error::Load { source: Box::new(source) })
    }

    /// Removes an image with all its names, and whatever nobody else needs. A missing one is nothing to remove.
    pub fn remove(&self, image_id: &Digest) -> Result<Removed, Error> {
        let removed = self.inner.catalog.remove(image_id)?;
        self.inner.sweep(removed)
    }

    /// Removes a name, the image with its last one, and whatever nobody else needs.
    pub fn untag(&self, reference: &Reference) -> Result<Removed, Error> {
        let removed = self.inner.catalog.untag(reference)?;
        if removed.deleted.is_empty() {
            return Ok(removed);
        }
        self.inner.sweep(removed)
    }

    /// Removes images that nobody needs: neither pinned, nor held, nor what `used` knows of. Leftovers of failed work go
    /// too. `used` is asked again right before an image goes: what was held until then has to be known to it.
    pub fn prune(&self, which: Unneeded, used: impl Fn(&Image) -> bool) -> Result<Reclaimed, Error> {
        reclaim::prune(&self.inner, which, &used)
    }

    /// Removes images that nobody needs, those used longest ago first, if the marks say that there are too many; `used`
    /// is asked as by [`Store::prune`].
    pub fn make_room(&self, marks: &Watermarks, used: impl Fn(&Image) -> bool) -> Result<Reclaimed, Error> {
        reclaim::make_room(&self.inner, marks, &used)
    }

    /// Deletes blobs and layers that no image, snapshot or pull needs, such as the layers of a removed image whose
    /// last container is gone now.
    pub fn collect(&self) -> Result<Vec<ChainId>, Error> {
        self.inner.collect()
    }

    /// Layers and writable snapshots.
    pub fn snapshots(&self) -> &Snapshots {
        &self.inner.snapshots
    }

    /// Makes the unpacked layers durable now rather than soon, before the machine is shut down, for one.
    pub fn settle(&self) -> Result<(), Error> {
        Ok(self.inner.snapshots.sync()?)
    }

    /// What everything takes on the disk.
    pub fn usage(&self) -> Result<StoreUsage, Error> {
        Ok(StoreUsage { images: self.inner.image_bytes(), containers: self.inner.snapshots.total_usage()? })
    }
}

impl Inner {
    pub(crate) fn collect(&self) -> Result<Vec<ChainId>, Error> {
        self.leases.collect(&self.content, &self.snapshots, || self.catalog.images())
    }

    /// Sees to it that layers get to the disk in a while. A layer that does not is unpacked again after a power cut.
    pub(crate) fn settle_later(self: &Arc<Self>) {
        if self.settling.swap(true, Ordering::SeqCst) {
            return;
        }
        let store = Arc::downgrade(self);
        let settle = move || {
            std::thread::sleep(SETTLE);
            let Some(store) = store.upgrade() else { return };
            store.settling.store(false, Ordering::SeqCst);
            if let Err(error) = store.snapshots.sync() {
                tracing::error!(error = &error as &dyn std::error::Error, "layers do not reach the disk");
            }
        };
        let thread = std::thread::Builder::new().name("settle".to_owned()).spawn(settle);
        if let Err(error) = thread {
            self.settling.store(false, Ordering::SeqCst);
            tracing::warn!(%error, "layers reach the disk when the kernel sees fit");
        }
    }

    /// What blobs and unpacked layers take, by the store's own counters.
    pub(crate) fn image_bytes(&self) -> Usage {
        let (bytes, inodes) = self.content.usage();
        let chains = self.snapshots.committed();
        let layers = chains.iter().filter_map(|chain| self.snapshots.layer_usage(chain));
        layers.fold(Usage { bytes, inodes }, |sum, layer| Usage {
            bytes: sum.bytes + layer.bytes,
            inodes: sum.inodes + layer.inodes,
        })
    }

    pub(crate) fn sweep(&self, mut removed: Removed) -> Result<Removed, Error> {
        let chains = self.collect()?;
        removed.deleted.extend(chains.into_iter().map(|chain| chain.digest().clone()));
        Ok(removed)
    }

    /// One lock for everybody who wants this blob from this registry.
    pub(crate) fn blob_lock(&self, domain: &str, digest: &Digest) -> Arc<BlobLock> {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        fetching.retain(|_, lock| lock.strong_count() > 0);
        let entry = fetching.entry((domain.to_owned(), digest.clone())).or_default();
        entry.upgrade().unwrap_or_else(|| {
            let lock = Arc::new(BlobLock::default());
            *entry = Arc::downgrade(&lock);
            lock
        })
    }
}
