//! The way through a writable directory: parents before children, names in order.
//!
//! What was made only to mount something on is passed over: a mount point with nothing in it, and a directory that
//! holds nothing but such, unless its owner or mode was changed too.

use std::{
    collections::HashSet,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::{
    fs::{self, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use super::{DiffOptions, Error, PATH, relative, shown};
use crate::{layer::OPAQUE, snapshot::Upper};

/// One thing in the directory.
#[derive(Debug)]
pub(super) struct Node {
    /// Without a slash in front.
    pub(super) path: Vec<u8>,
    pub(super) stat: Stat,
    /// Opened as a path only.
    fd: OwnedFd,
}

/// Of attributes that belong to overlayfs or to this machine and not to the file.
const PRIVATE: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"security.selinux"];

impl Node {
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Whether it is a directory that hides those under it.
    pub(super) fn opaque(&self) -> Result<bool, Error> {
        if self.kind() != FileType::Directory {
            return Ok(false);
        }
        match fs::getxattr(self.by_descriptor(), OPAQUE, &mut [0_u8; 1][..]) {
            Ok(_) | Err(Errno::RANGE) => Ok(true),
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
            Err(errno) => Err(Error::io("getxattr", &self.path)(errno)),
        }
    }

    /// Its extended attributes, sorted by name.
    pub(super) fn attributes(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Error> {
        let path = self.by_descriptor();
        let error = |call| Error::io(call, &self.path);
        // As long as the kernel allows either to be: one call each.
        let mut list = vec![0_u8; 64 << 10];
        let length = match fs::listxattr(&path, &mut list[..]) {
            Ok(length) => length,
            Err(Errno::NOTSUP) => 0,
            Err(errno) => return Err(error("listxattr")(errno)),
        };
        let mut attributes = Vec::new();
        let mut names: Vec<&[u8]> = list[..length].split(|byte| *byte == 0).collect();
        names.retain(|name| !name.is_empty() && !PRIVATE.iter().any(|prefix| name.starts_with(prefix)));
        names.sort_unstable();
        let mut value = if names.is_empty() { Vec::new() } else { vec![0_u8; 64 << 10] };
        for name in names {
            match fs::getxattr(&path, name, &mut value[..]) {
                Ok(length) => attributes.push((name.to_vec(), value[..length].to_vec())),
                // Removed since they were listed.
                Err(Errno::NODATA) => {}
                Err(errno) => return Err(error("getxattr")(errno)),
            }
        }
        Ok(attributes)
    }

    /// Where a symbolic link leads.
    pub(super) fn target(&self) -> Result<Vec<u8>, Error> {
        let target = fs::readlinkat(&self.fd, "", Vec::new()).map_err(Error::io("readlinkat", &self.path))?;
        Ok(target.into_bytes())
    }

    /// Neither listxattr nor getxattr takes a descriptor of a path only; its name under /proc leads to the very same
    /// inode.
    fn by_descriptor(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }
}

/// What is still to be visited.
pub(super) struct Walk<'u> {
    upper: &'u Upper,
    mount_points: HashSet<Vec<u8>>,
    /// Of each directory on the way down: its path, and the names that are left, the next one last.
    pending: Vec<(Vec<u8>, Vec<Vec<u8>>)>,
}

impl<'u> Walk<'u> {
    pub(super) fn new(upper: &'u Upper, options: &DiffOptions) -> Result<Walk<'u>, Error> {
        let mut walk = Walk { upper, mount_points: relative(&options.mount_points), pending: Vec::new() };
        walk.enter(Vec::new())?;
        Ok(walk)
    }

    /// The next thing; none when all were visited. A directory comes before what is in it.
    pub(super) fn next(&mut self) -> Result<Option<Node>, Error> {
        loop {
            let Some((directory, names)) = self.pending.last_mut() else { return Ok(None) };
            let Some(name) = names.pop() else {
                self.pending.pop();
                continue;
            };
            let path = join(directory, &name);
            if path.len() > PATH {
                return Err(Error::LongPath { path: shown(&path) });
            }
            let Some(node) = self.look(path)? else { continue };
            if self.is_scaffold(&node)? {
                continue;
            }
            if node.kind() == FileType::Directory {
                self.enter(node.path.clone())?;
            }
            return Ok(Some(node));
        }
    }

    /// The root of the directory itself.
    pub(super) fn root(&self) -> Result<Node, Error> {
        let root = self.look(Vec::new())?;
        root.ok_or_else(|| Error::io("openat2", b"")(Errno::NOENT))
    }

    fn look(&self, path: Vec<u8>) -> Result<Option<Node>, Error> {
        let fd = match self.open(&path, OFlags::PATH) {
            Ok(fd) => fd,
            // It was deleted or replaced while we were on our way.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(Error::io("openat2", &path)(errno)),
        };
        let stat = fs::fstat(&fd).map_err(Error::io("fstat", &path))?;
        Ok(Some(Node { path, stat, fd }))
    }

    fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat2(self.upper.directory(), path, flags, Mode::empty(), beneath)
    }

    /// Opens the file of a node for reading; none if something else has taken its place.
    pub(super) fn open_file(&self, node: &Node) -> Result<Option<OwnedFd>, Error> {
        // A FIFO that was put there meanwhile must not hold us.
        let file = match self.open(&node.path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(None),
            Err(errno) => return Err(Error::io("openat2", &node.path)(errno)),
        };
        let stat = fs::fstat(&file).map_err(Error::io("fstat", &node.path))?;
        let same = (stat.st_dev, stat.st_ino) == (node.stat.st_dev, node.stat.st_ino);
        Ok((same && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then_some(file))
    }

    fn enter(&mut self, path: Vec<u8>) -> Result<(), Error> {
        let mut names = self.names(&path)?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        self.pending.push((path, names));
        Ok(())
    }

    fn names(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let directory = match self.open(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Vec::new()),
            Err(errno) => return Err(Error::io("openat2", path)(errno)),
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory).map_err(Error::io("getdents64", path))? {
            match entry {
                Ok(entry) if entry.file_name() == c"." || entry.file_name() == c".." => {}
                Ok(entry) => names.push(entry.file_name().to_bytes().to_vec()),
                Err(Errno::NOENT) => break,
                Err(errno) => return Err(Error::io("getdents64", path)(errno)),
            }
        }
        Ok(names)
    }

    /// Whether the runtime made it, and nobody else put anything there.
    fn is_scaffold(&self, node: &Node) -> Result<bool, Error> {
        let directory = node.kind() == FileType::Directory;
        if self.mount_points.contains(&node.path) {
            return match node.kind() {
                FileType::Directory => {
                    Ok(self.names(&node.path)?.is_empty() || self.holds_scaffold_only(node)?)
                }
                FileType::RegularFile => Ok(node.stat.st_size == 0),
                _ => Ok(false),
            };
        }
        let within =
            |point: &Vec<u8>| point.starts_with(&node.path) && point.get(node.path.len()) == Some(&b'/');
        if !directory || !self.mount_points.iter().any(within) {
            return Ok(false);
        }
        let below = self.upper.look_below(&node.path).map_err(Error::io("openat2", &node.path))?;
        let changed = |below: Stat| {
            (below.st_mode, below.st_uid, below.st_gid)
                != (node.stat.st_mode, node.stat.st_uid, node.stat.st_gid)
        };
        Ok(!below.is_some_and(changed) && self.holds_scaffold_only(node)?)
    }

    fn holds_scaffold_only(&self, node: &Node) -> Result<bool, Error> {
        let names = self.names(&node.path)?;
        for name in &names {
            if let Some(child) = self.look(join(&node.path, name))?
                && !self.is_scaffold(&child)?
            {
                return Ok(false);
            }
        }
        Ok(!names.is_empty())
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}
