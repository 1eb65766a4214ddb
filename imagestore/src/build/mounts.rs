//! Cache mounts: directories of `RUN --mount=type=cache` that outlive builds.
//!
//! ```text
//! mounts/HEX-N/{fs,record.json}     HEX: the digest of the id; N: which of several, for those who share nothing
//! ```
//!
//! A directory is in use while a step has it. `shared` takes the first one whoever has it, `locked` waits for it, and
//! `private` takes the first that nobody has, or a new one. Whoever makes one has it alone until it is filled, and it is
//! gone again if it never is. Content belongs to the commands that wrote it: it is never
//! resolved by path here, only mounted whole, counted and deleted beneath its descriptor.

use std::{
    collections::HashMap,
    ffi::CString,
    fs::{self, DirBuilder},
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{Error, Sharing, now};
use crate::{Digest, layer::remove_tree, snapshot};

/// All of a builder's.
#[derive(Debug)]
pub(super) struct Mounts {
    folder: PathBuf,
    state: Mutex<HashMap<String, Mount>>,
    freed: Notify,
}

#[derive(Clone, Debug)]
struct Mount {
    record: Record,
    users: usize,
    /// Whether whoever has it wants to have it alone.
    alone: bool,
    /// What is in it; none if that is to be counted: only its users change it.
    bytes: Option<u64>,
}

/// What is kept of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// As the Dockerfile has it, with what it began with.
    pub(super) id: String,
    /// Nanoseconds since 1970.
    pub(super) created: i64,
    /// Likewise.
    pub(super) used: i64,
}

/// One that is in use, until it is dropped; then it is gone if it is new and was not filled.
#[derive(Debug)]
pub(super) struct Held {
    mounts: Arc<Mounts>,
    name: String,
    /// It is new, and waits to be filled.
    pub(super) fresh: bool,
}

impl Mounts {
    /// Opens what is below `root`, the builder's folder.
    pub(super) fn open(root: &Path) -> Result<Mounts, Error> {
        let folder = root.join("mounts");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(Error::io("mkdir", b"mounts"))?;
        let mut state = HashMap::new();
        for entry in fs::read_dir(&folder).map_err(Error::io("read", b"mounts"))?.flatten() {
            let record = fs::read(entry.path().join("record.json")).ok();
            let record = record.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            match (entry.file_name().into_string(), record) {
                (Ok(name), Some(record)) => {
                    state.insert(name, Mount { record, users: 0, alone: false, bytes: None });
                }
                (Ok(name), None) => drop(delete(&folder, &name)),
                _ => {}
            }
        }
        Ok(Mounts { folder, state: Mutex::new(state), freed: Notify::new() })
    }

    /// Takes a directory into use; waits where another step has to be done with it first.
    pub(super) async fn take(self: &Arc<Self>, id: &str, sharing: Sharing) -> Result<Held, Error> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(held) = self.try_take(id, sharing)? {
                return Ok(held);
            }
            freed.await;
        }
    }

    fn try_take(self: &Arc<Self>, id: &str, sharing: Sharing) -> Result<Option<Held>, Error> {
        let mut state = self.state();
        let name = |number: usize| format!("{}-{number}", Digest::of(id.as_bytes()).hex());
        let mut number = 0;
        loop {
            let now = now();
            let Some(mount) = state.get_mut(&name(number)) else { break };
            let free = mount.users == 0 || sharing == Sharing::Shared && !mount.alone;
            if free {
                mount.users += 1;
                mount.alone = sharing != Sharing::Shared;
                mount.record.used = now;
                let record = mount.record.clone();
                drop(state);
                self.write(&name(number), &record);
                return Ok(Some(Held { mounts: self.clone(), name: name(number), fresh: false }));
            }
            if sharing != Sharing::Private {
                return Ok(None);
            }
            number += 1;
        }
        let (name, now) = (name(number), now());
        let path = self.folder.join(&name);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .and_then(|()| DirBuilder::new().mode(0o755).create(path.join("fs")))
            .map_err(Error::io("mkdir", id.as_bytes()))?;
        let record = Record { id: id.to_owned(), created: now, used: now };
        self.write(&name, &record);
        state.insert(name.clone(), Mount { record, users: 1, alone: true, bytes: None });
        Ok(Some(Held { mounts: self.clone(), name, fresh: true }))
    }

    /// Name, record, bytes, and whether it is in use.
    pub(super) fn list(&self) -> Vec<(String, Record, u64, bool)> {
        let all: Vec<_> = self.state().iter().map(|(name, mount)| (name.clone(), mount.clone())).collect();
        let told = |(name, mount): (String, Mount)| {
            let bytes = mount.bytes.unwrap_or_else(|| self.measure(&name));
            (name, mount.record, bytes, mount.users > 0)
        };
        all.into_iter().map(told).collect()
    }

    /// Counts what is in one, and keeps that in mind unless somebody has it.
    fn measure(&self, name: &str) -> u64 {
        let used = self.state().get(name).map(|mount| mount.record.used);
        let directory = fs::File::open(self.folder.join(name).join("fs")).ok();
        let usage = directory.and_then(|directory| snapshot::count(directory.as_fd()).ok());
        let bytes = usage.map_or(0, |usage| usage.bytes);
        if let Some(mount) = self.state().get_mut(name)
            && mount.users == 0
            && Some(mount.record.used) == used
        {
            mount.bytes = Some(bytes);
        }
        bytes
    }

    /// Deletes one, unless it is in use. Says whether it is gone.
    pub(super) fn remove(&self, name: &str) -> Result<bool, Error> {
        let mut state = self.state();
        if state.get(name).is_none_or(|mount| mount.users > 0) {
            return Ok(false);
        }
        state.remove(name);
        // Under the lock: nobody may begin one of this name meanwhile.
        delete(&self.folder, name)?;
        Ok(true)
    }

    fn write(&self, name: &str, record: &Record) {
        let path = self.folder.join(name).join("record.json");
        let written = serde_json::to_vec(record)
            .map_err(std::io::Error::from)
            .and_then(|bytes| fs::write(path.with_extension("tmp"), bytes))
            .and_then(|()| fs::rename(path.with_extension("tmp"), &path));
        if let Err(error) = written {
            tracing::warn!(%error, "a cache mount is not kept beyond this process");
        }
    }

    fn state(&self) -> MutexGuard<'_, HashMap<String, Mount>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// What is to be mounted.
    pub(super) fn path(&self) -> PathBuf {
        self.mounts.folder.join(&self.name).join("fs")
    }

    /// What it begins with is in it; from now on it is shared with others if it may be.
    pub(super) fn filled(mut self, sharing: Sharing) -> Held {
        self.fresh = false;
        if let Some(mount) = self.mounts.state().get_mut(&self.name) {
            mount.alone = sharing != Sharing::Shared;
        }
        self.mounts.freed.notify_waiters();
        self
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(mount) = self.mounts.state().get_mut(&self.name) {
            mount.users -= 1;
            mount.bytes = None;
            mount.alone &= mount.users > 0;
        }
        if self.fresh
            && let Err(error) = self.mounts.remove(&self.name)
        {
            tracing::warn!(%error, "a cache mount that could not be filled is left");
        }
        self.mounts.freed.notify_waiters();
    }
}

