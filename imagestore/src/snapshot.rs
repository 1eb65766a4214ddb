//! Overlay snapshots: a stack of read-only layers and one writable directory.
//!
//! ```text
//! stage() ─ unpack ─▶ commit(chain) ─▶ prepare(key, chain), view(key, chain) ─▶ mounts ─▶ remove(key)
//!   │ drop                 │ sync() at any time; kept until remove_committed(chain)
//!   ▼                      ▼
//! nothing            committed/HEX/{fs,record.json}       active/KEY/{fs,work,merged,record.json}
//! ```
//!
//! A committed layer never changes; only an active snapshot is writable. A layer counts after a restart only
//! if it has a record. Until `sync` has its files on the disk the record names the boot of the machine, and is
//! void in any other: a killed process loses nothing, and a power cut leaves no layer with holes. An active
//! snapshot is not synced: it need not survive a power cut. This module returns mounts and performs none.

use std::{
    collections::HashSet,
    ffi::CString,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Instant,
};

use oci_spec::runtime::Mount;
use rustix::{
    fs::{self, Mode, OFlags, RenameFlags, ResolveFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{
    ChainId,
    layer::{OPAQUE, Unpacked, remove_tree},
};

mod error;
mod inherit;
mod overlay;
mod quota;
mod record;
mod recover;
mod stage;
mod state;
mod upper;
mod usage;
mod verify;

#[cfg(test)]
pub(crate) mod tests;

pub use error::Error;
pub use quota::ProjectQuota;
pub(crate) use record::boot;
pub(crate) use stage::Stage;
pub(crate) use upper::{Upper, is_whiteout};
pub(crate) use usage::count;
pub(crate) use verify::Difference;

use stage::{Purpose, make_directory, open_directory};
use state::{Active, Committed, Counted, State};

/// How many layers overlayfs stacks (OVL_MAX_STACK).
const LAYERS: usize = 500;

/// Disk space and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes.
    pub bytes: u64,
    /// Files, directories and others.
    pub inodes: u64,
}

/// Where the parts of an active snapshot lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// The read-only layers, the topmost first.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// What overlayfs needs for itself.
    pub work: PathBuf,
    /// Where the snapshot is to be mounted.
    pub merged: PathBuf,
}

/// What an active snapshot is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// To be written to.
    #[default]
    Write,
    /// To be written to, and of no use after a crash: what is written is never synced. Build steps want this. Overlayfs
    /// refuses to mount it a second time.
    Volatile,
    /// To be looked at only.
    View,
}

/// All layers and snapshots below one directory. One process at a time may have them open.
#[derive(Debug)]
pub struct Snapshots {
    folders: Arc<Folders>,
    state: Mutex<State>,
    /// Held while layers are synced: two would write the same records.
    syncing: Mutex<()>,
    /// Where the file system can count and limit writable layers.
    quota: Option<Arc<dyn ProjectQuota>>,
    /// What all active snapshots together had at the last count. Held while they are counted: two would walk the same files.
    total: Mutex<Option<Counted>>,
}

/// A layer that nobody finds any more. What is not deleted now goes when the snapshots are opened.
#[derive(Debug)]
pub(crate) struct Retired {
    folders: Arc<Folders>,
    name: Option<String>,
}

impl Retired {
    /// Takes as long as there are files.
    pub(crate) fn delete(self) -> Result<(), Error> {
        self.name.map_or(Ok(()), |name| self.folders.delete(&name))
    }
}

/// The directories that everything happens in.
#[derive(Debug)]
struct Folders {
    path: PathBuf,
    committed: OwnedFd,
    active: OwnedFd,
    /// Layers that are being unpacked.
    unpacking: OwnedFd,
    /// Active snapshots that are being made.
    staging: OwnedFd,
    removing: OwnedFd,
    /// The next name in `unpacking`, `staging` and `removing`.
    next: AtomicU64,
    /// Names the time since the machine was started.
    boot: String,
}

