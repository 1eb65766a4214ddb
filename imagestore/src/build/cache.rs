//! The build cache: what steps made, by what they were made from.
//!
//! A [`Key`] is a list of named parts, so that it can be said which of them differs from the last time. A [`Record`] says
//! what came of it: a layer on top of a parent, or nothing. Layers are kept from being collected for as long as there is a
//! record of them. A record counts only if its layer is here, unpacked and as a blob; so records need not be synced.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder},
    io::Write as _,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Error, now};
use crate::{ChainId, Digest, gc::Lease, image::Layer, store};

/// A use within this time of the last one that is on the disk is not written, in nanoseconds.
const USE_GRAIN: i64 = 600 * 1_000_000_000;
/// What is kept of one part for the sake of explanations.
const MAX_PART: usize = 64 << 10;

/// What a step is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Key {
    parts: Vec<(String, String)>,
}

impl Key {
    /// Adds a part. Names are for people.
    pub(super) fn add(&mut self, name: &str, value: impl Into<String>) {
        self.parts.push((name.to_owned(), value.into()));
    }

    /// The key itself.
    pub(super) fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        for text in self.parts.iter().flat_map(|(name, value)| [name, value]) {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        Digest::from_sha256(&hash.finalize().into())
    }

    fn kept(&self) -> Vec<(String, String)> {
        let cut = |value: &String| match value.len() {
            0..=MAX_PART => value.clone(),
            _ => Digest::of(value.as_bytes()).to_string(),
        };
        self.parts.iter().map(|(name, value)| (name.clone(), cut(value))).collect()
    }
}

/// What a step has made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// What it was made from.
    pub(super) key: Digest,
    /// What it was made on; none for nothing at all.
    pub(super) parent: Option<ChainId>,
    /// None when nothing was changed.
    pub(super) layer: Option<Layer>,
    /// When, in nanoseconds since 1970.
    pub(super) created: i64,
    /// Likewise.
    pub(super) used: i64,
    /// The step, as it was shown.
    pub(super) title: String,
    /// Bytes of the unpacked layer.
    pub(super) size: u64,
    /// The key's parts.
    pub(super) parts: Vec<(String, String)>,
    /// Other keys that were found to mean the same.
    #[serde(default)]
    pub(super) aliases: Vec<Digest>,
}

/// The records of a builder.
#[derive(Debug)]
pub(super) struct Cache {
    store: Arc<store::Inner>,
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    records: HashMap<Digest, Held>,
    aliases: HashMap<Digest, Digest>,
}

#[derive(Debug)]
struct Held {
    record: Arc<Record>,
    /// Of its use that is on the disk.
    written: i64,
    _lease: Lease,
}

impl Cache {
    /// Reads the records below `root`, the builder's folder; those whose layer is gone are deleted.
    pub(super) fn open(store: Arc<store::Inner>, root: &Path) -> Result<Cache, Error> {
        let folder = root.join("steps");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(Error::io("mkdir", b"steps"))?;
        let cache = Cache { store, folder, state: Mutex::default() };
        for entry in fs::read_dir(&cache.folder).map_err(Error::io("read", b"steps"))?.flatten() {
            let record =
                fs::read(entry.path()).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            let name = entry.file_name();
            match record.filter(|record| name.to_str() == Some(record.key.hex()) && cache.is_whole(record)) {
                Some(record) => drop(cache.enter(record, false)),
                None => drop(fs::remove_file(entry.path())),
            }
        }
        Ok(cache)
    }

    /// What was made of a key, if all of it is here. It is in use from now on.
    pub(super) fn find(&self, key: &Digest) -> Option<Arc<Record>> {
        let mut state = self.state();
        let key = state.aliases.get(key).unwrap_or(key).clone();
        let held = state.records.get_mut(&key)?;
        if !self.is_whole(&held.record) {
            self.forget(&mut state, &key);
            return None;
        }
        let now = now();
        Arc::make_mut(&mut held.record).used = now;
        if now - held.written > USE_GRAIN {
            held.written = now;
            self.write(&held.record);
        }
        Some(held.record.clone())
    }

    /// Notes what was made of a key.
    pub(super) fn put(&self, key: &Key, mut record: Record) -> Arc<Record> {
        record.key = key.digest();
        record.parts = key.kept();
        self.enter(record, true)
    }

