//! Errors of the store, and the small vocabulary that callers decide by.
//!
//! Every error has a [`Kind`]; the text names the object and the cause is its `source`. Turning a kind into a
//! gRPC status is for the agent.

use std::{io, sync::Arc};

use crate::{Digest, Reference, archive, commit, content, diff, metadata, pull, push, reference, snapshot};

/// What a caller can act on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// There is no such image, tag, layer or snapshot.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The request or the image is malformed; trying again changes nothing.
    InvalidArgument,
    /// The store is not in a state that allows it.
    FailedPrecondition,
    /// The registry does not answer, or says it cannot at the moment.
    Unavailable,
    /// The registry wants other credentials.
    Unauthenticated,
    /// The policy of this node does not allow the image: a signature is missing or wrong.
    Untrusted,
    /// The disk is full, or a limit is reached.
    ResourceExhausted,
    /// Content is not what its digest or size says.
    DataLoss,
    /// Nobody waits for the work any more.
    Cancelled,
    /// It took longer than allowed.
    DeadlineExceeded,
    /// Something that should not happen.
    Internal,
}

impl Kind {
    /// The kind of a failed system call.
    pub fn of_io(error: &io::Error) -> Kind {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::ResourceExhausted,
            io::ErrorKind::FileTooLarge | io::ErrorKind::OutOfMemory => Kind::ResourceExhausted,
            _ => Kind::Internal,
        }
    }
}

/// An error of the image store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name of an image is malformed.
    #[error(transparent)]
    Reference(#[from] reference::ParseError),
    /// A short id could be several images.
    #[error("{text:?} is the beginning of more than one image id")]
    Ambiguous {
        /// What was asked for.
        text: String,
    },
    /// A tag was asked for, and this is a name by digest.
    #[error("{name} names an image by its digest; a tag is NAME or NAME:TAG")]
    TagIsDigest {
        /// The name.
        name: Reference,
    },
    /// The image has been removed.
    #[error("image {id} does not exist")]
    NoImage {
        /// The image.
        id: Digest,
    },
    /// A pull failed. Everybody who waited for it gets the same cause.
    #[error("pull {reference}")]
    Pull {
        /// The image.
        reference: Reference,
        /// Why.
        #[source]
        source: Arc<pull::Error>,
    },
    /// A push failed.
    #[error("push {reference}")]
    Push {
        /// The image.
        reference: Reference,
        /// Why.
        #[source]
        source: Box<push::Error>,
    },
    /// No image could be made of a container.
    #[error("commit snapshot {key}")]
    Commit {
        /// The snapshot.
        key: String,
        /// Why.
        #[source]
        source: Box<commit::Error>,
    },
    /// What a container has changed could not be told.
    #[error("compare snapshot {key} with its layers")]
    Diff {
        /// The snapshot.
        key: String,
        /// Why.
        #[source]
        source: Box<diff::Error>,
    },
    /// What another container had changed could not be laid out.
    #[error("lay out changes in snapshot {key}")]
    Apply {
        /// The snapshot.
        key: String,
        /// Why.
        #[source]
        source: Box<crate::layer::Error>,
    },
    /// Images could not be read from an archive.
    #[error("load images")]
    Load {
        /// Why.
        #[source]
        source: Box<archive::Error>,
    },
    /// Images could not be written to an archive.
    #[error("save images")]
    Save {
        /// Why.
        #[source]
        source: Box<archive::Error>,
    },
    /// A blob could not be stored, read or deleted.
    #[error(transparent)]
    Content(#[from] content::Error),
    /// A layer or a writable directory could not be made or deleted.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// An image record could not be stored or deleted.
    #[error(transparent)]
    Metadata(#[from] metadata::Error),
    /// The root of the store could not be made ready.
    #[error("open image store {path}")]
    Open {
        /// The root.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Reference(_) | Error::Ambiguous { .. } | Error::TagIsDigest { .. } => {
                Kind::InvalidArgument
            }
            Error::NoImage { .. } => Kind::NotFound,
            Error::Pull { source, .. } => source.kind(),
            Error::Push { source, .. } => source.kind(),
            Error::Commit { source, .. } => source.kind(),
            Error::Diff { source, .. } => source.kind(),
            Error::Apply { source, .. } => source.kind(),
            Error::Load { source } | Error::Save { source } => source.kind(),
            Error::Content(error) => error.kind(),
            Error::Snapshot(error) => error.kind(),
            Error::Metadata(error) => error.kind(),
            Error::Open { source, .. } => Kind::of_io(source),
        }
    }
}

/// An error with all its causes, for one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

impl snapshot::Error {
    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        match self {
            snapshot::Error::InvalidKey { .. } => Kind::InvalidArgument,
            snapshot::Error::Exists { .. } => Kind::AlreadyExists,
            snapshot::Error::NotFound { .. } | snapshot::Error::NoLayer { .. } => Kind::NotFound,
            snapshot::Error::LayerInUse { .. }
            | snapshot::Error::Mounted { .. }
            | snapshot::Error::NoQuota { .. } => Kind::FailedPrecondition,
            snapshot::Error::TooManyLayers { .. } => Kind::ResourceExhausted,
            snapshot::Error::Io { source, .. } => Kind::of_io(source),
        }
    }
}