impl Snapshots {
    /// Opens what is below `root`, and deletes what no record names: leftovers of a crash.
    pub fn open(root: &Path) -> Result<Snapshots, Error> {
        Snapshots::open_with(root, None)
    }

    /// The same with a way to count and limit writable layers, which is used where the file system has it.
    pub fn open_with(root: &Path, quota: Option<Arc<dyn ProjectQuota>>) -> Result<Snapshots, Error> {
        Snapshots::open_in_boot(root, record::boot(), quota)
    }

    fn open_in_boot(
        root: &Path,
        boot: String,
        quota: Option<Arc<dyn ProjectQuota>>,
    ) -> Result<Snapshots, Error> {
        let folders = Folders::open(root, boot)?;
        let state = recover::recover(&folders)?;
        let quota = quota::probe(&folders, quota);
        Ok(Snapshots {
            folders: Arc::new(folders),
            state: Mutex::new(state),
            syncing: Mutex::default(),
            total: Mutex::default(),
            quota,
        })
    }

    /// Whether the layers of the chain are unpacked.
    pub fn contains(&self, chain: &ChainId) -> bool {
        self.state().committed.contains_key(chain)
    }

    /// A temporary directory for one layer.
    pub fn stage(&self) -> Result<Stage, Error> {
        Stage::new(self.folders.clone(), Purpose::Layer)
    }

    /// Makes what was unpacked in `stage` the layer that completes `chain`, on top of `parent`.
    /// Where the chain is there already, that one stays. It survives a power cut after the next [`Snapshots::sync`].
    pub fn commit(
        &self,
        stage: Stage,
        chain: &ChainId,
        parent: Option<&ChainId>,
        unpacked: &Unpacked,
    ) -> Result<(), Error> {
        let path = self.folders.layer(chain);
        let lower = {
            let state = self.state();
            if state.committed.contains_key(chain) {
                return Ok(());
            }
            state.visible(parent)?
        };
        inherit::describe_implied(&self.folders, &stage, &lower, &unpacked.implied)?;
        let opaque = fs::fgetxattr(stage.root(), OPAQUE, &mut [0_u8; 1][..]).is_ok();
        let record = record::Layer {
            chain: chain.clone(),
            parent: parent.cloned(),
            bytes: unpacked.bytes,
            inodes: unpacked.inodes,
            opaque,
            boot: Some(self.folders.boot.clone()),
        };
        record::write(stage.directory(), &record).map_err(Error::io("write record of", &path))?;
        let mut state = self.state();
        if state.committed.contains_key(chain) {
            return Ok(());
        }
        state.stack(parent)?;
        stage
            .place(self.folders.committed.as_fd(), chain.digest().hex())
            .map_err(Error::io("renameat2", &path))?;
        state.insert_unsynced(record);
        Ok(())
    }

    /// Whether there are layers that a power cut would take.
    pub(crate) fn has_unsynced(&self) -> bool {
        self.state().committed.values().any(|layer| layer.unsynced.is_some())
    }

    /// Makes all that is committed durable: first the files, then the records that vouch for them.
    pub fn sync(&self) -> Result<(), Error> {
        let _syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let unsynced: Vec<(record::Layer, u64)> = {
            let state = self.state();
            let unsynced = |layer: &Committed| Some((layer.record.clone(), layer.unsynced?));
            state.committed.values().filter_map(unsynced).collect()
        };
        if unsynced.is_empty() {
            return Ok(());
        }
        let sync = || fs::syncfs(&self.folders.committed).map_err(Error::io("syncfs", &self.folders.path));
        // The kernel reports a failed write once and forgets the data: a later success would vouch for nothing,
        // so these layers stay what they are, good until the next boot.
        sync().inspect_err(|_| self.state().settle(&unsynced))?;
        for (layer, commit) in &unsynced {
            let path = self.folders.layer(&layer.chain);
            let directory = {
                let state = self.state();
                // It was removed meanwhile, and perhaps committed anew.
                if !state.is_unsynced(&layer.chain, *commit) {
                    continue;
                }
                open_directory(self.folders.committed.as_fd(), layer.chain.digest().hex())
                    .map_err(Error::io("openat", &path))?
            };
            let durable = record::Layer { boot: None, ..layer.clone() };
            match record::write(directory.as_fd(), &durable) {
                Err(_) if !self.state().is_unsynced(&layer.chain, *commit) => {}
                result => result.map_err(Error::io("write record of", &path))?,
            }
        }
        sync()?;
        self.state().settle(&unsynced);
        Ok(())
    }

