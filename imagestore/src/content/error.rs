//! What went wrong with a blob, and what a caller can do about it.

use std::{io, path::PathBuf};

use crate::{Digest, Kind};

/// What went wrong with a blob.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A directory could not be made or read.
    #[error("open content directory {path}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No new file could be made.
    #[error("begin a blob")]
    Begin {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The blob is complete but could not be put in its place.
    #[error("commit blob {digest}")]
    Commit {
        /// The blob.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The bytes are not those that the name promises.
    #[error("blob {expected}: its {size} bytes hash to {actual}")]
    Mismatch {
        /// The name.
        expected: Digest,
        /// What was found.
        actual: Digest,
        /// How many bytes there were.
        size: u64,
    },
    /// There are more or fewer bytes than announced.
    #[error("blob {digest}: {actual} bytes instead of {expected}")]
    Size {
        /// The blob.
        digest: Digest,
        /// As announced.
        expected: u64,
        /// As found.
        actual: u64,
    },
    /// The blob is not here.
    #[error("blob {digest} is not in the store")]
    Missing {
        /// The blob.
        digest: Digest,
    },
    /// The blob could not be read.
    #[error("read blob {digest}")]
    Read {
        /// The blob.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The blob could not be deleted.
    #[error("delete blob {digest}")]
    Delete {
        /// The blob.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Open { source, .. } | Error::Begin { source } | Error::Commit { source, .. } => {
                Kind::of_io(source)
            }
            Error::Read { source, .. } | Error::Delete { source, .. } => Kind::of_io(source),
            Error::Mismatch { .. } | Error::Size { .. } => Kind::DataLoss,
            Error::Missing { .. } => Kind::NotFound,
        }
    }
}
