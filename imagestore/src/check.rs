//! Checks: whether everything in the store still is what its digest says, and making it so.
//!
//! Every blob is hashed, and every layer is unpacked again from its blob and compared with the one in use, entry by
//! entry: type, mode, owner, time, size, content, extended attributes, names. A damaged layer costs no network, a damaged
//! blob only itself. What containers have mounted is reported and left as it is.

use std::{
    collections::{HashMap, HashSet},
    io::Write as _,
    sync::Arc,
};

use tokio::{sync::mpsc, task::spawn_blocking};

use crate::{
    ChainId, Digest, Error, Image, Reference, content,
    image::Layer,
    pull::{self, restore, unpack_again},
    registry::Repository,
    snapshot,
    store::Inner,
};

/// Something that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// "blob" or "layer".
    pub object: &'static str,
    /// The blob's digest, or the layer's chain id.
    pub digest: Digest,
    /// Within a layer; empty for its root or the whole.
    pub path: String,
    /// What is wrong.
    pub problem: String,
    /// Whether that has been mended.
    pub repaired: bool,
}

/// What a check has looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CheckSummary {
    /// How many blobs were hashed.
    pub blobs: u64,
    /// How many layers were compared.
    pub layers: u64,
    /// Files, directories and others in them.
    pub entries: u64,
    /// Bytes of blobs.
    pub bytes: u64,
    /// How many faults there were.
    pub faults: u64,
    /// How many of them are mended.
    pub repaired: u64,
}

struct Check {
    store: Arc<Inner>,
    repair: bool,
    sink: mpsc::Sender<Fault>,
    summary: CheckSummary,
}

pub(crate) async fn run(
    store: Arc<Inner>,
    repair: bool,
    sink: mpsc::Sender<Fault>,
) -> Result<CheckSummary, Error> {
    let (inner, held) = (store.clone(), store.catalog.images());
    let take = move || {
        let layers = held.iter().flat_map(|image| image.layers.iter().flat_map(Layer::names));
        let names = held.iter().flat_map(|image| image.blobs().cloned()).chain(layers).collect();
        let lease = inner.leases.take(names);
        // What was removed until the lease was taken is not to be checked.
        (lease, inner.catalog.images())
    };
    let (_lease, images) = on_a_thread(take).await;
    let mut check = Check { store, repair, sink, summary: CheckSummary::default() };
    let damaged = check.blobs(&images).await?;
    check.layers(&images, &damaged).await?;
    if check.summary.repaired > 0 {
        check.store.settle_later();
    }
    Ok(check.summary)
}

impl Check {
    /// Hashes every blob; the answer is those that are not good now.
    async fn blobs(&mut self, images: &[Arc<Image>]) -> Result<HashSet<Digest>, Error> {
        let mut owners: HashMap<Digest, Option<Arc<Image>>> =
            self.store.content.digests().into_iter().map(|digest| (digest, None)).collect();
        for image in images {
            owners.extend(image.blobs().map(|digest| (digest.clone(), Some(image.clone()))));
        }
        let mut order: Vec<Digest> = owners.keys().cloned().collect();
        order.sort();
        let mut damaged = HashSet::new();
        for digest in order {
            let (store, name) = (self.store.clone(), digest.clone());
            let problem = match on_a_thread(move || store.content.rehash(&name)).await {
                Ok(bytes) => {
                    self.summary.blobs += 1;
                    self.summary.bytes += bytes;
                    continue;
                }
                Err(error) => crate::error::chain(&error),
            };
            let owner = owners.get(&digest).and_then(Option::as_ref);
            // A leftover that was collected since it was listed.
            if owner.is_none() && self.store.content.size(&digest).is_none() {
                continue;
            }
            self.summary.blobs += 1;
            let (repaired, problem) = match (self.repair, owner) {
                (false, _) => (false, problem),
                (true, Some(owner)) => match self.fetch(owner, &digest, images).await {
                    Ok(()) => (true, problem),
                    Err(reason) => (false, format!("{problem}; it could not be fetched again: {reason}")),
                },
                // Nobody needs it.
                (true, None) => (self.store.content.remove(&digest).is_ok(), problem),
            };
            if !repaired {
                damaged.insert(digest.clone());
            }
            self.tell(Fault { object: "blob", digest, path: String::new(), problem, repaired }).await;
        }
        Ok(damaged)
    }

    /// Gets a blob again from where one of the images that need it came from.
    async fn fetch(&self, owner: &Image, digest: &Digest, images: &[Arc<Image>]) -> Result<(), String> {
        let needing = images.iter().filter(|image| image.blobs().any(|blob| blob == digest));
        let names = needing.flat_map(|image| &image.repo_digests).filter_map(|name| name.parse().ok());
        let mut reason = "no registry is known to have it".to_owned();
        for reference in names.collect::<Vec<Reference>>() {
            match self.fetch_from(&reference, owner, digest).await {
                Ok(()) => return Ok(()),
                Err(error) => reason = crate::error::chain(&error),
            }
        }
        Err(reason)
    }

