//! Differences: what a writable directory has changed of the layers under it, as a list or as a layer's tar.
//!
//! Only the writable directory is walked, so the cost is that of what changed. It may belong to a container that runs
//! on meanwhile: everything is opened beneath its descriptor, nothing is followed, and what is read twice may differ
//! without harm. The same directory gives the same bytes: entries are sorted by name, and nothing of the moment or the
//! machine is in them.

pub(crate) mod header;
mod sparse;
#[cfg(test)]
mod tests;
mod walk;
mod write;

use std::{collections::HashSet, io, path::PathBuf};

use rustix::fs::{FileType, Stat};

use crate::{
    Kind,
    snapshot::{Upper, is_whiteout},
};
use walk::{Node, Walk};

pub(crate) use write::write;

/// The longest path that a layer may hold.
const PATH: usize = 4095;

/// Why a difference could not be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused.
    #[error("{call} {path:?}")]
    Io {
        /// The system call.
        call: &'static str,
        /// Within the writable directory.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Whoever takes the layer takes no more.
    #[error("write the layer")]
    Write {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A path that no layer can hold.
    #[error("{path:?}… is longer than the {PATH} bytes that a layer can hold")]
    LongPath {
        /// Its beginning.
        path: String,
    },
    /// A name that means something else in a layer.
    #[error("{path:?} cannot be in a layer: names that begin with \".wh.\" stand for removed files there")]
    Reserved {
        /// Within the writable directory.
        path: String,
    },
}

impl Error {
    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Io { source, .. } | Error::Write { source } => Kind::of_io(source),
            Error::LongPath { .. } | Error::Reserved { .. } => Kind::InvalidArgument,
        }
    }

    fn io(call: &'static str, path: &[u8]) -> impl FnOnce(rustix::io::Errno) -> Error {
        move |errno| Error::Io { call, path: shown(path), source: errno.into() }
    }
}

/// As much of a path as a message may repeat.
fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}

/// What has become of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeKind {
    /// The image has nothing there.
    Added,
    /// The image has something else there.
    Changed,
    /// The image has something that is gone.
    Deleted,
}

/// One difference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// What has become of it.
    pub kind: ChangeKind,
    /// From the root, with its slash.
    pub path: PathBuf,
}

/// How to look at a writable directory.
#[derive(Clone, Debug, Default)]
pub struct DiffOptions {
    /// Where something was mounted, as absolute paths: what the runtime made to mount on is no change of the user's.
    pub mount_points: Vec<PathBuf>,
    /// Times after this one become it, in seconds since 1970: reproducible builds.
    pub latest: Option<i64>,
}

/// All differences, sorted by path.
pub(crate) fn changes(upper: &Upper, options: &DiffOptions) -> Result<Vec<Change>, Error> {
    use std::os::unix::ffi::OsStringExt;
    let mut changes = Vec::new();
    let mut walk = Walk::new(upper, options)?;
    while let Some(node) = walk.next()? {
        let below = upper.look_below(&node.path).map_err(Error::io("openat2", &node.path))?;
        let kind = match below {
            _ if is_whiteout(&node.stat) => ChangeKind::Deleted,
            None => ChangeKind::Added,
            // It had to be copied up for something in it.
            Some(below) if is_same_directory(&below, &node.stat) && !node.opaque()? => continue,
            Some(_) => ChangeKind::Changed,
        };
        let path = std::ffi::OsString::from_vec([b"/", &node.path[..]].concat());
        changes.push(Change { kind, path: path.into() });
    }
    Ok(changes)
}

fn is_same_directory(a: &Stat, b: &Stat) -> bool {
    let of = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec);
    FileType::from_raw_mode(a.st_mode) == FileType::Directory && of(a) == of(b)
}

/// Paths that are relative to the root, without slashes around them.
fn relative(paths: &[PathBuf]) -> HashSet<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    let trimmed = |path: &PathBuf| {
        let parts = path.components().filter_map(|part| match part {
            std::path::Component::Normal(name) => Some(name.as_bytes()),
            _ => None,
        });
        parts.collect::<Vec<_>>().join(&b'/')
    };
    paths.iter().map(trimmed).filter(|path| !path.is_empty()).collect()
}
