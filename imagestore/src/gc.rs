//! Collection: blobs and layers that nobody needs any more.
//!
//! Needed is what an image record names, what an active snapshot stands on, and what work in flight has
//! leased. A lease is taken before its holder looks whether a thing is here, and a collection excludes new
//! leases while it runs: nothing goes between the look and the use. Layers are only moved out of the way then, and
//! deleted afterwards: nobody waits for thousands of files to go.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    ChainId, Digest, Error, Image, Snapshots,
    content::Content,
    snapshot::{self, Retired},
};

/// What work in flight holds on to. Blobs and chains share one table: both are named by digests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leases(Arc<Mutex<HashMap<Digest, usize>>>);

/// Keeps blobs and layers from being collected until it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    leases: Leases,
    held: Vec<Digest>,
}

impl Leases {
    /// Waits for a collection to end, so it belongs on a thread that may block.
    pub(crate) fn take(&self, held: Vec<Digest>) -> Lease {
        let mut counts = self.counts();
        for digest in &held {
            *counts.entry(digest.clone()).or_default() += 1;
        }
        drop(counts);
        Lease { leases: self.clone(), held }
    }

    /// Does something that depends on what is held, which stays so until it is done.
    pub(crate) fn with_held<T>(&self, work: impl FnOnce(&dyn Fn(&Digest) -> bool) -> T) -> T {
        let counts = self.counts();
        work(&|digest| counts.contains_key(digest))
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes what is not needed, and says which chains went. It goes on past failures and returns the first.
    pub(crate) fn collect(
        &self,
        content: &Content,
        snapshots: &Snapshots,
        images: impl FnOnce() -> Vec<Arc<Image>>,
    ) -> Result<Vec<ChainId>, Error> {
        let leased = self.counts();
        let images = images();
        let blobs: HashSet<&Digest> = images.iter().flat_map(|image| image.blobs()).collect();
        let mut chains: HashSet<ChainId> = snapshots.in_use();
        chains.extend(images.iter().flat_map(|image| image.chains()).cloned());

        let mut result = content.discard_stale().map_err(Error::from);
        for digest in content.digests() {
            if !blobs.contains(&digest) && !leased.contains_key(&digest) {
                result = result.and(content.remove(&digest).map_err(Error::from));
            }
        }
        let mut unwanted = snapshots.committed();
        unwanted.retain(|chain| !chains.contains(chain) && !leased.contains_key(chain.digest()));
        let (gone, retired) = retire(snapshots, unwanted);
        drop(leased);
        for layer in retired {
            result = result.and(layer.and_then(Retired::delete).map_err(Error::from));
        }
        result.map(|()| gone)
    }
}

/// Moves layers out of the way; says which went, and what there is to delete or why that one stays.
fn retire(
    snapshots: &Snapshots,
    mut unwanted: Vec<ChainId>,
) -> (Vec<ChainId>, Vec<Result<Retired, snapshot::Error>>) {
    let (mut gone, mut retired) = (Vec::new(), Vec::new());
    // A layer goes only after those that stand on it: as many rounds as they are deep.
    while !unwanted.is_empty() {
        let before = gone.len();
        unwanted.retain(|chain| match snapshots.retire(chain) {
            Err(snapshot::Error::LayerInUse { .. }) => true,
            result => {
                gone.extend(result.is_ok().then(|| chain.clone()));
                retired.push(result);
                false
            }
        });
        // What is left was taken into use since: it goes another time.
        if gone.len() == before {
            break;
        }
    }
    (gone, retired)
}

impl Lease {
    /// Holds these as well.
    pub(crate) fn hold(&mut self, more: impl IntoIterator<Item = Digest>) {
        let mut counts = self.leases.counts();
        for digest in more {
            *counts.entry(digest.clone()).or_default() += 1;
            self.held.push(digest);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut counts = self.leases.counts();
        for digest in &self.held {
            if let Some(count) = counts.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(digest);
                }
            }
        }
    }
}
