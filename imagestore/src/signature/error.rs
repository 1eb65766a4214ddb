//! Why an image may not be used, or why that cannot be told.

use std::{io, path::PathBuf};

use crate::{Digest, Kind, registry};

/// Why a pull ends at the policy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The policy does not allow the image.
    #[error("the policy for {scope} refuses the image: {refusal}")]
    Refused {
        /// The part of the policy: a registry, a repository, or `default`.
        scope: String,
        /// Why.
        refusal: Refusal,
    },
    /// A file of the policy cannot be read.
    #[error("read {path}")]
    Read {
        /// The policy or a key.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The policy is not one.
    #[error("policy {path} does not parse")]
    Parse {
        /// The policy.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The policy cannot be meant so.
    #[error("policy for {scope}: {reason}")]
    Policy {
        /// The part of the policy.
        scope: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What is attached to the image is no list of signatures.
    #[error("the signatures of {image} do not parse")]
    List {
        /// The image.
        image: Digest,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The registry does not give the signatures.
    #[error("fetch signatures")]
    Registry(#[from] registry::Error),
}

/// Why no signature will do, or not the last that was looked at.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It refuses all images.
    #[error("it rejects all of them")]
    Rejected,
    /// It asks for something that is not checked here, so that nothing passes.
    #[error("it demands {what}, which is not supported")]
    Unsupported {
        /// What.
        what: &'static str,
    },
    /// There is no signature.
    #[error("it is not signed (no sha256-….sig tag in its repository)")]
    Unsigned,
    /// The signature was not made with a key of the policy.
    #[error("no signature of it was made with the policy's key")]
    Key,
    /// What was signed is not a signature of an image.
    #[error("what was signed is no statement about an image")]
    Payload,
    /// Another image was signed.
    #[error("the signature is that of {signed}")]
    Image {
        /// The image that was signed.
        signed: Digest,
    },
    /// It was signed under another name.
    #[error("it was signed as {signed:?}, which the policy's signedIdentity does not accept")]
    Identity {
        /// The name.
        signed: String,
    },
}

impl Error {
    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Refused { .. } | Error::List { .. } => Kind::Untrusted,
            Error::Read { .. } | Error::Parse { .. } | Error::Policy { .. } => Kind::FailedPrecondition,
            Error::Registry(error) => error.kind(),
        }
    }
}
