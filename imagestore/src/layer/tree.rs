//! The directory that a layer is laid out in, and the cheap way to find an entry's parent in it.
//!
//! Parents are found beneath the root's descriptor only, component by component without following links;
//! where a component is a symbolic link of the layer's own, openat2 follows it with the root as its world.
//! The directories on the way to the last entry stay open, because the next entry is mostly beside it.
//! A directory's time is put right when it is closed, so that what is created in it leaves no trace.

use std::{
    collections::HashSet,
    ffi::CString,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps},
    io::Errno,
};

use super::{Error, error::Refusal, pax::Time, remove::remove_tree};

/// How many directories stay open at most: deep trees must not use up descriptors.
const OPEN: usize = 64;

/// How many bytes of names the list of implied directories may take.
const IMPLIED: usize = 8 << 20;

/// The extended attribute that hides what lower layers have in a directory.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

pub(super) struct Tree<'r> {
    pub(super) root: BorrowedFd<'r>,
    /// The root, then one directory below the other.
    open: Vec<Directory>,
    /// The path of the last open directory.
    path: Vec<u8>,
    /// What the process' umask takes away from a new file's mode.
    pub(super) umask: u32,
    /// Something on which open directories may rest was replaced.
    stale: bool,
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    /// Directories that were made because something lies in them, and that no entry describes.
    pub(super) implied: HashSet<Vec<u8>>,
    implied_bytes: usize,
}

struct Directory {
    /// Of its path, within that of the whole stack.
    length: usize,
    fd: OwnedFd,
    /// The modification time to give back.
    mtime: Option<Time>,
    /// New files may get another group than root's.
    inherits_group: bool,
}

impl<'r> Tree<'r> {
    pub(super) fn new(root: BorrowedFd<'r>) -> Result<Tree<'r>, Error> {
        let umask = umask(root).map_err(|error| Error::write("openat", b"", error))?;
        let mut tree = Tree {
            root,
            open: Vec::new(),
            path: Vec::new(),
            umask,
            stale: false,
            bytes: 0,
            inodes: 0,
            implied: HashSet::from([Vec::new()]),
            implied_bytes: 0,
        };
        let fd = open_directory(root, b".").map_err(|error| Error::write("openat", b"", error))?;
        tree.push(fd, None).map_err(|error| Error::write("fstat", b"", error))?;
        Ok(tree)
    }

    /// The directory that the last call of `enter` found.
    pub(super) fn current(&self) -> BorrowedFd<'_> {
        match self.open.last() {
            Some(directory) => directory.fd.as_fd(),
            None => self.root,
        }
    }

    /// Whether what is created in the current directory may get another group than root's.
    pub(super) fn inherits_group(&self) -> bool {
        self.open.last().is_none_or(|directory| directory.inherits_group)
    }

    /// Makes the directory at `path` the current one, and makes what is missing of it.
    pub(super) fn enter(&mut self, path: &[u8]) -> Result<(), Error> {
        if std::mem::take(&mut self.stale) {
            self.close_to(b"")?;
        }
        self.close_to(path)?;
        while self.path.len() < path.len() {
            let start = if self.path.is_empty() { 0 } else { self.path.len() + 1 };
            let length = path[start..].iter().position(|b| *b == b'/').unwrap_or(path.len() - start);
            self.descend(&path[..start + length], &path[start..start + length])?;
        }
        Ok(())
    }

    /// Makes a directory that an entry describes current, to have `mtime` in the end.
    pub(super) fn enter_made(&mut self, path: &[u8], fd: OwnedFd, mtime: Time) -> Result<(), Error> {
        self.implied.remove(path);
        self.path.clear();
        self.path.extend_from_slice(path);
        self.push(fd, Some(mtime)).map_err(|error| Error::write("fstat", path, error))
    }

    /// Gives the root the time of its own entry.
    pub(super) fn set_root_time(&mut self, mtime: Time) {
        self.implied.remove(&b""[..]);
        if let Some(root) = self.open.first_mut() {
            root.mtime = Some(mtime);
        }
    }

