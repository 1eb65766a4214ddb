//! Directories that a layer uses without describing them.
//!
//! Merged, a directory shows the metadata of the topmost layer that has it. A layer that brings `tmp/x` but no
//! entry for `tmp` would so change the mode of /tmp: such directories get owner, mode and time from below.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{self, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid},
    io::Errno,
};

use super::{Error, Folders, Stage, open_directory};
use crate::ChainId;

/// Gives the `implied` directories of a layer what the `lower` layers, from the top, say of them.
pub(super) fn describe_implied(
    folders: &Folders,
    stage: &Stage,
    lower: &[ChainId],
    implied: &[Vec<u8>],
) -> Result<(), Error> {
    if lower.is_empty() || implied.is_empty() {
        return Ok(());
    }
    let roots = lower.iter().map(|chain| open_root(folders, chain)).collect::<Result<Vec<_>, _>>()?;
    for path in implied {
        let Some(stat) = find(&roots, path) else { continue };
        let failed = || Error::io("describe", String::from_utf8_lossy(path).into_owned());
        match open_beneath(stage.root(), path) {
            Ok(directory) => describe(directory.as_fd(), &stat).map_err(failed())?,
            // A later entry took its place.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(failed()(errno)),
        }
    }
    Ok(())
}

/// Gives `directory` the metadata of the root of the layer.
pub(super) fn copy_root(folders: &Folders, chain: &ChainId, directory: BorrowedFd<'_>) -> Result<(), Error> {
    let root = open_root(folders, chain)?;
    let copied = fs::fstat(&root).and_then(|stat| describe(directory, &stat));
    copied.map_err(Error::io("describe", folders.layer(chain)))
}

fn open_root(folders: &Folders, chain: &ChainId) -> Result<OwnedFd, Error> {
    open_directory(folders.committed.as_fd(), chain.digest().hex())
        .and_then(|layer| open_directory(layer.as_fd(), "fs"))
        .map_err(Error::io("openat", folders.layer(chain)))
}

/// The topmost directory at `path`, unless something else hides it.
fn find(roots: &[OwnedFd], path: &[u8]) -> Option<Stat> {
    for root in roots {
        match open_beneath(root.as_fd(), path) {
            Ok(directory) => return fs::fstat(&directory).ok(),
            Err(Errno::NOENT) => {}
            // A file, link or whiteout in its way.
            Err(_) => return None,
        }
    }
    None
}

fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    fs::openat2(root, path, flags, Mode::empty(), beneath)
}

fn describe(directory: BorrowedFd<'_>, stat: &Stat) -> rustix::io::Result<()> {
    debug_assert_eq!(FileType::from_raw_mode(stat.st_mode), FileType::Directory);
    fs::fchown(directory, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fs::fchmod(directory, Mode::from(stat.st_mode & 0o7777))?;
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() };
    fs::futimens(directory, &Timestamps { last_access: time, last_modification: time })
}
