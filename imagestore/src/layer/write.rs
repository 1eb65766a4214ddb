//! Laying out one entry after the other.
//!
//! The last entry of a name wins, except that a directory over a directory only changes its metadata.
//! Owner first, then mode, then extended attributes, then time: each may undo what is set before it.
//! A small file costs four system calls: create, write, time, close.

use std::{
    io::Read,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{self, AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Uid, XattrFlags},
    io::Errno,
};
use tracing::warn;

use super::{
    Error,
    entry::{Entries, Entry, Kind},
    error::Refusal,
    name::{Meaning, Name, PATH},
    sparse::Map,
    tree::{Tree, is_whiteout, open_directory, set_opaque, timestamps},
};

impl Tree<'_> {
    /// Lays out `entry`, whose data `entries` gives.
    pub(super) fn add<R: Read>(&mut self, entry: &Entry, entries: &mut Entries<R>) -> Result<(), Error> {
        if matches!(entry.kind, Kind::Nothing) {
            return Ok(());
        }
        match entry.name.meaning()? {
            Meaning::Entry => {}
            Meaning::Whiteout(hidden) => return self.whiteout(&hidden),
            Meaning::Opaque(directory) => return self.opaque(&directory),
            Meaning::Metadata => return Ok(()),
        }
        if entry.name.is_root() {
            return self.root(entry);
        }
        self.enter(entry.name.split().0)?;
        match &entry.kind {
            Kind::File { size, map } => self.file(entry, *size, map.as_ref(), entries),
            Kind::Directory => self.directory(entry),
            Kind::Symlink(target) => self.symlink(entry, target),
            Kind::HardLink(target) => self.hard_link(entry, target),
            Kind::Character(0, 0) => Err(Error::refused(entry.name.as_bytes(), Refusal::WhiteoutDevice)),
            Kind::Character(major, minor) => self.node(entry, FileType::CharacterDevice, *major, *minor),
            Kind::Block(major, minor) => self.node(entry, FileType::BlockDevice, *major, *minor),
            Kind::Fifo => self.node(entry, FileType::Fifo, 0, 0),
            Kind::Nothing => Ok(()),
        }
    }

    fn whiteout(&mut self, hidden: &Name) -> Result<(), Error> {
        let error = |call| move |errno: Errno| Error::write(call, hidden.as_bytes(), errno);
        let (parent, name) = hidden.split();
        self.enter(parent)?;
        let mode = Mode::empty();
        match fs::mknodat(self.current(), name, FileType::CharacterDevice, mode, fs::makedev(0, 0)) {
            Ok(()) => {
                self.inodes += 1;
                Ok(())
            }
            // What this layer itself brings stays, and hides the lower layers' by being there;
            // only a directory has to be told to.
            Err(Errno::EXIST) => match open_directory(self.current(), name) {
                Ok(directory) => set_opaque(directory.as_fd()).map_err(error("fsetxattr")),
                Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
                Err(errno) => Err(error("openat")(errno)),
            },
            Err(errno) => Err(error("mknodat")(errno)),
        }
    }

    fn opaque(&mut self, directory: &Name) -> Result<(), Error> {
        self.enter(directory.as_bytes())?;
        set_opaque(self.current()).map_err(|errno| Error::write("fsetxattr", directory.as_bytes(), errno))
    }

    fn root(&mut self, entry: &Entry) -> Result<(), Error> {
        if !matches!(entry.kind, Kind::Directory) {
            return Err(Error::refused(b"/", Refusal::Root));
        }
        self.enter(b"")?;
        describe(self.current(), entry, Change::All)?;
        self.set_root_time(entry.mtime);
        Ok(())
    }

    fn directory(&mut self, entry: &Entry) -> Result<(), Error> {
        let path = entry.name.as_bytes();
        let error = |call| move |errno: Errno| Error::write(call, path, errno);
        let name = entry.name.split().1;
        let mut change = self.change(entry);
        let mut opaque = false;
        let mode = Mode::from(entry.mode & 0o777);
        match fs::mkdirat(self.current(), name, mode) {
            Ok(()) => self.inodes += 1,
            Err(Errno::EXIST) => {
                let stat = self.look(name).map_err(error("fstatat"))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    change = Change::All;
                } else {
                    // Over a whiteout, the lower layers' directory must not show through.
                    opaque = is_whiteout(&stat);
                    self.clear(name).map_err(|source| Error::write("unlinkat", path, source))?;
                    fs::mkdirat(self.current(), name, mode).map_err(error("mkdirat"))?;
                    self.inodes += 1;
                }
            }
            Err(errno) => return Err(error("mkdirat")(errno)),
        }
        let directory = open_directory(self.current(), name).map_err(error("openat"))?;
        describe(directory.as_fd(), entry, change)?;
        if opaque {
            set_opaque(directory.as_fd()).map_err(error("fsetxattr"))?;
        }
        self.enter_made(path, directory, entry.mtime)
    }

    fn file<R: Read>(
        &mut self,
        entry: &Entry,
        size: u64,
        map: Option<&Map>,
        entries: &mut Entries<R>,
    ) -> Result<(), Error> {
        let path = entry.name.as_bytes();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from(entry.mode & 0o777);
        let file = self.make(entry, "openat", |parent, name| fs::openat(parent, name, flags, mode))?;
        match map {
            None => copy(&file, entries, u64::MAX, path)?,
            Some(map) => {
                for extent in &map.extents {
                    fs::seek(&file, SeekFrom::Start(extent.offset))
                        .map_err(|errno| Error::write("lseek", path, errno))?;
                    copy(&file, entries, extent.length, path)?;
                }
                fs::ftruncate(&file, map.size).map_err(|errno| Error::write("ftruncate", path, errno))?;
            }
        }
        self.bytes = self.bytes.saturating_add(size);
        describe(file.as_fd(), entry, self.change(entry))?;
        fs::futimens(&file, &timestamps(entry.mtime)).map_err(|errno| Error::write("futimens", path, errno))
    }

    fn symlink(&mut self, entry: &Entry, target: &[u8]) -> Result<(), Error> {
        if target.is_empty() || target.len() > PATH {
            return Err(Error::refused(entry.name.as_bytes(), Refusal::SymlinkTarget));
        }
        self.make(entry, "symlinkat", |parent, name| fs::symlinkat(target, parent, name))?;
        self.describe_node(entry, FileType::Symlink)
    }

    fn node(&mut self, entry: &Entry, kind: FileType, major: u32, minor: u32) -> Result<(), Error> {
        let (mode, device) = (Mode::from(entry.mode & 0o777), fs::makedev(major, minor));
        self.make(entry, "mknodat", |parent, name| fs::mknodat(parent, name, kind, mode, device))?;
        self.describe_node(entry, kind)
    }

    fn hard_link(&mut self, entry: &Entry, target: &Name) -> Result<(), Error> {
        let path = entry.name.as_bytes();
        let error = |call| move |errno: Errno| Error::write(call, path, errno);
        let refused = || Error::refused(path, Refusal::HardLinkTarget);
        let (parent, name) = entry.name.split();
        let (target_parent, target_name) = target.split();
        if target.is_root() {
            return Err(refused());
        }
        let elsewhere = if target_parent == parent {
            None
        } else {
            Some(self.resolve(target_parent).map_err(|errno| match errno {
                Errno::NOENT | Errno::NOTDIR | Errno::LOOP => refused(),
                errno => error("openat2")(errno),
            })?)
        };
        let from = elsewhere.as_ref().map_or(self.current(), AsFd::as_fd);
        let stat = match fs::statat(from, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Err(refused()),
            Err(errno) => return Err(error("fstatat")(errno)),
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory || is_whiteout(&stat) {
            return Err(refused());
        }
        // No flag: a symbolic link is linked itself and not followed.
        let link = |to: BorrowedFd<'_>, from: BorrowedFd<'_>| {
            fs::linkat(from, target_name, to, name, AtFlags::empty())
        };
        match link(self.current(), from) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(error("linkat")(errno)),
        }
        let there = self.look(name).map_err(error("fstatat"))?;
        if (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino) {
            return Ok(());
        }
        self.clear(name).map_err(|source| Error::write("unlinkat", path, source))?;
        let from = elsewhere.as_ref().map_or(self.current(), AsFd::as_fd);
        link(self.current(), from).map_err(error("linkat"))
    }

    /// Creates something new in the current directory, in the place of whatever an earlier entry put there.
    fn make<T>(
        &mut self,
        entry: &Entry,
        call: &'static str,
        create: impl Fn(BorrowedFd<'_>, &[u8]) -> rustix::io::Result<T>,
    ) -> Result<T, Error> {
        let path = entry.name.as_bytes();
        let name = entry.name.split().1;
        let made = match create(self.current(), name) {
            Err(Errno::EXIST) => {
                self.clear(name).map_err(|source| Error::write("unlinkat", path, source))?;
                create(self.current(), name)
            }
            result => result,
        };
        let made = made.map_err(|errno| Error::write(call, path, errno))?;
        self.inodes += 1;
        Ok(made)
    }

    /// What creating an entry with its mode leaves to be changed.
    fn change(&self, entry: &Entry) -> Change {
        if self.inherits_group() {
            return Change::All;
        }
        let mode = entry.mode & 0o7000 != 0 || entry.mode & self.umask != 0;
        Change::Only { owner: entry.uid != 0 || entry.gid != 0, mode }
    }

    /// Metadata of what is not opened: links and special files.
    fn describe_node(&self, entry: &Entry, kind: FileType) -> Result<(), Error> {
        let path = entry.name.as_bytes();
        let error = |call| move |errno: Errno| Error::write(call, path, errno);
        let name = entry.name.split().1;
        let (parent, change) = (self.current(), self.change(entry));
        if change.owner() {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(error("fchownat"))?;
        }
        let mode = change.mode() && kind != FileType::Symlink;
        if mode || !entry.attributes.is_empty() {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let node = fs::openat(parent, name, flags, Mode::empty()).map_err(error("openat"))?;
            // Neither fchmod nor fsetxattr takes an O_PATH descriptor; its name under /proc leads to the
            // very same inode.
            let by_descriptor = format!("/proc/self/fd/{}", node.as_raw_fd());
            if mode {
                fs::chmod(&by_descriptor, Mode::from(entry.mode)).map_err(error("chmod"))?;
            }
            for (attribute, value) in &entry.attributes {
                let set = fs::setxattr(&by_descriptor, &attribute[..], value, XattrFlags::empty());
                attribute_set(entry, attribute, set)?;
            }
        }
        fs::utimensat(parent, name, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(error("utimensat"))
    }
}

/// What of an entry's metadata has to be set.
#[derive(Clone, Copy)]
enum Change {
    All,
    Only { owner: bool, mode: bool },
}

impl Change {
    fn owner(self) -> bool {
        matches!(self, Change::All | Change::Only { owner: true, .. })
    }

    fn mode(self) -> bool {
        matches!(self, Change::All | Change::Only { mode: true, .. })
    }
}

/// Owner, mode and extended attributes of an open file or directory.
fn describe(fd: BorrowedFd<'_>, entry: &Entry, change: Change) -> Result<(), Error> {
    let error = |call| move |errno: Errno| Error::write(call, entry.name.as_bytes(), errno);
    if change.owner() {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fs::fchown(fd, Some(uid), Some(gid)).map_err(error("fchown"))?;
    }
    if change.mode() {
        fs::fchmod(fd, Mode::from(entry.mode)).map_err(error("fchmod"))?;
    }
    for (name, value) in &entry.attributes {
        attribute_set(entry, name, fs::fsetxattr(fd, &name[..], value, XattrFlags::empty()))?;
    }
    Ok(())
}

/// A file system without such attributes, or a kind of file that cannot have them, loses them with a word.
fn attribute_set(entry: &Entry, name: &[u8], result: rustix::io::Result<()>) -> Result<(), Error> {
    let optional = name.starts_with(b"user.");
    match result {
        Err(Errno::NOTSUP) => {}
        Err(Errno::PERM) if optional => {}
        Err(errno) => return Err(Error::write("setxattr", entry.name.as_bytes(), errno)),
        Ok(()) => return Ok(()),
    }
    let (entry, name) = (String::from_utf8_lossy(entry.name.as_bytes()), String::from_utf8_lossy(name));
    warn!(%entry, %name, "extended attribute not supported here");
    Ok(())
}

/// Writes up to `length` bytes of the entry's data at the file's position.
fn copy<R: Read>(
    file: &OwnedFd,
    entries: &mut Entries<R>,
    mut length: u64,
    path: &[u8],
) -> Result<(), Error> {
    while let Some(mut data) = entries.data(length)? {
        length -= data.len() as u64;
        while !data.is_empty() {
            match rustix::io::write(file, data) {
                Ok(written) => data = &data[written..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::write("write", path, errno)),
            }
        }
    }
    Ok(())
}
