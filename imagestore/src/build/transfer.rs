//! COPY and ADD: which files, under what names, and putting them there.
//!
//! ```text
//!  sources ─select(tree)▶ picks ─fingerprint▶ what they count for in the cache
//!                           └────place(root)▶ files beneath a directory descriptor
//! ```
//!
//! Picks are in the order in which they are made: a directory before what is in it. Nothing here knows images or
//! Dockerfiles; paths are resolved beneath descriptors and never joined into strings that somebody opens.

pub(super) mod archive;
mod holes;
pub(super) mod owner;
pub(super) mod pattern;
mod place;
mod select;
#[cfg(test)]
mod tests;

use sha2::{Digest as _, Sha256};

use super::{
    Error, ModeChange,
    tree::{Node, Tree},
};

pub(super) use place::{Destination, make_directory, place};
pub(super) use select::{Wanted, select};

use rustix::fs::FileType;

/// One thing to be made.
#[derive(Clone, Debug)]
pub(super) struct Pick {
    /// In the tree it comes from.
    pub(super) from: Vec<u8>,
    /// Below the destination; empty for the destination itself.
    pub(super) to: Vec<u8>,
    /// What it is there.
    pub(super) node: Node,
    /// A source of its own and no directory: it may become the destination itself.
    pub(super) alone: bool,
}

/// How copied files change.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    /// Owner and group; as in the tree without.
    pub(super) owner: Option<(u32, u32)>,
    /// Modes; as in the tree without.
    pub(super) mode: Option<ModeChange>,
    /// Whether something takes the place of whatever else is there, as it does where an archive is unpacked.
    pub(super) replace: bool,
}

/// What picks count for: everything that can be seen of the result but for times.
pub(super) fn fingerprint(tree: &dyn Tree, picks: &[Pick]) -> Result<[u8; 32], Error> {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for pick in picks {
        let node = &pick.node;
        field(&pick.to);
        field(&[pick.alone.into(), kind_number(node.kind)]);
        for number in [node.mode, node.uid, node.gid, node.device.0, node.device.1] {
            field(&number.to_le_bytes());
        }
        field(&node.link);
        for (name, value) in &node.attributes {
            field(name);
            field(value);
        }
        if node.kind == FileType::RegularFile {
            field(tree.digest(&pick.from)?.as_str().as_bytes());
        }
    }
    Ok(hash.finalize().into())
}

fn kind_number(kind: FileType) -> u8 {
    match kind {
        FileType::RegularFile => 0,
        FileType::Directory => 1,
        FileType::Symlink => 2,
        FileType::Fifo => 3,
        FileType::CharacterDevice => 4,
        FileType::BlockDevice => 5,
        FileType::Socket => 6,
        FileType::Unknown => 7,
    }
}