    /// Deletes the topmost layer of the chain; missing is no error.
    pub fn remove_committed(&self, chain: &ChainId) -> Result<(), Error> {
        self.retire(chain)?.delete()
    }

    /// Moves the topmost layer of the chain out of the way of everyone, to be deleted; missing is no error.
    pub(crate) fn retire(&self, chain: &ChainId) -> Result<Retired, Error> {
        let folders = self.folders.clone();
        let mut state = self.state();
        if !state.committed.contains_key(chain) {
            return Ok(Retired { folders, name: None });
        }
        let above = state.committed.values().any(|layer| layer.record.parent.as_ref() == Some(chain));
        let active = state.active.values().any(|active| active.parent.as_ref() == Some(chain));
        if above || active {
            return Err(Error::LayerInUse { chain: chain.clone() });
        }
        let name = folders.retire(folders.committed.as_fd(), chain.digest().hex())?;
        state.committed.remove(chain);
        state.used.remove(chain);
        Ok(Retired { folders, name })
    }

    /// The chains that are there.
    pub fn committed(&self) -> Vec<ChainId> {
        self.state().committed.keys().cloned().collect()
    }

    /// The chains that active snapshots stand on, with all below them.
    pub fn in_use(&self) -> HashSet<ChainId> {
        self.state().in_use()
    }

    /// When a snapshot on exactly this chain was last made or removed by this process, in nanoseconds since 1970.
    pub(crate) fn last_use(&self, chain: &ChainId) -> Option<i64> {
        self.state().used.get(chain).copied()
    }

    /// What the topmost layer of the chain takes.
    pub fn layer_usage(&self, chain: &ChainId) -> Option<Usage> {
        let state = self.state();
        let record = &state.committed.get(chain)?.record;
        Some(Usage { bytes: record.bytes, inodes: record.inodes })
    }

    /// The directories of the chain's layers, the topmost first.
    pub fn layer_directories(&self, chain: &ChainId) -> Result<Vec<PathBuf>, Error> {
        let stack = self.state().stack(Some(chain))?;
        Ok(stack.iter().map(|chain| self.folders.layer(chain).join("fs")).collect())
    }

    /// Makes a writable snapshot on top of `parent`.
    pub fn prepare(&self, key: &str, parent: Option<&ChainId>) -> Result<Vec<Mount>, Error> {
        self.prepare_for(key, parent, Access::Write)
    }

    /// Makes a snapshot that shows the layers of `parent` and takes no writes.
    pub fn view(&self, key: &str, parent: &ChainId) -> Result<Vec<Mount>, Error> {
        self.prepare_for(key, Some(parent), Access::View)
    }

    /// Makes a snapshot on top of `parent`. It is in use, and so are its layers, until it is removed.
    pub fn prepare_for(
        &self,
        key: &str,
        parent: Option<&ChainId>,
        access: Access,
    ) -> Result<Vec<Mount>, Error> {
        check_key(key)?;
        let lower = {
            let mut state = self.state();
            if state.active.contains_key(key) {
                return Err(Error::Exists { key: key.to_owned() });
            }
            let lower = state.visible(parent)?;
            if lower.len() > LAYERS {
                return Err(Error::TooManyLayers { layers: lower.len() });
            }
            state.note_use(parent);
            // From now on the layers are in use.
            state.active.insert(key.to_owned(), Active::new(parent.cloned(), access));
            lower
        };
        let made = self.make_active(key, parent, access, &lower);
        let mut state = self.state();
        match made {
            Ok(project) => {
                if let Some(active) = state.active.get_mut(key) {
                    (active.project, active.ready) = (project, true);
                }
                Ok(overlay::mounts(&self.folders.directories(key, &lower), access))
            }
            Err(error) => {
                state.active.remove(key);
                Err(error)
            }
        }
    }

