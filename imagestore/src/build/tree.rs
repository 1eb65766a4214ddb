//! Trees that files are copied from: a build's context, the files of a stage, an unpacked archive.
//!
//! A path is a list of plain names joined by slashes, empty for the root; it never holds `.` or `..`, and no
//! implementation follows a link on the way. Links are resolved here, by name and with the tree's root as their world, so
//! that a context that exists on another machine only and a directory of this one behave alike.

mod directory;

use std::{collections::VecDeque, fs::File};

use rustix::fs::FileType;

use crate::{Digest, xattr::Attributes};

use super::Error;

pub(super) use directory::Directory;

/// As many links as the kernel follows (path_resolution(7)).
const LINKS: usize = 40;

/// One thing in a tree.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: FileType,
    /// Permissions and the three special bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Of a regular file.
    pub(super) size: u64,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, u32),
    /// Where a symbolic link leads.
    pub(super) link: Vec<u8>,
    /// Major and minor number.
    pub(super) device: (u32, u32),
    pub(super) attributes: Attributes,
    /// What other names of the same file have too, if there are other names.
    pub(super) inode: Option<(u64, u64)>,
}

/// Where files come from.
pub(super) trait Tree: Send + Sync {
    /// What lies at a path.
    fn look(&self, path: &[u8]) -> Result<Option<Node>, Error>;
    /// The names in a directory, sorted.
    fn names(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, Error>;
    /// A regular file's content, for reading.
    fn open(&self, path: &[u8]) -> Result<File, Error>;
    /// The digest of a regular file's content.
    fn digest(&self, path: &[u8]) -> Result<Digest, Error>;
}

/// The path that `path` leads to, with its links followed; the last one only if asked. None if there is nothing.
pub(super) fn resolve(tree: &dyn Tree, path: &[u8], last: bool) -> Result<Option<Vec<u8>>, Error> {
    let mut left: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
    let (mut at, mut links) = (Vec::new(), 0);
    while let Some(name) = left.pop_front() {
        match &*name {
            b"" | b"." => continue,
            b".." => {
                at.truncate(at.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                continue;
            }
            _ => {}
        }
        let next = join(&at, &name);
        let Some(node) = tree.look(&next)? else { return Ok(None) };
        match node.kind {
            FileType::Symlink if last || !left.is_empty() => {
                links += 1;
                if links > LINKS {
                    return Err(Error::Invalid(format!(
                        "{:?} leads through more than {LINKS} links",
                        super::error::shown(path)
                    )));
                }
                if node.link.first() == Some(&b'/') {
                    at.clear();
                }
                for part in components(&node.link).collect::<Vec<_>>().into_iter().rev() {
                    left.push_front(part.to_vec());
                }
            }
            FileType::Directory => at = next,
            _ if left.is_empty() => at = next,
            _ => return Ok(None),
        }
    }
    Ok(Some(at))
}

pub(super) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
}

pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match (directory.is_empty(), name.is_empty()) {
        (true, _) => name.to_vec(),
        (_, true) => directory.to_vec(),
        _ => [directory, b"/", name].concat(),
    }
}

/// The parent's path and the last name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