    async fn fetch_from(
        &self,
        reference: &Reference,
        owner: &Image,
        digest: &Digest,
    ) -> Result<(), pull::Error> {
        let (transport, name) = (self.store.transport.clone(), reference.clone());
        let repository = on_a_thread(move || Repository::new(&transport, &name, None)).await?;
        let layer = owner.layers.iter().find(|layer| layer.digest == *digest);
        let (content, wanted) = (self.store.content.clone(), digest.clone());
        let Some(layer) = layer else {
            let bytes = if *digest == owner.manifest {
                repository.manifest(digest.as_str()).await?.bytes
            } else {
                repository.small_blob(digest).await?
            };
            // Over the damaged one: it is whole under its name or not there at all.
            let put = move || {
                let mut ingest = content.ingest()?;
                let written = ingest.write_all(&bytes);
                written.map_err(|source| content::Error::Commit { digest: wanted.clone(), source })?;
                ingest.commit(&wanted, bytes.len() as u64)
            };
            return Ok(on_a_thread(put).await?);
        };
        let (sender, mut receiver) = mpsc::channel::<bytes::Bytes>(8);
        let size = layer.size;
        let put = on_a_thread(move || {
            let mut ingest = content.ingest()?;
            while let Some(bytes) = receiver.blocking_recv() {
                let written = ingest.write_all(&bytes);
                written.map_err(|source| content::Error::Commit { digest: wanted.clone(), source })?;
            }
            ingest.commit(&wanted, size)
        });
        let fetched = async {
            let fetched = repository.blob(digest, (0, size), false, &sender).await;
            // The end of the channel is how the thread learns that no more will come.
            drop(sender);
            fetched
        };
        let (fetched, put) = tokio::join!(fetched, put);
        fetched?;
        Ok(put?)
    }

    /// Compares every layer of the images, from the bottom up, with what its blob gives.
    async fn layers(&mut self, images: &[Arc<Image>], damaged: &HashSet<Digest>) -> Result<(), Error> {
        let mut seen: HashSet<ChainId> = HashSet::new();
        for image in images {
            for layer in &image.layers {
                // Without a good blob there is nothing to compare with, and that was told.
                if !seen.insert(layer.chain_id.clone()) || damaged.contains(&layer.digest) {
                    continue;
                }
                self.summary.layers += 1;
                let (store, of, layer) = (self.store.clone(), image.clone(), layer.clone());
                let (chain, repair) = (layer.chain_id.clone(), self.repair);
                let (entries, faults) = on_a_thread(move || compare(&store, &of, &layer, repair)).await?;
                self.summary.entries += entries;
                for (path, problem, repaired) in faults {
                    let digest = chain.digest().clone();
                    self.tell(Fault { object: "layer", digest, path, problem, repaired }).await;
                }
            }
        }
        Ok(())
    }

    async fn tell(&mut self, fault: Fault) {
        self.summary.faults += 1;
        self.summary.repaired += u64::from(fault.repaired);
        tracing::warn!(
            object = fault.object,
            digest = %fault.digest,
            path = fault.path,
            problem = fault.problem,
            repaired = fault.repaired,
            "store check found a fault"
        );
        let _ = self.sink.send(fault).await;
    }
}

type Found = Vec<(String, String, bool)>;

/// The number of entries of a layer, and what is wrong with them.
fn compare(store: &Inner, image: &Image, layer: &Layer, repair: bool) -> Result<(u64, Found), Error> {
    let chain = &layer.chain_id;
    if !store.snapshots.contains(chain) {
        let restored =
            if repair { Some(restore(&store.content, &store.snapshots, &image.layers)) } else { None };
        let (problem, repaired) = match restored {
            None => ("is not unpacked".to_owned(), false),
            Some(Ok(())) => ("was not unpacked".to_owned(), true),
            Some(Err(error)) => (format!("cannot be unpacked: {}", crate::error::chain(&error)), false),
        };
        return Ok((0, vec![(String::new(), problem, repaired)]));
    }
    let (stage, unpacked) = match unpack_again(&store.content, &store.snapshots, image, layer) {
        Ok(unpacked) => unpacked,
        Err(error) => {
            let problem = format!("its blob cannot be unpacked: {}", crate::error::chain(&error));
            return Ok((0, vec![(String::new(), problem, false)]));
        }
    };
    let differences = match store.snapshots.differences(&stage, chain, &unpacked) {
        Ok(differences) => differences,
        Err(error) => {
            let problem = format!("it cannot be compared: {}", crate::error::chain(&error));
            vec![snapshot::Difference { path: String::new(), problem }]
        }
    };
    let repaired = if differences.is_empty() || !repair {
        Ok(false)
    } else {
        store.snapshots.replace(stage, chain, &unpacked).map(|()| true)
    };
    let mut faults: Found = Vec::new();
    let mended = *repaired.as_ref().unwrap_or(&false);
    faults.extend(differences.into_iter().map(|difference| (difference.path, difference.problem, mended)));
    if let Err(error) = repaired {
        let reason = match error {
            snapshot::Error::LayerInUse { .. } => {
                "not repaired: containers stand on it; remove them and check again".to_owned()
            }
            error => format!("not repaired: {}", crate::error::chain(&error)),
        };
        faults.push((String::new(), reason, false));
    }
    Ok((unpacked.inodes, faults))
}

async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let span = tracing::Span::current();
    match spawn_blocking(move || span.in_scope(work)).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
