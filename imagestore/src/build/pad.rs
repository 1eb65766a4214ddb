//! Snapshots while a step works in them: mounted, looked at, made a layer of, and gone again whatever happens.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags};

use super::{Error, Runner, tree::Directory};
use crate::{ChainId, DiffOptions, commit::commit_layer, gc::Lease, image::Layer, snapshot::Access, store};

/// A snapshot that goes away with its guard.
pub(super) struct Pad {
    store: Arc<store::Inner>,
    runner: Arc<dyn Runner>,
    key: String,
    mounted: Option<PathBuf>,
}

impl Pad {
    /// Makes a snapshot on top of a chain, or of nothing.
    pub(super) fn new(
        store: &Arc<store::Inner>,
        runner: &Arc<dyn Runner>,
        key: String,
        parent: Option<&ChainId>,
        access: Access,
    ) -> Result<Pad, Error> {
        store.snapshots.prepare_for(&key, parent, access)?;
        Ok(Pad { store: store.clone(), runner: runner.clone(), key, mounted: None })
    }

    /// Mounts it, and says where.
    pub(super) fn mount(&mut self) -> Result<PathBuf, Error> {
        let mounts = self.store.snapshots.mounts(&self.key)?;
        let at = self.store.snapshots.directories(&self.key)?.merged;
        self.runner.mount(&mounts, &at)?;
        self.mounted = Some(at.clone());
        Ok(at)
    }

    /// Where it is mounted, or is to be.
    pub(super) fn merged(&self) -> Result<PathBuf, Error> {
        Ok(self.store.snapshots.directories(&self.key)?.merged)
    }

    /// The directory that it writes to, without what is below.
    pub(super) fn upper(&self) -> Result<OwnedFd, Error> {
        open(&self.store.snapshots.directories(&self.key)?.upper)
    }

    /// Takes the mount away, if there is one.
    pub(super) fn unmount(&mut self) -> Result<(), Error> {
        match self.mounted.take() {
            Some(at) => self.runner.unmount(&at).inspect_err(|_| self.mounted = Some(at)),
            None => Ok(()),
        }
    }

    /// Makes a layer of what was written; none if nothing was.
    pub(super) fn commit(
        &mut self,
        options: &DiffOptions,
        lease: &mut Lease,
    ) -> Result<Option<Layer>, Error> {
        self.unmount()?;
        let layer = commit_layer(&self.store, &self.key, options, lease)?;
        self.store.settle_later();
        Ok(layer)
    }
}

impl Drop for Pad {
    fn drop(&mut self) {
        let gone = self.unmount().and_then(|()| Ok(self.store.snapshots.remove(&self.key)?));
        if let Err(error) = gone {
            let error = crate::error::chain(&error);
            tracing::warn!(snapshot.key = %self.key, error, "what a step wrote is left until the next start");
        }
    }
}

/// The files of a chain, to be looked at for as long as somebody holds this.
pub(super) struct View {
    /// Its descriptor would keep the mount busy.
    tree: Option<Directory>,
    at: PathBuf,
    _pad: Pad,
}

impl View {
    /// Mounts a chain for reading; or for writing what is thrown away.
    pub(super) fn new(
        store: &Arc<store::Inner>,
        runner: &Arc<dyn Runner>,
        key: String,
        chain: &ChainId,
        writable: bool,
    ) -> Result<View, Error> {
        let access = if writable { Access::Volatile } else { Access::View };
        let mut pad = Pad::new(store, runner, key, Some(chain), access)?;
        let at = pad.mount()?;
        Ok(View { tree: Some(Directory::new(open(&at)?)), at, _pad: pad })
    }

    /// The files.
    pub(super) fn tree(&self) -> &Directory {
        self.tree.as_ref().expect("it is taken when the view is dropped")
    }

    /// Where they are.
    pub(super) fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.tree = None;
    }
}

/// Opens a directory of our own.
pub(super) fn open(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(Error::io("open", path.as_os_str().as_encoded_bytes()))
}
