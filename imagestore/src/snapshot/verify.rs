//! Layers on the disk next to what they should be.
//!
//! A layer is unpacked again beside the one in use and the two trees are compared, entry by entry. What differs can be
//! mended by putting the fresh one in its place, as long as nobody has the old one mounted.

use std::{
    collections::HashSet,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{self, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use super::{Error, Snapshots, Stage, inherit, open_directory, record};
use crate::{
    ChainId,
    layer::{OPAQUE, Unpacked},
};

/// Something in a layer that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Difference {
    /// From the layer's root, without a slash in front.
    pub(crate) path: String,
    /// What differs.
    pub(crate) problem: String,
}

/// More are counted and not described.
const DESCRIBED: usize = 100;
const PIECE: usize = 128 << 10;

impl Snapshots {
    /// How the layer that completes `chain` differs from what was unpacked in `stage`.
    pub(crate) fn differences(
        &self,
        stage: &Stage,
        chain: &ChainId,
        unpacked: &Unpacked,
    ) -> Result<Vec<Difference>, Error> {
        let path = self.folders.layer(chain);
        let lower = {
            let state = self.state();
            let parent = state.committed.get(chain).and_then(|layer| layer.record.parent.clone());
            state.visible(parent.as_ref())?
        };
        inherit::describe_implied(&self.folders, stage, &lower, &unpacked.implied)?;
        let found = open_directory(self.folders.committed.as_fd(), chain.digest().hex())
            .and_then(|layer| open_directory(layer.as_fd(), "fs"))
            .map_err(Error::io("openat", &path))?;
        let implied = unpacked.implied.iter().cloned().collect();
        let mut comparison = Comparison {
            expected: stage.root(),
            found: found.as_fd(),
            implied,
            differences: Vec::new(),
            more: 0,
        };
        comparison.run().map_err(Error::io("compare", &path))?;
        let Comparison { mut differences, more, .. } = comparison;
        if more > 0 {
            differences
                .push(Difference { path: String::new(), problem: format!("{more} more entries differ") });
        }
        Ok(differences)
    }

    /// Puts what was unpacked in `stage` in the place of the layer that completes `chain`.
    ///
    /// # Errors
    /// `LayerInUse` while an active snapshot stands on it: what is mounted must not go away.
    pub(crate) fn replace(&self, stage: Stage, chain: &ChainId, unpacked: &Unpacked) -> Result<(), Error> {
        let path = self.folders.layer(chain);
        let opaque = fs::fgetxattr(stage.root(), OPAQUE, &mut [0_u8; 1][..]).is_ok();
        let retired = {
            let mut state = self.state();
            let Some(layer) = state.committed.get(chain) else {
                return Err(Error::NoLayer { chain: chain.clone() });
            };
            let record = record::Layer {
                bytes: unpacked.bytes,
                inodes: unpacked.inodes,
                opaque,
                boot: Some(self.folders.boot.clone()),
                ..layer.record.clone()
            };
            // Nobody can have begun to stand on it: that takes the same lock.
            if state.in_use().contains(chain) {
                return Err(Error::LayerInUse { chain: chain.clone() });
            }
            record::write(stage.directory(), &record).map_err(Error::io("write record of", &path))?;
            let retired = self.folders.retire(self.folders.committed.as_fd(), chain.digest().hex())?;
            stage
                .place(self.folders.committed.as_fd(), chain.digest().hex())
                .map_err(Error::io("renameat2", &path))?;
            state.insert_unsynced(record);
            retired
        };
        retired.map_or(Ok(()), |name| self.folders.delete(&name))
    }
}

struct Comparison<'c> {
    expected: BorrowedFd<'c>,
    found: BorrowedFd<'c>,
    /// Directories whose time nobody has given.
    implied: HashSet<Vec<u8>>,
    differences: Vec<Difference>,
    more: usize,
}

