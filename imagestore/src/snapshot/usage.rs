//! What a writable layer takes on disk.
//!
//! Its owner writes, renames and deletes while it is counted, and may nest directories without end: no link
//! is followed, no mount point crossed, and depth costs about one descriptor for 3,000 bytes of path.
//! What vanishes meanwhile is not counted.

use std::{
    collections::HashSet,
    ffi::CString,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

use rustix::{
    fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::Usage;

/// How long a path may grow before its directory becomes the start of shorter ones.
const PATH: usize = 3000;

/// A directory still to be read.
struct Pending {
    anchor: Rc<OwnedFd>,
    path: Vec<u8>,
}

/// Counts what is beneath `directory`: blocks and inodes, hard links once.
pub(crate) fn count(directory: BorrowedFd<'_>) -> rustix::io::Result<Usage> {
    let mut counter = Counter { usage: Usage::default(), linked: HashSet::new(), pending: Vec::new() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = Rc::new(fs::openat(directory, ".", flags, Mode::empty())?);
    counter.read(&top, &top, b"")?;
    while let Some(Pending { anchor, path }) = counter.pending.pop() {
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let fd = match fs::openat2(&*anchor, &path[..], flags | OFlags::NOFOLLOW, Mode::empty(), beneath) {
            Ok(fd) => Rc::new(fd),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => continue,
            Err(errno) => return Err(errno),
        };
        if path.len() > PATH {
            counter.read(&fd, &fd, b"")?;
        } else {
            counter.read(&fd, &anchor, &path)?;
        }
    }
    Ok(counter.usage)
}

struct Counter {
    usage: Usage,
    /// Inodes with several names that were seen.
    linked: HashSet<u64>,
    pending: Vec<Pending>,
}

impl Counter {
    /// Counts the entries of `fd`, which lies at `path` beneath `anchor`.
    fn read(&mut self, fd: &OwnedFd, anchor: &Rc<OwnedFd>, path: &[u8]) -> rustix::io::Result<()> {
        for entry in Dir::read_from(fd)? {
            let entry = match entry {
                Ok(entry) => entry,
                // The directory was deleted while it was read.
                Err(Errno::NOENT) => break,
                Err(errno) => return Err(errno),
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = match fs::statat(fd.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            };
            let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !directory && stat.st_nlink > 1 && !self.linked.insert(stat.st_ino) {
                continue;
            }
            self.usage.inodes += 1;
            self.usage.bytes += u64::try_from(stat.st_blocks).unwrap_or_default() * 512;
            if directory {
                self.pending.push(Pending { anchor: anchor.clone(), path: join(path, name.to_owned()) });
            }
        }
        Ok(())
    }
}

fn join(path: &[u8], name: CString) -> Vec<u8> {
    if path.is_empty() {
        return name.into_bytes();
    }
    [path, b"/", name.as_bytes()].concat()
}
