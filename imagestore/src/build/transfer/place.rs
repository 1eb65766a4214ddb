//! Putting picks beneath a directory descriptor.
//!
//! The destination's path is resolved with the root as its world, links included, and what is missing of it is made. Below
//! the destination nothing is followed. A file takes the place of a file or link that was there; a directory joins a
//! directory; one takes the place of the other only where an archive is unpacked. Owner first, then mode, then extended attributes, then time: each
//! may undo what is set before it. Names of one file stay names of one file.

use std::{
    collections::HashMap,
    ffi::CString,
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use super::{Changes, Pick, holes};
use crate::{
    build::{
        Error,
        error::shown,
        tree::{Node, Tree, components, join, split},
    },
    layer::remove_tree,
};

/// As many links as the kernel follows (path_resolution(7)).
const LINKS: usize = 40;
/// How many directories stay open at a time.
const OPEN: usize = 64;

/// Where picks go.
#[derive(Clone, Copy, Debug)]
pub(in crate::build) struct Destination<'d> {
    /// What is absolute here.
    pub(in crate::build) root: BorrowedFd<'d>,
    /// Absolute and clean; a slash at its end says that it is a directory.
    pub(in crate::build) path: &'d str,
}

/// Makes the picks. Without any, the destination's parents are not made either.
pub(in crate::build) fn place(
    tree: &dyn Tree,
    picks: &[Pick],
    destination: &Destination<'_>,
    changes: &Changes,
) -> Result<(), Error> {
    if picks.is_empty() {
        return Ok(());
    }
    let world = World { root: destination.root, owner: changes.owner };
    let path = resolve_links(&world, destination.path.as_bytes())?;
    // A single file becomes the destination, unless that is a directory.
    let sole = match picks {
        [pick] if pick.alone && !destination.path.ends_with('/') => !world.is_directory(&path)?,
        _ => false,
    };
    let mut placing = Placing {
        tree,
        changes,
        base: path.clone(),
        open: Vec::new(),
        made: Vec::new(),
        linked: HashMap::new(),
    };
    if sole {
        let (parent, name) = split(&path);
        if name.is_empty() {
            return Err(Error::Invalid("the destination is /, which is no file".into()));
        }
        let (parent, name) = (world.directory(parent)?, name.to_vec());
        placing.base = split(&path).0.to_vec();
        placing.open.push((Vec::new(), parent));
        let pick = Pick { to: name, ..picks[0].clone() };
        placing.pick(&pick)?;
    } else {
        let known = world.is_directory(&path)?;
        let directory = world.directory(&path)?;
        if let Some(source) = picks.iter().find(|pick| pick.to.is_empty()).filter(|_| !known) {
            // It was not there, so it is what is copied.
            dress(directory.as_fd(), &source.node, changes, &path)?;
            placing.made.push((Vec::new(), source.node.mtime));
        }
        placing.open.push((Vec::new(), directory));
        for pick in picks.iter().filter(|pick| !pick.to.is_empty()) {
            placing.pick(pick)?;
        }
    }
    placing.finish()
}

/// The path that a path leads to, with all its links followed as far as there is something.
fn resolve_links(world: &World<'_>, path: &[u8]) -> Result<Vec<u8>, Error> {
    let mut left: Vec<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
    left.reverse();
    let (mut at, mut links) = (Vec::new(), 0);
    while let Some(name) = left.pop() {
        match &*name {
            b"." => continue,
            b".." => {
                at = split(&at).0.to_vec();
                continue;
            }
            _ => {}
        }
        let next = join(&at, &name);
        let target = match world.open(&next, OFlags::PATH) {
            Ok(fd) => match fs::readlinkat(&fd, "", Vec::new()) {
                Ok(target) => Some(target.into_bytes()),
                // It is no link.
                Err(Errno::NOENT | Errno::INVAL) => None,
                Err(errno) => return Err(Error::io("readlinkat", &next)(errno)),
            },
            Err(Errno::NOENT) => None,
            Err(Errno::NOTDIR) => return Err(no_directory(&at)),
            Err(errno) => return Err(Error::io("openat2", &next)(errno)),
        };
        let Some(target) = target else {
            at = next;
            continue;
        };
        links += 1;
        if links > LINKS {
            return Err(Error::Invalid(format!("{:?} leads through more than {LINKS} links", shown(path))));
        }
        if target.first() == Some(&b'/') {
            at.clear();
        }
        left.extend(components(&target).map(<[u8]>::to_vec).collect::<Vec<_>>().into_iter().rev());
    }
    Ok(at)
}

