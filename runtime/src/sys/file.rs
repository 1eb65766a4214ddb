//! Files: resolution beneath a descriptor, creation at a descriptor, the working directory.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, StatxAttributes, StatxFlags};
use rustix::fs::{Gid, Uid};

use super::{Result, named};

/// `openat2(directory, path, flags, resolve)`.
pub(crate) fn openat2(
    directory: impl AsFd,
    path: impl AsRef<Path>,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd> {
    let path = path.as_ref();
    // The kernel may ask to try again when a rename elsewhere raced with the resolution of `..`.
    let mut attempts = 0;
    loop {
        let result = rustix::fs::openat2(&directory, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
        if !matches!(result, Err(rustix::io::Errno::AGAIN)) || attempts == 64 {
            return named(result, || format!("openat2({path:?}, {flags:?}, {resolve:?})"));
        }
        attempts += 1;
    }
}

/// `openat(directory, path, O_PATH | flags)`, for a path that whoever runs this process chose.
pub(crate) fn open_path_at(directory: impl AsFd, path: impl AsRef<Path>, flags: OFlags) -> Result<OwnedFd> {
    let path = path.as_ref();
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    named(rustix::fs::openat(directory, path, flags, Mode::empty()), || {
        format!("openat({path:?}, {flags:?})")
    })
}

/// `statx(directory, path, AT_NO_AUTOMOUNT)`: whether a mount begins there (`STATX_ATTR_MOUNT_ROOT`, Linux 5.8).
pub(crate) fn is_mounted(directory: impl AsFd, path: impl AsRef<Path>) -> Result<bool> {
    let path = path.as_ref();
    let result = rustix::fs::statx(directory, path, AtFlags::NO_AUTOMOUNT, StatxFlags::empty());
    named(result, || format!("statx({path:?})"))
        .map(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// `fstat(fd)`.
pub(crate) fn fstat(fd: impl AsFd) -> Result<Stat> {
    named(rustix::fs::fstat(fd), || "fstat()")
}

/// `mkdirat(directory, name, mode)`; true when it was made, false when something has the name already.
pub(crate) fn mkdirat(directory: impl AsFd, name: impl AsRef<Path>, mode: u32) -> Result<bool> {
    let name = name.as_ref();
    match rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(mode)) {
        Err(rustix::io::Errno::EXIST) => Ok(false),
        result => named(result, || format!("mkdirat({name:?}, {mode:o})")).map(|()| true),
    }
}

/// `mknodat(directory, name, kind | mode, device)`; true when it was made, false when something has the name already.
pub(crate) fn mknodat(
    directory: impl AsFd,
    name: impl AsRef<Path>,
    kind: FileType,
    mode: u32,
    (major, minor): (u32, u32),
) -> Result<bool> {
    let name = name.as_ref();
    let device = rustix::fs::makedev(major, minor);
    match rustix::fs::mknodat(directory, name, kind, Mode::from_raw_mode(mode), device) {
        Err(rustix::io::Errno::EXIST) => Ok(false),
        result => {
            named(result, || format!("mknodat({name:?}, {kind:?}, {mode:o}, {major}:{minor})")).map(|()| true)
        }
    }
}

/// `symlinkat(target, directory, name)`; true when it was made, false when something has the name already.
pub(crate) fn symlinkat(
    target: impl AsRef<Path>,
    directory: impl AsFd,
    name: impl AsRef<Path>,
) -> Result<bool> {
    let (target, name) = (target.as_ref(), name.as_ref());
    match rustix::fs::symlinkat(target, directory, name) {
        Err(rustix::io::Errno::EXIST) => Ok(false),
        result => named(result, || format!("symlinkat({target:?}, {name:?})")).map(|()| true),
    }
}

/// `readlinkat(directory, name)`.
pub(crate) fn readlinkat(directory: impl AsFd, name: impl AsRef<Path>) -> Result<CString> {
    let name = name.as_ref();
    named(rustix::fs::readlinkat(directory, name, Vec::new()), || format!("readlinkat({name:?})"))
}

/// `fchownat(directory, name, uid, gid, AT_SYMLINK_NOFOLLOW)`; an empty name means `directory` itself.
pub(crate) fn fchownat(directory: impl AsFd, name: impl AsRef<Path>, uid: u32, gid: u32) -> Result<()> {
    let name = name.as_ref();
    let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    named(rustix::fs::chownat(directory, name, owner, group, flags), || {
        format!("fchownat({name:?}, {uid}, {gid})")
    })
}

/// `fchdir(directory)`.
pub(crate) fn fchdir(directory: impl AsFd) -> Result<()> {
    named(rustix::process::fchdir(directory), || "fchdir()")
}

/// `chdir(path)`, for a path that whoever runs this process chose.
pub(crate) fn chdir(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    named(rustix::process::chdir(path), || format!("chdir({path:?})"))
}

/// `getcwd()`: the kernel's answer, which has `(unreachable)` in front when it is outside of the root.
pub(crate) fn getcwd() -> Result<CString> {
    named(rustix::process::getcwd(Vec::new()), || "getcwd()")
}

/// One `write(fd, bytes)`, as the files of procfs want it.
pub(crate) fn write(fd: impl AsFd, bytes: &[u8]) -> Result<()> {
    named(rustix::io::write(fd, bytes), || format!("write({:?})", String::from_utf8_lossy(bytes))).map(drop)
}
