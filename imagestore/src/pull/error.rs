//! Why a pull failed.

use std::io;

use crate::{Digest, Kind, content, layer, manifest, metadata, registry, signature, snapshot};

/// Why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry did not give it.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The policy of this node is in the way.
    #[error(transparent)]
    Signature(#[from] signature::Error),
    /// The manifest is not that of an image.
    #[error("manifest {digest}")]
    Manifest {
        /// The manifest.
        digest: Digest,
        /// Why.
        #[source]
        source: manifest::Error,
    },
    /// The configuration does not parse.
    #[error("configuration {digest} does not parse")]
    Config {
        /// The configuration.
        digest: Digest,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A blob could not be stored, or is not what it should be.
    #[error(transparent)]
    Content(#[from] content::Error),
    /// A layer could not be unpacked.
    #[error("unpack layer {digest}")]
    Layer {
        /// The layer's blob.
        digest: Digest,
        /// Why.
        #[source]
        source: layer::Error,
    },
    /// The unpacked layer is not the one that the configuration names.
    #[error("layer {digest} is {actual} when uncompressed, and should be {expected}")]
    DiffId {
        /// The layer's blob.
        digest: Digest,
        /// As the configuration has it.
        expected: Digest,
        /// As it is.
        actual: Digest,
    },
    /// A layer could not be given a place.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// The image record could not be written.
    #[error(transparent)]
    Metadata(#[from] metadata::Error),
    /// There is no thread to work on.
    #[error("start a thread for layer {digest}")]
    Thread {
        /// The layer's blob.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody waits for the image any more.
    #[error("it was cancelled")]
    Cancelled,
    /// The code has a mistake; the log has more.
    #[error("it ended without a result")]
    Lost,
}

impl Error {
    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Registry(error) => error.kind(),
            Error::Signature(error) => error.kind(),
            Error::Manifest { source, .. } => source.kind(),
            Error::Config { .. } => Kind::InvalidArgument,
            Error::Content(error) => error.kind(),
            Error::Layer { source, .. } => source.kind(),
            Error::DiffId { .. } => Kind::DataLoss,
            Error::Snapshot(error) => error.kind(),
            Error::Metadata(error) => error.kind(),
            Error::Thread { .. } => Kind::ResourceExhausted,
            Error::Cancelled => Kind::Cancelled,
            Error::Lost => Kind::Internal,
        }
    }
}