fn no_directory(path: &[u8]) -> Error {
    Error::Invalid(format!("/{} is no directory", shown(path)))
}

/// What the destination is looked for in.
struct World<'w> {
    root: BorrowedFd<'w>,
    /// Of directories that are made on the way.
    owner: Option<(u32, u32)>,
}

impl World<'_> {
    /// Opens what lies at a path that holds no links any more.
    fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        // Of a link itself there is a descriptor too, as long as it is not to be read.
        let within = if flags.contains(OFlags::PATH) {
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV
        } else {
            beneath
        };
        loop {
            match fs::openat2(
                self.root,
                path,
                flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
                within,
            ) {
                Err(Errno::INTR | Errno::AGAIN) => {}
                result => return result,
            }
        }
    }

    fn is_directory(&self, path: &[u8]) -> Result<bool, Error> {
        match self.open(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(errno) => Err(Error::io("openat2", path)(errno)),
        }
    }

    /// The directory at a path, made as far as it is missing.
    fn directory(&self, path: &[u8]) -> Result<OwnedFd, Error> {
        let mut directory =
            self.open(b"", OFlags::RDONLY | OFlags::DIRECTORY).map_err(Error::io("openat2", b""))?;
        let mut at = Vec::new();
        for name in components(path) {
            at = join(&at, name);
            directory = match open_directory(directory.as_fd(), name) {
                Ok(next) => next,
                Err(Errno::NOENT) => {
                    fs::mkdirat(&directory, name, Mode::from(0o755)).map_err(Error::io("mkdirat", &at))?;
                    let next = open_directory(directory.as_fd(), name).map_err(Error::io("openat", &at))?;
                    let (uid, gid) = self.owner.unwrap_or((0, 0));
                    fs::fchown(&next, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                        .map_err(Error::io("fchown", &at))?;
                    fs::fchmod(&next, Mode::from(0o755)).map_err(Error::io("fchmod", &at))?;
                    next
                }
                Err(Errno::NOTDIR | Errno::LOOP) => return Err(no_directory(&at)),
                Err(errno) => return Err(Error::io("openat", &at)(errno)),
            };
        }
        Ok(directory)
    }
}

/// Makes a directory and all above it, for WORKDIR. Says whether something had to be made.
pub(in crate::build) fn make_directory(
    root: BorrowedFd<'_>,
    path: &str,
    owner: (u32, u32),
) -> Result<bool, Error> {
    let world = World { root, owner: Some(owner) };
    let path = resolve_links(&world, path.as_bytes())?;
    if world.is_directory(&path)? {
        return Ok(false);
    }
    world.directory(&path).map(|_| true)
}

struct Placing<'p> {
    tree: &'p dyn Tree,
    changes: &'p Changes,
    /// Where the destination is, for messages.
    base: Vec<u8>,
    /// The destination, then one directory below the other, each with its path below the destination.
    open: Vec<(Vec<u8>, OwnedFd)>,
    /// Directories whose times are to be put right, in the order in which they were made.
    made: Vec<(Vec<u8>, (i64, u32))>,
    /// The first name of each file that has several.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

