//! The sizes of writable layers: walked in the background, told from memory.
//!
//! Who asks never waits for a walk, but for the first size of a container that is new and so has little to walk.
//! All walks together take at most half a percent of a core: the more there is to walk, the older the sizes get.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use sampan_imagestore::{Snapshots, Usage};

use crate::{context::now, pods::ContainerId};

/// A size is good for this long at least.
const FRESH: Duration = Duration::from_secs(10);
/// One second of walking in this many.
const SHARE: u32 = 200;
/// Younger containers' first walk is done for whoever asks.
const NEW: i64 = 60_000_000_000;

/// The size of a writable layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerUsage {
    /// As counted.
    pub usage: Usage,
    /// When, nanoseconds since 1970.
    pub at: i64,
}

/// The sizes that are known.
#[derive(Debug, Default)]
pub(super) struct Layers {
    known: Mutex<HashMap<ContainerId, Layer>>,
}

#[derive(Debug, Clone, Copy)]
struct Layer {
    size: LayerUsage,
    walked: Instant,
    cost: Duration,
}

impl Layers {
    /// The size of a container's layer; `None` until the background has walked it.
    pub(super) fn get(&self, snapshots: &Snapshots, id: &ContainerId, created_at: i64) -> Option<LayerUsage> {
        let known = self.known().get(id).map(|layer| layer.size);
        if known.is_some() || now().saturating_sub(created_at) > NEW {
            return known;
        }
        self.walk(snapshots, id)
    }

    /// Counts a layer.
    pub(super) fn walk(&self, snapshots: &Snapshots, id: &ContainerId) -> Option<LayerUsage> {
        let start = Instant::now();
        let usage = snapshots.usage(id.as_str()).ok()?;
        let size = LayerUsage { usage, at: now() };
        self.known().insert(id.clone(), Layer { size, walked: Instant::now(), cost: start.elapsed() });
        Some(size)
    }

    /// The layers among these that should be walked, the oldest size first.
    pub(super) fn due(&self, living: &[ContainerId]) -> Vec<ContainerId> {
        let known = self.known();
        let all: Duration = known.values().map(|layer| layer.cost).sum();
        let good_for = FRESH.max(all * SHARE);
        let age = |id: &ContainerId| known.get(id).map_or(Duration::MAX, |layer| layer.walked.elapsed());
        let mut due: Vec<_> =
            living.iter().map(|id| (age(id), id)).filter(|(age, _)| *age > good_for).collect();
        due.sort_by(|one, other| other.cmp(one));
        due.into_iter().map(|(_, id)| id.clone()).collect()
    }

    /// Forgets all but these.
    pub(super) fn retain(&self, living: &[ContainerId]) {
        let living: HashSet<&ContainerId> = living.iter().collect();
        self.known().retain(|id, _| living.contains(id));
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, Layer>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: char) -> ContainerId {
        ContainerId::from_file_name(&digit.to_string().repeat(64)).unwrap()
    }

    fn walked(layers: &Layers, id: &ContainerId, ago: Duration, cost: Duration) {
        let size = LayerUsage { usage: Usage::default(), at: 1 };
        let walked = Instant::now().checked_sub(ago).unwrap();
        layers.known().insert(id.clone(), Layer { size, walked, cost });
    }

    #[test]
    fn what_was_never_walked_is_due_first_then_the_oldest() {
        let (layers, living) = (Layers::default(), [id('a'), id('b'), id('c')]);
        walked(&layers, &living[0], Duration::from_secs(11), Duration::ZERO);
        walked(&layers, &living[1], Duration::from_secs(12), Duration::ZERO);
        assert_eq!(layers.due(&living), [id('c'), id('b'), id('a')]);
        walked(&layers, &living[1], Duration::ZERO, Duration::ZERO);
        walked(&layers, &living[0], Duration::ZERO, Duration::ZERO);
        assert_eq!(layers.due(&living[..2]), []);
    }

    #[test]
    fn costly_walks_are_done_less_often() {
        let (layers, living) = (Layers::default(), [id('a'), id('b')]);
        walked(&layers, &living[0], Duration::from_secs(30), Duration::from_millis(100));
        walked(&layers, &living[1], Duration::from_secs(30), Duration::from_millis(100));
        assert_eq!(layers.due(&living), [], "0.2 s of walking may take place every 40 s");
        layers.retain(&living[..1]);
        assert_eq!(layers.due(&living[..1]), [id('a')], "0.1 s every 20 s");
    }
}
