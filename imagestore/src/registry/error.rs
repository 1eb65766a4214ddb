//! What can go wrong between this node and a registry.
//!
//! No message holds a credential, a token or the query of an address: signed links have their secret there.

use std::{io, time::Duration};

use super::{credentials, hosts};
use crate::{Digest, Kind, manifest};

/// Why a registry did not give what was asked of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A client for HTTP could not be made: the system has no certificates, for one.
    #[error("prepare connections")]
    Client {
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The certificates for the registry are no good.
    #[error(transparent)]
    Tls(#[from] super::tls::Error),
    /// The settings for the registry are no good.
    #[error(transparent)]
    Settings(#[from] hosts::Error),
    /// The credentials kept on this node are of no use.
    #[error(transparent)]
    Credentials(#[from] credentials::Error),
    /// The address that the name or the registry gives is none.
    #[error("registry {domain}: {reason}")]
    Address {
        /// The registry.
        domain: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// There is no answer, or it broke off.
    #[error("registry {host} is unavailable")]
    Unavailable {
        /// The host that was spoken to.
        host: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// It began to answer, and the connection broke.
    #[error("registry {host} broke off {what} after {actual} of {expected} bytes")]
    BrokenOff {
        /// The host that was spoken to.
        host: String,
        /// What was asked for.
        what: String,
        /// As the manifest has it.
        expected: u64,
        /// As it came.
        actual: u64,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The host is there and says nothing.
    #[error("registry {host} sent next to nothing for {after:?}")]
    Stalled {
        /// The host that was spoken to.
        host: String,
        /// How long.
        after: Duration,
    },
    /// It answers with an error that is its own affair.
    #[error("registry {host} answers {status} for {what}{detail}")]
    Status {
        /// The host that was spoken to.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
        /// The registry's own words, if it has any.
        detail: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// It does not have what was asked for.
    #[error("registry {host} has no {what}{detail}")]
    NotFound {
        /// The host that was spoken to.
        host: String,
        /// What was asked for.
        what: String,
        /// The registry's own words, if it has any.
        detail: String,
    },
    /// It wants credentials, or others than these.
    #[error("registry {host} refuses access to {what}{detail}")]
    Unauthenticated {
        /// The host that was spoken to.
        host: String,
        /// What was asked for.
        what: String,
        /// The registry's own words, or ours.
        detail: String,
    },
    /// It answers in a way that no registry does.
    #[error("registry {host}: {reason}")]
    Protocol {
        /// The host that was spoken to.
        host: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A document is larger than any honest one.
    #[error("{what} has more than {limit} bytes")]
    TooLarge {
        /// What was asked for.
        what: String,
        /// How much is allowed.
        limit: u64,
    },
    /// The bytes are not those that were asked for.
    #[error("{what}: expected {expected}, got {actual}")]
    Mismatch {
        /// What was asked for.
        what: String,
        /// Its digest.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The registry announces or sends another number of bytes than the manifest does.
    #[error("{what}: {actual} bytes instead of {expected}")]
    Length {
        /// What was asked for.
        what: String,
        /// As the manifest has it.
        expected: u64,
        /// As it came.
        actual: u64,
    },
    /// The answer ended early, time and again.
    #[error("{what} ended after {actual} of {expected} bytes")]
    Truncated {
        /// What was asked for.
        what: String,
        /// As the manifest has it.
        expected: u64,
        /// As it came.
        actual: u64,
    },
    /// The document is not one that describes an image.
    #[error("{what}")]
    Manifest {
        /// What was asked for.
        what: String,
        /// Why.
        #[source]
        source: manifest::Error,
    },
    /// Whoever takes the bytes has stopped taking them, for a reason of their own.
    #[error("download is no longer wanted")]
    Unwanted,
}

impl Error {
    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Client { .. } => Kind::Internal,
            Error::Address { .. } => Kind::InvalidArgument,
            Error::Tls(_) | Error::Settings(_) | Error::Credentials(_) => Kind::FailedPrecondition,
            Error::Unavailable { .. } | Error::BrokenOff { .. } | Error::Protocol { .. } => Kind::Unavailable,
            Error::Stalled { .. } => Kind::DeadlineExceeded,
            Error::Status { status, .. } => match status {
                429 => Kind::ResourceExhausted,
                400..=499 => Kind::InvalidArgument,
                _ => Kind::Unavailable,
            },
            Error::NotFound { .. } => Kind::NotFound,
            Error::Unauthenticated { .. } => Kind::Unauthenticated,
            Error::TooLarge { .. } => Kind::ResourceExhausted,
            Error::Mismatch { .. } | Error::Length { .. } | Error::Truncated { .. } => Kind::DataLoss,
            Error::Manifest { source, .. } => source.kind(),
            Error::Unwanted => Kind::Cancelled,
        }
    }

    /// Whether asking again can help, and how long the registry wants to be left alone.
    pub(super) fn retry(&self) -> Option<Duration> {
        match self {
            Error::Unavailable { source, .. } if is_tls(source) => None,
            Error::Unavailable { .. }
            | Error::BrokenOff { .. }
            | Error::Stalled { .. }
            | Error::Truncated { .. } => Some(Duration::ZERO),
            Error::Status { status: 408 | 429 | 500 | 502 | 503 | 504, retry_after, .. } => {
                Some(retry_after.unwrap_or_default())
            }
            _ => None,
        }
    }
}

/// Whether the other side's certificate is at fault, which no retry mends.
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
            return true;
        }
        cause = error.source();
    }
    false
}
