//! Why an archive could not be read or written.

use std::io;

use crate::{Digest, Kind, content, metadata, pull};

/// What went wrong with an archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The archive did not come to its end, or is no tar.
    #[error("read the archive")]
    Read {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Whoever takes the archive takes no more.
    #[error("write the archive")]
    Write {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A document of the archive is not what it should be.
    #[error("{path} of the archive does not parse")]
    Document {
        /// Within the archive.
        path: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A document names what is not in the archive.
    #[error("{path} is not in the archive")]
    Missing {
        /// Within the archive.
        path: String,
    },
    /// An image with more or fewer layers than its configuration says.
    #[error("image {config} has {layers} layers in the archive and {diff_ids} in its configuration")]
    Layers {
        /// The image.
        config: Digest,
        /// In the archive.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// It is a tar without images.
    #[error(
        "it has no image in it: there is neither index.json nor manifest.json, or they name none for this machine"
    )]
    NoImage,
    /// More entries than an archive of images has.
    #[error("it has more than {limit} entries")]
    TooMany {
        /// How many are taken.
        limit: usize,
    },
    /// An image could not be put together.
    #[error(transparent)]
    Image(#[from] pull::Error),
    /// A blob could not be stored or read, or is not what its name says.
    #[error(transparent)]
    Content(#[from] content::Error),
    /// The image record could not be written.
    #[error(transparent)]
    Metadata(#[from] metadata::Error),
}

impl Error {
    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Read { source } => match source.kind() {
                io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => Kind::Cancelled,
                io::ErrorKind::UnexpectedEof => Kind::DataLoss,
                // It swells beyond reason.
                io::ErrorKind::FileTooLarge => Kind::ResourceExhausted,
                _ if source.raw_os_error().is_some() => Kind::of_io(source),
                _ => Kind::InvalidArgument,
            },
            Error::Write { source } => match source.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => Kind::Cancelled,
                _ => Kind::of_io(source),
            },
            Error::Document { .. } | Error::Missing { .. } | Error::Layers { .. } | Error::NoImage => {
                Kind::InvalidArgument
            }
            Error::TooMany { .. } => Kind::ResourceExhausted,
            Error::Image(error) => error.kind(),
            Error::Content(error) => error.kind(),
            Error::Metadata(error) => error.kind(),
        }
    }
}
