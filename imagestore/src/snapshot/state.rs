//! What is known of the layers and snapshots that are there. Only tables and questions about them: files are others' affair.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{Access, Error, Usage, record};
use crate::ChainId;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) committed: HashMap<ChainId, Committed>,
    pub(super) active: HashMap<String, Active>,
    /// When a snapshot on each chain was last made or removed, in nanoseconds since 1970; since the process started.
    pub(super) used: HashMap<ChainId, i64>,
    /// How many layers were committed since the snapshots were opened.
    pub(super) commits: u64,
    /// The number of the project that was made last.
    pub(super) last_project: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Committed {
    pub(super) record: record::Layer,
    /// Tells this commit from a later one of the same chain, as long as the record is good for this boot only and
    /// a sync can mend that.
    pub(super) unsynced: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Active {
    pub(super) parent: Option<ChainId>,
    pub(super) access: Access,
    /// The project that its writable layer is, where the file system has such.
    pub(super) project: Option<u32>,
    /// What the last walk found.
    pub(super) counted: Option<Counted>,
    /// False while it is being made.
    pub(super) ready: bool,
}

/// What a walk found, when it ended and what it cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub(super) usage: Usage,
    pub(super) at: Instant,
    pub(super) cost: Duration,
}

/// A walk that takes longer than this is repeated after so many times what it took: whoever asks how often, counting
/// takes a twentieth of a core.
pub(super) const CHEAP: Duration = Duration::from_millis(50);
const WALKS: u32 = 20;

impl Counted {
    pub(super) fn is_good(&self) -> bool {
        self.cost > CHEAP && self.at.elapsed() < self.cost * WALKS
    }
}

impl Active {
    /// One that is being made.
    pub(super) fn new(parent: Option<ChainId>, access: Access) -> Active {
        Active { parent, access, project: None, counted: None, ready: false }
    }
}

impl State {
    pub(super) fn in_use(&self) -> HashSet<ChainId> {
        let mut chains = HashSet::new();
        for active in self.active.values() {
            let mut next = active.parent.as_ref();
            while let Some(chain) = next.filter(|chain| chains.insert((*chain).clone())) {
                next = self.committed.get(chain).and_then(|layer| layer.record.parent.as_ref());
            }
        }
        chains
    }

    pub(super) fn note_use(&mut self, parent: Option<&ChainId>) {
        if let Some(chain) = parent {
            let now = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
            self.used.insert(chain.clone(), now);
        }
    }

    /// The chain and all below it, from the top.
    pub(super) fn stack(&self, top: Option<&ChainId>) -> Result<Vec<ChainId>, Error> {
        let mut stack = Vec::new();
        let mut next = top;
        while let Some(chain) = next {
            let Some(layer) = self.committed.get(chain) else {
                return Err(Error::NoLayer { chain: chain.clone() });
            };
            stack.push(chain.clone());
            next = layer.record.parent.as_ref();
        }
        Ok(stack)
    }

    /// Those layers of the stack that can be seen: none below one whose root is opaque.
    pub(super) fn visible(&self, top: Option<&ChainId>) -> Result<Vec<ChainId>, Error> {
        let mut stack = self.stack(top)?;
        if let Some(last) = stack.iter().position(|chain| self.committed[chain].record.opaque) {
            stack.truncate(last + 1);
        }
        Ok(stack)
    }

    pub(super) fn insert_unsynced(&mut self, record: record::Layer) {
        self.commits += 1;
        let unsynced = Some(self.commits);
        self.committed.insert(record.chain.clone(), Committed { record, unsynced });
    }

    /// Nothing more is to be done for these layers.
    pub(super) fn settle(&mut self, layers: &[(record::Layer, u64)]) {
        for (layer, commit) in layers {
            if self.is_unsynced(&layer.chain, *commit)
                && let Some(committed) = self.committed.get_mut(&layer.chain)
            {
                committed.unsynced = None;
            }
        }
    }

    /// Whether the chain still is what this commit put there, and not yet durable.
    pub(super) fn is_unsynced(&self, chain: &ChainId, commit: u64) -> bool {
        self.committed.get(chain).is_some_and(|layer| layer.unsynced == Some(commit))
    }

    pub(super) fn ready(&self, key: &str) -> Result<&Active, Error> {
        let active = self.active.get(key).filter(|active| active.ready);
        active.ok_or_else(|| Error::NotFound { key: key.to_owned() })
    }
}
