//! Paths of a container, resolved beneath its root.
//!
//! The kernel resolves every path with the root's descriptor as `/`: neither `..`, nor a symlink,
//! nor a rename by somebody who shares a volume leads out, and magic links of procfs are refused.
//! What is missing is made at the descriptor of its parent, never by a path. Symlinks that stay
//! inside are followed, dangling ones too.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::sys::{self, file};

/// As many symlinks as the kernel follows.
const MAX_LINKS: usize = 40;

const CONFINED: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Opens what is there.
pub(crate) fn open(root: impl AsFd, path: &Path, flags: OFlags) -> sys::Result<OwnedFd> {
    file::openat2(root, relative(path), flags, CONFINED)
}

/// Opens what is there, on a path without a symlink.
pub(crate) fn open_plain(root: impl AsFd, path: &Path, flags: OFlags) -> sys::Result<OwnedFd> {
    file::openat2(root, relative(path), flags, CONFINED.union(ResolveFlags::NO_SYMLINKS))
}

/// An `O_PATH` descriptor of what is there; None when nothing is.
pub(crate) fn find(root: impl AsFd, path: &Path) -> sys::Result<Option<OwnedFd>> {
    match open(root, path, OFlags::PATH) {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.errno(), Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An `O_PATH` descriptor of a directory, made with its parents when it is missing.
pub(crate) fn directory(root: impl AsFd, path: &Path) -> sys::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match open(&root, path, flags) {
        Err(error) if error.errno() == Errno::NOENT => make(&root, path, FileType::Directory),
        result => result,
    }
}

/// An `O_PATH` descriptor of something that is no directory: what is there, or else a new empty file.
pub(crate) fn file(root: impl AsFd, path: &Path) -> sys::Result<OwnedFd> {
    match open(&root, path, OFlags::PATH) {
        Err(error) if error.errno() == Errno::NOENT => make(&root, path, FileType::RegularFile),
        result => result,
    }
}

/// The directory that holds `path` (made when it is missing) and the last name of `path`.
pub(crate) fn parent(root: impl AsFd, path: &Path) -> sys::Result<(OwnedFd, &OsStr)> {
    let Some(name) = path.file_name() else {
        return Err(sys::Error::new(format!("split {path:?}"), Errno::INVAL));
    };
    Ok((directory(root, path.parent().unwrap_or(Path::new("")))?, name))
}

/// Walks down and makes what is missing; the last component becomes a file of `kind`.
fn make(root: &impl AsFd, path: &Path, kind: FileType) -> sys::Result<OwnedFd> {
    let mut ahead: VecDeque<_> = components(path);
    let mut done = PathBuf::from(".");
    let mut links = 0;
    while let Some(name) = ahead.pop_front() {
        let last = ahead.is_empty();
        let flags =
            if last && kind != FileType::Directory { OFlags::PATH } else { OFlags::PATH | OFlags::DIRECTORY };
        let next = done.join(&name);
        match file::openat2(root, &next, flags, CONFINED) {
            Ok(found) if last => return Ok(found),
            Ok(_) => {
                done = next;
                continue;
            }
            Err(error) if error.errno() != Errno::NOENT => return Err(error),
            Err(_) => {}
        }
        let holder = file::openat2(root, &done, OFlags::PATH | OFlags::DIRECTORY, CONFINED)?;
        let made = if last && kind != FileType::Directory {
            file::mknodat(&holder, &name, kind, 0o644, (0, 0))?
        } else {
            file::mkdirat(&holder, &name, 0o755)?
        };
        if !made {
            // There was nothing a moment ago, and still a name is taken: a dangling symlink, whose target is to be made.
            match file::readlinkat(&holder, &name) {
                Ok(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(sys::Error::new(format!("resolve {path:?}"), Errno::LOOP));
                    }
                    let target = PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes()));
                    if target.is_absolute() {
                        done = PathBuf::from(".");
                    }
                    for component in components(&target).into_iter().rev() {
                        ahead.push_front(component);
                    }
                    continue;
                }
                // Somebody else made it meanwhile, which is as good.
                Err(error) if error.errno() == Errno::INVAL => {}
                Err(error) => return Err(error),
            }
        }
        let found = file::openat2(root, &next, flags, CONFINED)?;
        if last {
            return Ok(found);
        }
        done = next;
    }
    file::openat2(root, &done, OFlags::PATH, CONFINED)
}

/// The names of a path, `..` among them, from the root or wherever it starts.
fn components(path: &Path) -> VecDeque<std::ffi::OsString> {
    path.components()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| component.as_os_str().to_owned())
        .collect()
}

/// The kernel takes an absolute path relative to the root too; an empty one it refuses.
fn relative(path: &Path) -> &Path {
    if path.as_os_str().as_bytes().is_empty() { Path::new(".") } else { path }
}

#[cfg(test)]
mod tests;