fn delete(folder: &Path, name: &str) -> Result<(), Error> {
    let parent = fs::File::open(folder).map_err(Error::io("open", b"mounts"))?;
    let file = CString::new(name).map_err(|_| Error::Invalid(format!("{name:?} is no name")))?;
    remove_tree(parent.as_fd(), &file, &mut |_, _| {}).map_err(Error::io("delete", name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn waits(mounts: &Arc<Mounts>, sharing: Sharing) -> bool {
        tokio::time::timeout(Duration::from_millis(20), mounts.take("x", sharing)).await.is_err()
    }

    #[tokio::test]
    async fn sharing_is_as_it_is_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let mounts = Arc::new(Mounts::open(root.path()).unwrap());
        let first = mounts.take("x", Sharing::Shared).await.unwrap();
        assert!(first.fresh && waits(&mounts, Sharing::Shared).await, "nobody sees one that is not filled");
        let first = first.filled(Sharing::Shared);
        let second = mounts.take("x", Sharing::Shared).await.unwrap();
        assert!(!second.fresh && first.path() == second.path());
        assert!(waits(&mounts, Sharing::Locked).await);
        let private = mounts.take("x", Sharing::Private).await.unwrap();
        assert!(private.fresh && private.path() != first.path());
        let path = first.path();
        drop((first, second));
        let locked = mounts.take("x", Sharing::Locked).await.unwrap();
        assert_eq!(locked.path(), path);
        assert!(waits(&mounts, Sharing::Locked).await && waits(&mounts, Sharing::Shared).await);
        assert_ne!(mounts.take("y", Sharing::Locked).await.unwrap().path(), path);
        assert!(!mounts.remove(path.parent().unwrap().file_name().unwrap().to_str().unwrap()).unwrap());
    }

    #[tokio::test]
    async fn content_outlives_the_process_until_it_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let mounts = Arc::new(Mounts::open(root.path()).unwrap());
        drop(mounts.take("x", Sharing::Shared).await.unwrap());
        assert_eq!(mounts.list(), [], "one that was not filled is gone");
        let held = mounts.take("x", Sharing::Shared).await.unwrap().filled(Sharing::Shared);
        fs::write(held.path().join("file"), [1; 5000]).unwrap();
        let path = held.path();
        drop(held);
        assert!(mounts.list()[0].2 >= 5000);
        fs::write(path.join("file"), []).unwrap();
        assert!(mounts.list()[0].2 >= 5000, "what nobody has is counted once");
        drop(mounts.take("x", Sharing::Shared).await.unwrap());
        assert!(mounts.list()[0].2 < 5000);
        fs::write(path.join("file"), [1; 5000]).unwrap();
        let mounts = Arc::new(Mounts::open(root.path()).unwrap());
        let listed = mounts.list();
        assert_eq!((listed.len(), listed[0].1.id.as_str(), listed[0].3), (1, "x", false));
        assert!(listed[0].2 >= 5000);
        assert!(mounts.remove(&listed[0].0).unwrap());
        assert_eq!(fs::read_dir(root.path().join("mounts")).unwrap().count(), 0);
    }
}
