//! Stages: where something is put together before it gets its name.

use std::{
    ffi::CString,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use rustix::{
    fs::{self, IFlags, Mode, OFlags},
    io::Errno,
};
use tracing::{debug, warn};

use super::{Error, Folders};
use crate::layer::remove_tree;

/// A directory for one layer, on the file system of the snapshots; removed when dropped.
#[derive(Debug)]
pub struct Stage {
    folders: Arc<Folders>,
    purpose: Purpose,
    name: String,
    directory: OwnedFd,
    root: OwnedFd,
    armed: bool,
}

/// What a stage is to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Layer,
    Snapshot,
}

impl Stage {
    pub(super) fn new(folders: Arc<Folders>, purpose: Purpose) -> Result<Stage, Error> {
        let (parent, folder) = folders.stages(purpose);
        let (name, directory) =
            folders.fresh(parent, folder, |parent, name| make_directory(parent, name, 0o700))?;
        let path = folders.path.join(folder).join(&name);
        // From here on the guard removes what was made.
        let placeholder = directory.try_clone().map_err(Error::io("fcntl", &path))?;
        let mut stage = Stage { folders, purpose, name, directory, root: placeholder, armed: true };
        stage.root =
            make_directory(stage.directory.as_fd(), "fs", 0o755).map_err(Error::io("mkdirat", &path))?;
        Ok(stage)
    }

    /// Where the layer is to be unpacked.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// What holds the root, and whatever else is to be moved with it.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Moves all to `name` in `parent`. Whatever fails, nothing is left.
    pub(super) fn place(mut self, parent: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
        let (staging, _) = self.folders.stages(self.purpose);
        fs::renameat_with(staging, &self.name, parent, name, fs::RenameFlags::NOREPLACE)?;
        self.armed = false;
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let Ok(name) = CString::new(self.name.as_str()) else { return };
        if let Err(error) = remove_tree(self.folders.stages(self.purpose).0, &name, &mut |_, _| {}) {
            warn!(%error, name = self.name, "stage not removed");
        }
    }
}

/// Makes a directory with exactly this mode, whatever the umask, and opens it.
pub(super) fn make_directory(parent: BorrowedFd<'_>, name: &str, mode: u32) -> rustix::io::Result<OwnedFd> {
    fs::mkdirat(parent, name, Mode::from(mode))?;
    let directory = open_directory(parent, name)?;
    fs::fchmod(&directory, Mode::from(mode))?;
    Ok(directory)
}

/// Opens a directory by one component, without following a link.
pub(super) fn open_directory(parent: BorrowedFd<'_>, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(parent, name, flags, Mode::empty())
}

impl Folders {
    /// The folders beneath `root`, made where they are missing and closed to everyone else.
    pub(super) fn open(root: &Path, boot: String) -> Result<Folders, Error> {
        let top = match make_at(root) {
            Err(Errno::EXIST) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let top = fs::open(root, flags, Mode::empty()).map_err(Error::io("open", root))?;
                fs::fchmod(&top, Mode::from(0o700)).map_err(Error::io("fchmod", root))?;
                top
            }
            result => result.map_err(Error::io("mkdir", root))?,
        };
        let path = root.canonicalize().map_err(Error::io("realpath", root))?;
        if path.to_str().is_none() {
            return Err(Error::io("open", &path)(Errno::ILSEQ));
        }
        let folder = |name| {
            let opened = match make_directory(top.as_fd(), name, 0o700) {
                Err(Errno::EXIST) => open_directory(top.as_fd(), name).and_then(|folder| {
                    fs::fchmod(&folder, Mode::from(0o700))?;
                    Ok(folder)
                }),
                result => result,
            };
            opened.map_err(Error::io("open", path.join(name)))
        };
        let folders = Folders {
            committed: folder("committed")?,
            active: folder("active")?,
            unpacking: folder("unpacking")?,
            staging: folder("staging")?,
            removing: folder("removing")?,
            path,
            // Other names in every process: where ext4 puts a layer depends on its name.
            next: SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64).into(),
            boot,
        };
        folders.spread_layers();
        Ok(folders)
    }

    /// Has ext4 put each layer into a part of the disk of its own, as if it were a top-level directory. Next to
    /// each other, layers that are unpacked at the same time take inodes from one bitmap, and where an image was
    /// deleted lately every new file searches past its inodes, which ext4 does not give out again for minutes
    /// (recently_deleted in fs/ext4/ialloc.c). Other file systems may not know the flag, and need not.
    fn spread_layers(&self) {
        let spread = fs::ioctl_getflags(&self.unpacking)
            .and_then(|flags| fs::ioctl_setflags(&self.unpacking, flags | IFlags::TOPDIR));
        if let Err(errno) = spread {
            debug!(%errno, "layers are unpacked next to each other");
        }
    }

    /// Where stages of one kind are put together.
    pub(super) fn stages(&self, purpose: Purpose) -> (BorrowedFd<'_>, &'static str) {
        match purpose {
            Purpose::Layer => (self.unpacking.as_fd(), "unpacking"),
            Purpose::Snapshot => (self.staging.as_fd(), "staging"),
        }
    }

    /// Calls `make` with names that were not used before until one is free.
    pub(super) fn fresh<T>(
        &self,
        parent: BorrowedFd<'_>,
        folder: &str,
        make: impl Fn(BorrowedFd<'_>, &str) -> rustix::io::Result<T>,
    ) -> Result<(String, T), Error> {
        loop {
            let name = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
            match make(parent, &name) {
                Err(Errno::EXIST) => {}
                Ok(made) => return Ok((name, made)),
                Err(errno) => return Err(Error::io("create", self.path.join(folder).join(name))(errno)),
            }
        }
    }
}

fn make_at(path: &Path) -> rustix::io::Result<OwnedFd> {
    fs::mkdir(path, Mode::from(0o700))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = fs::open(path, flags, Mode::empty())?;
    fs::fchmod(&directory, Mode::from(0o700))?;
    Ok(directory)
}