    /// Notes that another key means the same as that of this record.
    pub(super) fn alias(&self, alias: &Digest, record: &Digest) {
        const ALIASES: usize = 64;
        let mut state = self.state();
        let Some(held) = state.records.get_mut(record) else { return };
        if alias == record || held.record.aliases.contains(alias) {
            return;
        }
        let known = Arc::make_mut(&mut held.record);
        known.aliases.push(alias.clone());
        let dropped = (known.aliases.len() > ALIASES).then(|| known.aliases.remove(0));
        self.write(&held.record);
        state.aliases.insert(alias.clone(), record.clone());
        if let Some(dropped) = dropped {
            state.aliases.remove(&dropped);
        }
    }

    /// Says why a step is not cached: what differs from the record of a like step that was used last.
    pub(super) fn explain(&self, key: &Key, title: &str) -> String {
        let state = self.state();
        let like =
            |record: &&Arc<Record>| record.title == title || first_word(&record.title) == first_word(title);
        let differing = |record: &Record| {
            let now = key.kept();
            let value = |parts: &[(String, String)], name: &str| {
                parts.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
            };
            let names = now.iter().chain(&record.parts).map(|(name, _)| name.clone());
            let mut names: Vec<String> = names.collect();
            names.sort();
            names.dedup();
            names.retain(|name| value(&now, name) != value(&record.parts, name));
            let told = names.into_iter().map(|name| {
                let (before, after) = (value(&record.parts, &name), value(&now, &name));
                match (before, after) {
                    (Some(before), Some(after)) => {
                        format!("{name} was {} and is {}", brief(&before), brief(&after))
                    }
                    (Some(before), None) => format!("{name} was {} and is gone", brief(&before)),
                    (_, after) => format!("{name} is new: {}", brief(&after.unwrap_or_default())),
                }
            });
            told.collect::<Vec<_>>()
        };
        let nearest = state.records.values().map(|held| &held.record).filter(like).map(|record| {
            let differing = differing(record);
            (record.title != title, differing.len(), std::cmp::Reverse(record.used), differing)
        });
        match nearest.min() {
            None => "no step like it has been run".to_owned(),
            Some((_, 0, ..)) => "what it made is not here any more".to_owned(),
            Some((.., differing)) => differing.join("; "),
        }
    }

    /// All records.
    pub(super) fn records(&self) -> Vec<Arc<Record>> {
        self.state().records.values().map(|held| held.record.clone()).collect()
    }

    /// Forgets these. What their layers take comes free with the store's next collection.
    pub(super) fn remove(&self, keys: &[Digest]) {
        let mut state = self.state();
        for key in keys {
            self.forget(&mut state, key);
        }
    }

    fn is_whole(&self, record: &Record) -> bool {
        let Some(layer) = &record.layer else { return true };
        self.store.snapshots.contains(&layer.chain_id)
            && self.store.content.size(&layer.digest) == Some(layer.size)
    }

    fn enter(&self, record: Record, write: bool) -> Arc<Record> {
        let names = record.layer.iter().flat_map(Layer::names).collect();
        let lease = self.store.leases.take(names);
        if write {
            self.write(&record);
        }
        let mut state = self.state();
        for alias in &record.aliases {
            state.aliases.insert(alias.clone(), record.key.clone());
        }
        let (key, written, record) = (record.key.clone(), record.used, Arc::new(record));
        state.records.insert(key, Held { record: record.clone(), written, _lease: lease });
        record
    }

    fn forget(&self, state: &mut State, key: &Digest) {
        if let Some(held) = state.records.remove(key) {
            for alias in &held.record.aliases {
                state.aliases.remove(alias);
            }
            let _ = fs::remove_file(self.folder.join(key.hex()));
        }
    }

    /// A record that cannot be written is known until the process ends.
    fn write(&self, record: &Record) {
        let path = self.folder.join(record.key.hex());
        let temporary = path.with_extension("tmp");
        let written = serde_json::to_vec(record)
            .map_err(std::io::Error::from)
            .and_then(|bytes| fs::File::create(&temporary)?.write_all(&bytes))
            .and_then(|()| fs::rename(&temporary, &path));
        if let Err(error) = written {
            let _ = fs::remove_file(&temporary);
            tracing::warn!(%error, "a step is not cached beyond this process");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn first_word(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

fn brief(value: &str) -> String {
    const LENGTH: usize = 60;
    match value.chars().count() {
        0..=LENGTH => format!("{value:?}"),
        _ => format!("{:?}…", value.chars().take(LENGTH).collect::<String>()),
    }
}