impl Placing<'_> {
    fn pick(&mut self, pick: &Pick) -> Result<(), Error> {
        let (parent, name) = split(&pick.to);
        self.enter(parent)?;
        let path = join(&self.base, &pick.to);
        let directory = self.open.last().map(|(_, fd)| fd.as_fd()).expect("the destination is always open");
        if pick.node.kind == FileType::Directory {
            let fd = self.make_directory(directory, name, &path)?;
            dress(fd.as_fd(), &pick.node, self.changes, &path)?;
            self.made.push((pick.to.clone(), pick.node.mtime));
            if self.open.len() >= OPEN {
                self.open.remove(1);
            }
            self.open.push((pick.to.clone(), fd));
            return Ok(());
        }
        clear(directory, name, &path, self.changes.replace)?;
        if let Some(inode) = pick.node.inode {
            if let Some(first) = self.linked.get(&inode).cloned() {
                let root = self.open[0].1.as_fd();
                return fs::linkat(root, &*first, directory, name, AtFlags::empty())
                    .map_err(Error::io("linkat", &path));
            }
            self.linked.insert(inode, pick.to.clone());
        }
        self.make(directory, name, pick, &path)
    }

    /// A directory of this name, made unless it is there.
    fn make_directory(&self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<OwnedFd, Error> {
        let mut replace = self.changes.replace;
        loop {
            match fs::mkdirat(parent, name, Mode::from(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::io("mkdirat", path)(errno)),
            }
            match open_directory(parent, name) {
                Ok(directory) => return Ok(directory),
                Err(Errno::NOTDIR | Errno::LOOP) if std::mem::take(&mut replace) => {
                    fs::unlinkat(parent, name, AtFlags::empty()).map_err(Error::io("unlinkat", path))?;
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    return Err(taken(path, "a directory cannot take the place of a file"));
                }
                Err(errno) => return Err(Error::io("openat", path)(errno)),
            }
        }
    }

    fn make(&self, directory: BorrowedFd<'_>, name: &[u8], pick: &Pick, path: &[u8]) -> Result<(), Error> {
        let node = &pick.node;
        let (uid, gid) = self.changes.owner.unwrap_or((node.uid, node.gid));
        let device = match node.kind {
            FileType::RegularFile => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = fs::openat(directory, name, flags, Mode::from(0o600))
                    .map_err(Error::io("openat", path))?;
                let mut file = File::from(file);
                let mut content = self.tree.open(&pick.from)?;
                holes::copy(&mut content, &mut file, node.size).map_err(Error::io("copy", path))?;
                return dress(file.as_fd(), node, self.changes, path)
                    .and_then(|()| set_times(file.as_fd(), node.mtime).map_err(Error::io("futimens", path)));
            }
            FileType::Symlink => {
                fs::symlinkat(&*node.link, directory, name).map_err(Error::io("symlinkat", path))?;
                return self.dress_name(directory, name, node, (uid, gid), path);
            }
            FileType::CharacterDevice | FileType::BlockDevice if node.device == (0, 0) => {
                return Err(Error::Invalid(format!(
                    "{:?} is a device that stands for a removed file",
                    shown(path)
                )));
            }
            FileType::CharacterDevice | FileType::BlockDevice => fs::makedev(node.device.0, node.device.1),
            FileType::Fifo => 0,
            FileType::Directory | FileType::Socket | FileType::Unknown => return Ok(()),
        };
        fs::mknodat(directory, name, node.kind, Mode::from(0o600), device)
            .map_err(Error::io("mknodat", path))?;
        self.dress_name(directory, name, node, (uid, gid), path)?;
        let mode = self.changes.mode.as_ref().map_or(node.mode, |change| change.apply(node.mode, false));
        fs::chmodat(directory, name, Mode::from(mode), AtFlags::empty()).map_err(Error::io("fchmodat", path))
    }

    /// Owner and time of what cannot be opened.
    fn dress_name(
        &self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        node: &Node,
        (uid, gid): (u32, u32),
        path: &[u8],
    ) -> Result<(), Error> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        fs::chownat(directory, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), nofollow)
            .map_err(Error::io("fchownat", path))?;
        fs::utimensat(directory, name, &times(node.mtime), nofollow).map_err(Error::io("utimensat", path))
    }

    /// Has the directory at `path` below the destination open as the last one.
    fn enter(&mut self, path: &[u8]) -> Result<(), Error> {
        while self.open.len() > 1 && !is_on_way(&self.open[self.open.len() - 1].0, path) {
            self.open.pop();
        }
        loop {
            let (at, fd) = self.open.last().expect("the destination is always open");
            if at.len() == path.len() {
                return Ok(());
            }
            let rest = &path[if at.is_empty() { 0 } else { at.len() + 1 }..];
            let name = components(rest).next().unwrap_or_default();
            let next = join(at, name);
            let whole = join(&self.base, &next);
            let fd = match open_directory(fd.as_fd(), name) {
                Ok(fd) => fd,
                // A directory that was left out, and from which something was taken back.
                Err(Errno::NOENT) => {
                    fs::mkdirat(fd, name, Mode::from(0o755)).map_err(Error::io("mkdirat", &whole))?;
                    open_directory(fd.as_fd(), name).map_err(Error::io("openat", &whole))?
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    return Err(taken(&whole, "a directory cannot take the place of a file"));
                }
                Err(errno) => return Err(Error::io("openat", &whole)(errno)),
            };
            if self.open.len() >= OPEN {
                self.open.remove(1);
            }
            self.open.push((next, fd));
        }
    }

    /// Puts the times of directories right, the innermost first.
    fn finish(self) -> Result<(), Error> {
        let root = World { root: self.open[0].1.as_fd(), owner: None };
        for (path, mtime) in self.made.iter().rev() {
            let directory = root
                .open(path, OFlags::RDONLY | OFlags::DIRECTORY)
                .map_err(Error::io("openat2", &join(&self.base, path)))?;
            set_times(directory.as_fd(), *mtime).map_err(Error::io("futimens", &join(&self.base, path)))?;
        }
        Ok(())
    }
}