    /// The mounts of an active snapshot, as `prepare` gave them.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error> {
        let access = self.state().ready(key)?.access;
        Ok(overlay::mounts(&self.directories(key)?, access))
    }

    /// Where the parts of an active snapshot lie.
    pub fn directories(&self, key: &str) -> Result<Directories, Error> {
        let state = self.state();
        let active = state.ready(key)?;
        Ok(self.folders.directories(key, &state.visible(active.parent.as_ref())?))
    }

    /// Deletes an active snapshot with all that was written; missing is no error.
    pub fn remove(&self, key: &str) -> Result<(), Error> {
        let name = {
            let mut state = self.state();
            if !state.active.contains_key(key) {
                return Ok(());
            }
            state.ready(key)?;
            self.check_unmounted(key)?;
            let name = self.folders.retire(self.folders.active.as_fd(), key)?;
            let (parent, project) =
                state.active.remove(key).map_or((None, None), |active| (active.parent, active.project));
            state.note_use(parent.as_ref());
            if let (Some(quota), Some(project)) = (&self.quota, project) {
                // The next owner of the number begins with this too.
                let _ = quota.limit(self.folders.active.as_fd(), project, 0);
            }
            name
        };
        name.map_or(Ok(()), |name| self.folders.delete(&name))
    }

    /// What was written into an active snapshot: disk blocks, hard links counted once. The file system knows, or a walk
    /// finds out; a walk that took long is not repeated before twenty times that have passed.
    pub fn usage(&self, key: &str) -> Result<Usage, Error> {
        let (access, project, counted) = {
            let state = self.state();
            let active = state.ready(key)?;
            (active.access, active.project, active.counted)
        };
        if access == Access::View {
            return Ok(Usage::default());
        }
        if let Some(project) = project
            && let Some(usage) = self.project_usage(key, project)?
        {
            return Ok(usage);
        }
        if let Some(counted) = counted.filter(|counted| counted.is_good()) {
            return Ok(counted.usage);
        }
        let start = Instant::now();
        let usage = self.walk(key)?;
        if let Some(active) = self.state().active.get_mut(key) {
            active.counted = Some(Counted { usage, at: Instant::now(), cost: start.elapsed() });
        }
        Ok(usage)
    }

    /// What was written into all active snapshots together, with the same words for walks.
    pub fn total_usage(&self) -> Result<Usage, Error> {
        let mut total = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counted) = total.filter(|counted| counted.is_good()) {
            return Ok(counted.usage);
        }
        let (start, mut sum) = (Instant::now(), Usage::default());
        for key in self.keys() {
            match self.usage(&key) {
                Ok(written) => {
                    sum.bytes += written.bytes;
                    sum.inodes += written.inodes;
                }
                // Removed since the keys were listed.
                Err(_) if self.state().ready(&key).is_err() => {}
                Err(error) => return Err(error),
            }
        }
        *total = Some(Counted { usage: sum, at: Instant::now(), cost: start.elapsed() });
        Ok(sum)
    }

    fn walk(&self, key: &str) -> Result<Usage, Error> {
        let path = self.folders.path.join("active").join(key).join("fs");
        let upper = open_directory(self.folders.active.as_fd(), key)
            .and_then(|snapshot| open_directory(snapshot.as_fd(), "fs"))
            .map_err(Error::io("openat", &path))?;
        usage::count(upper.as_fd()).map_err(Error::io("count", &path))
    }

    /// The keys of all active snapshots.
    pub fn keys(&self) -> Vec<String> {
        self.state().active.iter().filter(|(_, active)| active.ready).map(|(key, _)| key.clone()).collect()
    }

    fn make_active(
        &self,
        key: &str,
        parent: Option<&ChainId>,
        access: Access,
        lower: &[ChainId],
    ) -> Result<Option<u32>, Error> {
        let path = self.folders.path.join("active").join(key);
        let stage = Stage::new(self.folders.clone(), Purpose::Snapshot)?;
        if let Some(top) = lower.first() {
            // Merged, the root shows the metadata of the topmost directory: that is the writable one.
            inherit::copy_root(&self.folders, top, stage.root())?;
        }
        let make = |name| {
            make_directory(stage.directory(), name, 0o700).map_err(Error::io("mkdirat", path.join(name)))
        };
        let (work, _merged) = (make("work")?, make("merged")?);
        let project = self.new_project(access);
        if let Some(project) = project {
            // Both: nothing can be renamed from one project into another.
            self.assign(project, &[stage.root(), work.as_fd()])?;
        }
        let record = record::Active { key: key.to_owned(), parent: parent.cloned(), access, project };
        record::write(stage.directory(), &record).map_err(Error::io("write record of", &path))?;
        stage.place(self.folders.active.as_fd(), key).map_err(Error::io("renameat2", &path))?;
        Ok(project)
    }

    /// Refuses while something is mounted here: deleting beneath a mount is deleting something else.
    fn check_unmounted(&self, key: &str) -> Result<(), Error> {
        for part in ["merged", "fs"] {
            let (flags, within) = (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::NO_XDEV);
            match fs::openat2(&self.folders.active, format!("{key}/{part}"), flags, Mode::empty(), within) {
                Err(Errno::XDEV) => return Err(Error::Mounted { key: key.to_owned() }),
                Ok(_) | Err(Errno::NOENT) => {}
                Err(errno) => {
                    return Err(Error::io("openat2", self.folders.path.join("active").join(key))(errno));
                }
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that could panic leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Folders {
    fn layer(&self, chain: &ChainId) -> PathBuf {
        self.path.join("committed").join(chain.digest().hex())
    }

    fn directories(&self, key: &str, lower: &[ChainId]) -> Directories {
        let active = self.path.join("active").join(key);
        Directories {
            lower: lower.iter().map(|chain| self.layer(chain).join("fs")).collect(),
            upper: active.join("fs"),
            work: active.join("work"),
            merged: active.join("merged"),
        }
    }

    /// Moves `name` out of the way of everyone; its new name, or none if it was not there.
    fn retire(&self, parent: std::os::fd::BorrowedFd<'_>, name: &str) -> Result<Option<String>, Error> {
        let moved =
            self.fresh(self.removing.as_fd(), "removing", |removing, fresh| {
                match fs::renameat_with(parent, name, removing, fresh, RenameFlags::NOREPLACE) {
                    Ok(()) => Ok(true),
                    Err(Errno::NOENT) => Ok(false),
                    Err(errno) => Err(errno),
                }
            })?;
        Ok(moved.1.then_some(moved.0))
    }

    /// Deletes what was retired. What fails here is tried again when the snapshots are opened.
    fn delete(&self, name: &str) -> Result<(), Error> {
        let path = self.path.join("removing").join(name);
        let name = CString::new(name).map_err(Error::io("delete", &path))?;
        remove_tree(self.removing.as_fd(), &name, &mut |_, _| {}).map_err(Error::io("delete", &path))
    }
}

/// Keys become file names.
fn check_key(key: &str) -> Result<(), Error> {
    let fit = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let valid = (1..=128).contains(&key.len())
        && key.bytes().all(fit)
        && key.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
    if valid { Ok(()) } else { Err(Error::InvalidKey { key: key.chars().take(160).collect() }) }
}
