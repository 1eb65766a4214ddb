//! A directory of this machine as a tree: the files of a stage or an image, or of an archive that was unpacked.
//!
//! Whoever made its files may still be at work in it, so every look starts at the root's descriptor, follows nothing and
//! crosses no mount.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{self, Dir, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use super::{Node, Tree};
use crate::{Digest, build::Error, xattr};

/// Of attributes that belong to overlayfs or to this machine and not to the file.
const PRIVATE: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"security.selinux"];

/// The tree below a directory.
#[derive(Debug)]
pub(in crate::build) struct Directory {
    root: OwnedFd,
}

impl Directory {
    /// Takes the directory itself; what it is mounted on does not matter any more.
    pub(in crate::build) fn new(root: OwnedFd) -> Directory {
        Directory { root }
    }

    fn open_at(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            match fs::openat2(&self.root, path, flags, Mode::empty(), beneath) {
                Err(Errno::INTR | Errno::AGAIN) => {}
                result => return result,
            }
        }
    }
}

impl Tree for Directory {
    fn look(&self, path: &[u8]) -> Result<Option<Node>, Error> {
        let fd = match self.open_at(path, OFlags::PATH) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(Error::io("openat2", path)(errno)),
        };
        let stat = fs::fstat(&fd).map_err(Error::io("fstat", path))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let link = match kind {
            FileType::Symlink => {
                fs::readlinkat(&fd, "", Vec::new()).map_err(Error::io("readlinkat", path))?.into_bytes()
            }
            _ => Vec::new(),
        };
        let own = |name: &[u8]| !PRIVATE.iter().any(|prefix| name.starts_with(prefix));
        // The types differ between architectures.
        #[allow(clippy::unnecessary_cast)]
        let inode = (stat.st_dev as u64, stat.st_ino as u64);
        Ok(Some(Node {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: if kind == FileType::RegularFile { stat.st_size.cast_unsigned() } else { 0 },
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or_default()),
            link,
            device: (fs::major(stat.st_rdev), fs::minor(stat.st_rdev)),
            attributes: xattr::read(&fd, own).map_err(Error::io("getxattr", path))?,
            inode: (stat.st_nlink > 1 && kind != FileType::Directory).then_some(inode),
        }))
    }

    fn names(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let directory =
            self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(Error::io("openat2", path))?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory).map_err(Error::io("getdents64", path))? {
            let entry = entry.map_err(Error::io("getdents64", path))?;
            if entry.file_name() != c"." && entry.file_name() != c".." {
                names.push(entry.file_name().to_bytes().to_vec());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, path: &[u8]) -> Result<File, Error> {
        // A FIFO must not hold us, whoever put it there.
        let file =
            self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK).map_err(Error::io("openat2", path))?;
        let stat = fs::fstat(file.as_fd()).map_err(Error::io("fstat", path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::Invalid(format!(
                "{:?} is not the file that it was",
                super::super::error::shown(path)
            )));
        }
        Ok(file.into())
    }

    fn digest(&self, path: &[u8]) -> Result<Digest, Error> {
        let mut file = self.open(path)?;
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 128 << 10]);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(Digest::from_sha256(&hash.finalize().into())),
                Ok(length) => hash.update(&buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read", path)(error)),
            }
        }
    }
}
