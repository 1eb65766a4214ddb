//! Layers: from the bytes of a tar to a directory that overlayfs can stack.
//!
//! An entry never reaches outside the root it is unpacked in, whatever its name, its link target or another
//! process does meanwhile: everything is resolved beneath the root's descriptor. Whiteouts become what
//! overlayfs understands. A layer is unpacked by itself, so what lower layers hold is not looked at here;
//! whether the digest is the expected one, and making the result durable, is the caller's concern.

use std::{io::Read, os::fd::BorrowedFd};

use crate::Digest;

mod entry;
mod error;
mod header;
mod name;
mod pax;
mod remove;
mod source;
mod sparse;
mod tree;
mod write;

pub(crate) use error::out_of_space;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use error::Error;
#[cfg(test)]
pub(crate) use error::Refusal;
pub(crate) use remove::remove_tree;
pub(crate) use tree::OPAQUE;

/// What a layer turned out to be.
#[derive(Debug)]
pub struct Unpacked {
    /// The digest of the uncompressed tar.
    pub diff_id: Digest,
    /// The sum of the sizes of its regular files.
    pub bytes: u64,
    /// How many files, directories and others there are beneath the root.
    pub inodes: u64,
    /// Directories that hold something but that no entry describes; empty for the root.
    pub(crate) implied: Vec<Vec<u8>>,
}

/// Reads an uncompressed tar to its end and lays it out in `root`, an empty directory.
///
/// What follows the archive's end is read too, because it counts for the digest.
pub(crate) fn unpack(tar: impl Read, root: BorrowedFd<'_>) -> Result<Unpacked, Error> {
    let mut entries = entry::Entries::new(tar);
    let mut tree = tree::Tree::new(root)?;
    while let Some(entry) = entries.next()? {
        tree.add(&entry, &mut entries)?;
    }
    tree.finish()?;
    let mut implied: Vec<Vec<u8>> = tree.implied.drain().collect();
    implied.sort_unstable();
    Ok(Unpacked { diff_id: entries.finish()?, bytes: tree.bytes, inodes: tree.inodes, implied })
}