    /// Puts the last times right.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        self.close_to(b"")?;
        match self.open.pop() {
            Some(root) => root.close(b""),
            None => Ok(()),
        }
    }

    /// A directory by its path, links followed with the root as their world.
    pub(super) fn resolve(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        if path.is_empty() {
            return open_directory(self.root, b".");
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // EAGAIN: something beneath the root was renamed while the kernel went up through "..".
        for _ in 0..64 {
            match fs::openat2(self.root, path, flags, Mode::empty(), within) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }

    /// What lies under `name` in the current directory.
    pub(super) fn look(&self, name: &[u8]) -> rustix::io::Result<Stat> {
        fs::statat(self.current(), name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Removes what an earlier entry put under `name` in the current directory.
    pub(super) fn clear(&mut self, name: &[u8]) -> std::io::Result<()> {
        let parent = match self.open.last() {
            Some(directory) => directory.fd.as_fd(),
            None => self.root,
        };
        let (bytes, inodes, stale) = (&mut self.bytes, &mut self.inodes, &mut self.stale);
        remove_tree(parent, &CString::new(name)?, &mut |directory, name| {
            let Ok(stat) = fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { return };
            let kind = FileType::from_raw_mode(stat.st_mode);
            *stale |= matches!(kind, FileType::Directory | FileType::Symlink);
            if kind == FileType::Directory || stat.st_nlink == 1 {
                *inodes = inodes.saturating_sub(1);
                let size = if kind == FileType::RegularFile { stat.st_size.cast_unsigned() } else { 0 };
                *bytes = bytes.saturating_sub(size);
            }
        })
    }

    fn descend(&mut self, path: &[u8], name: &[u8]) -> Result<(), Error> {
        let error = |call| move |errno: Errno| Error::write(call, path, errno);
        let (fd, fresh) = match open_directory(self.current(), name) {
            Ok(fd) => (fd, false),
            Err(Errno::NOENT) => (self.imply(path, name, false)?, true),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let stat = self.look(name).map_err(error("fstatat"))?;
                if is_whiteout(&stat) {
                    self.clear(name).map_err(|source| Error::write("unlinkat", path, source))?;
                    (self.imply(path, name, true)?, true)
                } else if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
                    let resolved = self.resolve(path).map_err(|errno| match errno {
                        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => {
                            Error::refused(path, Refusal::Parent)
                        }
                        errno => Error::write("openat2", path, errno),
                    })?;
                    (resolved, false)
                } else {
                    return Err(Error::refused(path, Refusal::Parent));
                }
            }
            Err(errno) => return Err(error("openat")(errno)),
        };
        let mtime = if fresh { None } else { Some(mtime(&fs::fstat(&fd).map_err(error("fstat"))?)) };
        self.path.clear();
        self.path.extend_from_slice(path);
        self.push(fd, mtime).map_err(error("fstat"))
    }

    /// Makes a directory that no entry has described so far.
    fn imply(&mut self, path: &[u8], name: &[u8], opaque: bool) -> Result<OwnedFd, Error> {
        let error = |call| move |errno: Errno| Error::write(call, path, errno);
        fs::mkdirat(self.current(), name, Mode::from(0o755)).map_err(error("mkdirat"))?;
        let fd = open_directory(self.current(), name).map_err(error("openat"))?;
        fs::fchmod(&fd, Mode::from(0o755)).map_err(error("fchmod"))?;
        if self.inherits_group() {
            fs::fchown(&fd, None, Some(fs::Gid::ROOT)).map_err(error("fchown"))?;
        }
        if opaque {
            set_opaque(fd.as_fd()).map_err(error("fsetxattr"))?;
        }
        self.inodes += 1;
        if self.implied_bytes < IMPLIED {
            self.implied_bytes += path.len();
            self.implied.insert(path.to_vec());
        }
        Ok(fd)
    }

    fn push(&mut self, fd: OwnedFd, mtime: Option<Time>) -> rustix::io::Result<()> {
        let stat = fs::fstat(&fd)?;
        let inherits_group = stat.st_gid != 0 || stat.st_mode & 0o2000 != 0;
        if self.open.len() >= OPEN {
            // The root stays: it is where every search begins.
            let _ = self.open.remove(1).close(b"");
        }
        self.open.push(Directory { length: self.path.len(), fd, mtime, inherits_group });
        Ok(())
    }

    /// Closes what is open until the last is the root or on the way to `path`.
    fn close_to(&mut self, path: &[u8]) -> Result<(), Error> {
        while self.open.len() > 1 && !is_on_way(&self.path, path) {
            if let Some(directory) = self.open.pop() {
                directory.close(&self.path)?;
            }
            let length = self.open.last().map_or(0, |directory| directory.length);
            self.path.truncate(length);
        }
        Ok(())
    }
}

impl Directory {
    fn close(self, path: &[u8]) -> Result<(), Error> {
        let Some(time) = self.mtime else { return Ok(()) };
        fs::futimens(&self.fd, &timestamps(time)).map_err(|errno| Error::write("futimens", path, errno))
    }
}

/// Opens a directory by one component, without following a link.
pub(super) fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(parent, name, flags, Mode::empty())
}

pub(super) fn set_opaque(directory: BorrowedFd<'_>) -> rustix::io::Result<()> {
    fs::fsetxattr(directory, OPAQUE, b"y", fs::XattrFlags::empty())
}

/// Access and modification time alike: no reader of layers cares for the former.
pub(super) fn timestamps(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn mtime(stat: &Stat) -> Time {
    Time { seconds: stat.st_mtime, nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or_default() }
}

/// Whether `directory` is `path` or above it.
fn is_on_way(directory: &[u8], path: &[u8]) -> bool {
    directory.is_empty()
        || path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Asks the file system rather than umask(2), which cannot be read without changing it for every thread.
fn umask(root: BorrowedFd<'_>) -> rustix::io::Result<u32> {
    let name = ".probe";
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let probe = fs::openat(root, name, flags, Mode::from(0o777))?;
    let mode = fs::fstat(&probe)?.st_mode;
    fs::unlinkat(root, name, AtFlags::empty())?;
    Ok(0o777 & !mode)
}
