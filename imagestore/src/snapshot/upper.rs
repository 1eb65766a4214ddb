//! What stands above and below in an active snapshot: its own directory, and what the layers beneath it show.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    fs::{self, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use super::{Error, Folders, Snapshots, open_directory};
use crate::{ChainId, layer::OPAQUE};

/// The writable directory of a snapshot, with the layers under it.
#[derive(Debug)]
pub(crate) struct Upper {
    directory: OwnedFd,
    folders: Arc<Folders>,
    /// The visible layers, from the top.
    lower: Vec<ChainId>,
    parent: Option<ChainId>,
}

impl Snapshots {
    /// The directory that an active snapshot writes to. Its layers stay as long as the snapshot does.
    pub(crate) fn upper(&self, key: &str) -> Result<Upper, Error> {
        let (parent, lower) = {
            let state = self.state();
            let parent = state.ready(key)?.parent.clone();
            let lower = state.visible(parent.as_ref())?;
            (parent, lower)
        };
        let path = self.folders.path.join("active").join(key).join("fs");
        let directory = open_directory(self.folders.active.as_fd(), key)
            .and_then(|snapshot| open_directory(snapshot.as_fd(), "fs"))
            .map_err(Error::io("openat", path))?;
        Ok(Upper { directory, folders: self.folders.clone(), lower, parent })
    }
}

impl Upper {
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The chain that the snapshot stands on.
    pub(crate) fn parent(&self) -> Option<&ChainId> {
        self.parent.as_ref()
    }

    /// What the layers show at `path`, if anything; empty for the root.
    pub(crate) fn look_below(&self, path: &[u8]) -> rustix::io::Result<Option<Stat>> {
        for chain in &self.lower {
            let root = format!("{}/fs", chain.digest().hex());
            match self.stat(&root, path) {
                Ok(stat) if is_whiteout(&stat) => return Ok(None),
                Ok(stat) => return Ok(Some(stat)),
                // A file, link or whiteout in its way hides whatever is further down.
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(Errno::NOENT) if self.hides(&root, path)? => return Ok(None),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(None)
    }

    /// Whether a directory on the way to `path` hides those of the layers below this one.
    fn hides(&self, root: &str, path: &[u8]) -> rustix::io::Result<bool> {
        for end in path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at) {
            let directory = match self.open(root, &path[..end], OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(directory) => directory,
                Err(Errno::NOENT) => return Ok(false),
                Err(errno) => return Err(errno),
            };
            if fs::fgetxattr(&directory, OPAQUE, &mut [0_u8; 1][..]) == Ok(1) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn stat(&self, root: &str, path: &[u8]) -> rustix::io::Result<Stat> {
        fs::fstat(self.open(root, path, OFlags::PATH)?)
    }

    fn open(&self, root: &str, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let whole =
            if path.is_empty() { root.as_bytes().to_vec() } else { [root.as_bytes(), b"/", path].concat() };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        fs::openat2(&self.folders.committed, whole, flags, Mode::empty(), beneath)
    }
}

pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}