impl Comparison<'_> {
    fn run(&mut self) -> rustix::io::Result<()> {
        self.entry(b"")?;
        let mut pending: Vec<Vec<u8>> = vec![Vec::new()];
        while let Some(directory) = pending.pop() {
            let (expected, found) = (names(self.expected, &directory)?, names(self.found, &directory)?);
            let mut all: Vec<&Vec<u8>> = expected.union(&found).collect();
            all.sort_unstable();
            for name in all {
                let path = join(&directory, name);
                match (expected.contains(name), found.contains(name)) {
                    (true, false) => self.differs(&path, "is missing"),
                    (false, true) => self.differs(&path, "does not belong there"),
                    _ if self.entry(&path)? => pending.push(path),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Compares one entry that both have; whether it is a directory in both.
    fn entry(&mut self, path: &[u8]) -> rustix::io::Result<bool> {
        let (expected, found) =
            (open(self.expected, path, OFlags::PATH)?, open(self.found, path, OFlags::PATH)?);
        let (want, have) = (fs::fstat(&expected)?, fs::fstat(&found)?);
        let kind = |stat: &Stat| FileType::from_raw_mode(stat.st_mode);
        if kind(&want) != kind(&have) {
            self.differs(path, format!("is a {:?} and should be a {:?}", kind(&have), kind(&want)));
            return Ok(false);
        }
        let mode = |stat: &Stat| stat.st_mode & 0o7777;
        if mode(&want) != mode(&have) {
            self.differs(path, format!("has mode {:04o} instead of {:04o}", mode(&have), mode(&want)));
        }
        let owner = |stat: &Stat| (stat.st_uid, stat.st_gid);
        if owner(&want) != owner(&have) {
            let ((u, g), (wu, wg)) = (owner(&have), owner(&want));
            self.differs(path, format!("belongs to {u}:{g} instead of {wu}:{wg}"));
        }
        let time = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
        if time(&want) != time(&have) && !self.implied.contains(path) {
            self.differs(path, format!("was modified at {} instead of {}", have.st_mtime, want.st_mtime));
        }
        if want.st_rdev != have.st_rdev {
            self.differs(path, "is another device");
        }
        let directory = kind(&want) == FileType::Directory;
        if !directory && want.st_nlink != have.st_nlink {
            self.differs(path, format!("has {} names instead of {}", have.st_nlink, want.st_nlink));
        }
        if attributes(&expected)? != attributes(&found)? {
            self.differs(path, "has other extended attributes");
        }
        match kind(&want) {
            FileType::RegularFile if want.st_size != have.st_size => {
                self.differs(path, format!("has {} bytes instead of {}", have.st_size, want.st_size));
            }
            FileType::RegularFile => {
                let reading = OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK;
                match open(self.found, path, reading) {
                    Ok(found) => {
                        if let Some(at) = first_difference(&open(self.expected, path, reading)?, &found)? {
                            self.differs(path, format!("has other content from byte {at} on"));
                        }
                    }
                    Err(errno) => self.differs(path, format!("cannot be read: {errno}")),
                }
            }
            FileType::Symlink if target(&expected)? != target(&found)? => {
                self.differs(path, "leads elsewhere");
            }
            _ => {}
        }
        Ok(directory)
    }

    fn differs(&mut self, path: &[u8], problem: impl Into<String>) {
        if self.differences.len() == DESCRIBED {
            self.more += 1;
            return;
        }
        let path = String::from_utf8_lossy(path).into_owned();
        self.differences.push(Difference { path, problem: problem.into() });
    }
}

fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    fs::openat2(root, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), beneath)
}

fn names(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<HashSet<Vec<u8>>> {
    let directory = open(root, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut names = HashSet::new();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.insert(entry.file_name().to_bytes().to_vec());
        }
    }
    Ok(names)
}

/// Names and values, sorted.
fn attributes(node: &OwnedFd) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // A descriptor of a path only is taken by its name under /proc.
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    let mut list = vec![0_u8; 64 << 10];
    let length = match fs::listxattr(&path, &mut list[..]) {
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut attributes = Vec::new();
    for name in names {
        let mut value = vec![0_u8; 64 << 10];
        let length = fs::getxattr(&path, name, &mut value[..])?;
        value.truncate(length);
        attributes.push((name.to_vec(), value));
    }
    attributes.sort();
    Ok(attributes)
}

fn target(link: &OwnedFd) -> rustix::io::Result<Vec<u8>> {
    Ok(fs::readlinkat(link, "", Vec::new())?.into_bytes())
}

/// Where two files of one size begin to differ.
fn first_difference(a: &OwnedFd, b: &OwnedFd) -> rustix::io::Result<Option<u64>> {
    let (mut left, mut right) = (vec![0; PIECE], vec![0; PIECE]);
    let mut at = 0;
    loop {
        let length = fill(a, &mut left)?;
        let other = fill(b, &mut right)?;
        let same = left[..length].iter().zip(&right[..other]).take_while(|(a, b)| a == b).count();
        if same < length || length != other {
            return Ok(Some(at + same as u64));
        }
        if length < PIECE {
            return Ok(None);
        }
        at += length as u64;
    }
}

fn fill(file: &OwnedFd, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match rustix::io::read(file, &mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(length)
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}