/// Owner, mode and extended attributes, in this order.
fn dress(fd: BorrowedFd<'_>, node: &Node, changes: &Changes, path: &[u8]) -> Result<(), Error> {
    let (uid, gid) = changes.owner.unwrap_or((node.uid, node.gid));
    fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(Error::io("fchown", path))?;
    let directory = node.kind == FileType::Directory;
    let mode = changes.mode.as_ref().map_or(node.mode, |change| change.apply(node.mode, directory));
    fs::fchmod(fd, Mode::from(mode)).map_err(Error::io("fchmod", path))?;
    for (name, value) in &node.attributes {
        let name = String::from_utf8_lossy(name);
        fs::fsetxattr(fd, &*name, value, XattrFlags::empty()).map_err(Error::io("fsetxattr", path))?;
    }
    Ok(())
}

fn set_times(fd: BorrowedFd<'_>, mtime: (i64, u32)) -> rustix::io::Result<()> {
    fs::futimens(fd, &times(mtime))
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Takes away what a file is to replace.
fn clear(directory: BorrowedFd<'_>, name: &[u8], path: &[u8], replace: bool) -> Result<(), Error> {
    match fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) if replace => {
            let name = CString::new(name).map_err(|_| Error::Invalid("a name has a NUL in it".into()))?;
            remove_tree(directory, &name, &mut |_, _| {}).map_err(Error::io("remove", path))
        }
        Err(Errno::ISDIR | Errno::PERM) => Err(taken(path, "a file cannot take the place of a directory")),
        Err(errno) => Err(Error::io("unlinkat", path)(errno)),
    }
}

fn taken(path: &[u8], why: &str) -> Error {
    Error::Invalid(format!("/{} is there already, and {why}", shown(path)))
}

/// Opens a directory by one name, without following a link.
fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(parent, name, flags, Mode::empty())
}

/// Whether `directory` is `path` or above it.
fn is_on_way(directory: &[u8], path: &[u8]) -> bool {
    directory.is_empty()
        || path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}
