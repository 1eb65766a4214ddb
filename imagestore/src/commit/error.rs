//! Why no image could be made of a snapshot.

use std::io;

use crate::{Digest, Kind, content, diff, layer, pull, snapshot};

/// What went wrong with a commit. Nothing of it is left but what a collection takes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What has changed could not be told.
    #[error(transparent)]
    Diff(#[from] diff::Error),
    /// The snapshot is not there, or the new layer could not be placed.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// A blob could not be stored or read.
    #[error(transparent)]
    Content(#[from] content::Error),
    /// The new layer could not be unpacked.
    #[error("unpack the new layer")]
    Unpack(#[from] layer::Error),
    /// The image could not be put together.
    #[error(transparent)]
    Image(#[from] pull::Error),
    /// A document of the parent does not parse.
    #[error("document {digest} of the parent image does not parse")]
    Document {
        /// The document.
        digest: Digest,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// There is no thread to work on.
    #[error("start a thread to unpack the layer")]
    Thread {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The code has a mistake.
    #[error("the layer was written as {written} and unpacked as {unpacked}")]
    Torn {
        /// As written.
        written: Digest,
        /// As unpacked.
        unpacked: Digest,
    },
}

impl Error {
    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Diff(error) => error.kind(),
            Error::Snapshot(error) => error.kind(),
            Error::Content(error) => error.kind(),
            Error::Unpack(error) if error.is_out_of_space() => Kind::ResourceExhausted,
            Error::Unpack(_) | Error::Torn { .. } => Kind::Internal,
            Error::Image(error) => error.kind(),
            Error::Document { .. } => Kind::DataLoss,
            Error::Thread { .. } => Kind::ResourceExhausted,
        }
    }
}
