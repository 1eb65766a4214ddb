//! What can be wrong with a layer, or go wrong while it is laid out.
//!
//! Every message names the entry or the byte where it happened; the cause stays in `source`. Names come from
//! a stranger's archive, so no more than the beginning of one is ever repeated.

use std::io;

use rustix::io::Errno;

use crate::Kind;

/// Why a layer was not unpacked. What it left behind is to be thrown away.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes of the layer did not come.
    #[error("read layer at byte {offset}")]
    Read {
        /// How much of the uncompressed layer had been read.
        offset: u64,
        /// What the reader said.
        #[source]
        source: io::Error,
    },
    /// The archive stops in the middle of something.
    #[error("layer ends at byte {offset}, inside {inside}")]
    Truncated {
        /// Where the uncompressed layer ends.
        offset: u64,
        /// What was being read.
        inside: &'static str,
    },
    /// The bytes are no archive, or one that two readers would understand differently.
    #[error("layer has a malformed header at byte {offset}: {reason}")]
    Malformed {
        /// Where the header begins.
        offset: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An entry that no layer may bring.
    #[error("entry {entry:?}: {refusal}")]
    Refused {
        /// The beginning of the entry's name.
        entry: String,
        /// What is wrong with it.
        refusal: Refusal,
    },
    /// More entries than a layer may have.
    #[error("layer has more than {limit} entries")]
    TooManyEntries {
        /// How many it may have.
        limit: u64,
    },
    /// The file system refused to hold an entry.
    #[error("{call} for entry {entry:?}")]
    Write {
        /// The system call.
        call: &'static str,
        /// The beginning of the entry's name.
        entry: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What no entry of a layer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `..` in the entry's own name or in a hard link's target.
    #[error("name climbs with \"..\"")]
    Climbs,
    /// A component over 255 bytes.
    #[error("name has a component over 255 bytes")]
    LongComponent,
    /// A path over 4095 bytes.
    #[error("path is over 4095 bytes")]
    LongPath,
    /// A NUL byte within a name.
    #[error("name holds a NUL byte")]
    Nul,
    /// Something other than a directory in the place of the root.
    #[error("only a directory may stand for the root")]
    Root,
    /// `.wh.` with nothing, `.` or `..` behind it, or as a directory.
    #[error("whiteout names nothing that could be removed")]
    Whiteout,
    /// A parent that is neither a directory nor a link to one.
    #[error("parent is not a directory")]
    Parent,
    /// A symbolic link with no target or a target over 4095 bytes.
    #[error("symbolic link has no usable target")]
    SymlinkTarget,
    /// A hard link to what the layer does not hold, or to a directory.
    #[error("hard link to what the layer does not hold as a file")]
    HardLinkTarget,
    /// Character device 0:0, which is overlayfs' own whiteout.
    #[error("character device 0:0 stands for a whiteout")]
    WhiteoutDevice,
    /// `trusted.overlay.*` or `user.overlay.*`.
    #[error("extended attribute belongs to overlayfs")]
    OverlayAttribute,
    /// An extended attribute with a name that the kernel cannot take.
    #[error("extended attribute has no usable name")]
    AttributeName,
    /// A user or group beyond 2^32 - 2.
    #[error("owner is out of range")]
    Owner,
    /// A negative size or time beyond what fits.
    #[error("number is out of range")]
    Number,
    /// A type that no reader of layers knows.
    #[error("entry type is unknown")]
    Type,
    /// A map of holes that overlaps or goes past the end.
    #[error("sparse map is inconsistent")]
    Sparse,
}

impl Error {
    /// What a caller can act on.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Error::Read { source, .. } => match Kind::of_io(source) {
                // Not the disk: the blob does not inflate, or ends early.
                Kind::Internal if source.raw_os_error().is_none() => Kind::DataLoss,
                kind => kind,
            },
            Error::Truncated { .. } => Kind::DataLoss,
            Error::TooManyEntries { .. } => Kind::ResourceExhausted,
            Error::Write { source, .. } => Kind::of_io(source),
            Error::Malformed { .. } | Error::Refused { .. } => Kind::InvalidArgument,
        }
    }

    /// Whether there was no room: freeing some makes a retry sensible.
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Error::Write { source, .. } | Error::Read { source, .. } => out_of_space(source),
            _ => false,
        }
    }

    pub(super) fn refused(entry: &[u8], refusal: Refusal) -> Error {
        Error::Refused { entry: beginning(entry), refusal }
    }

    pub(super) fn write(call: &'static str, entry: &[u8], source: impl Into<io::Error>) -> Error {
        Error::Write { call, entry: beginning(entry), source: source.into() }
    }
}

/// Whether the kernel said that the disk or a quota is full.
pub(crate) fn out_of_space(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOSPC | Errno::DQUOT))
}

/// As much of a name as a message may repeat.
fn beginning(name: &[u8]) -> String {
    const SHOWN: usize = 200;
    match name.get(..SHOWN) {
        Some(start) => format!("{}…", String::from_utf8_lossy(start)),
        None => String::from_utf8_lossy(name).into_owned(),
    }
}
