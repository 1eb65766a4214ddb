//! Why a build does not come to its end.
//!
//! [`Error`] is of one step or of what stands around it; where in the Dockerfile it happened is put to it by whoever
//! knows ([`super::Failure`]).

use std::{io, sync::Arc};

use crate::{Digest, Kind, commit, content, snapshot};

use super::Diagnostic;

/// What went wrong.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The Dockerfile, or what was asked for with it.
    #[error("{0}")]
    Plan(Box<Diagnostic>),
    /// What was asked for cannot be done.
    #[error("{0}")]
    Invalid(String),
    /// Something that a step needs is not there.
    #[error("{0}")]
    Missing(String),
    /// The node's configuration does not allow it.
    #[error("{0}")]
    Denied(String),
    /// A limit of this builder.
    #[error("{0}")]
    Limit(String),
    /// The command of a RUN ended badly.
    #[error("the command ended with code {code}{}", why(*.oom_killed, *.disk_full))]
    Command {
        /// As given to exit(2), or 128 and the signal.
        code: i32,
        /// Whether the kernel killed one of its processes for want of memory.
        oom_killed: bool,
        /// Whether no room was left on the disk when it ended.
        disk_full: bool,
    },
    /// A file is not what its checksum says.
    #[error("{what} has the digest {actual}, and not {expected}")]
    Checksum {
        /// Where it came from.
        what: String,
        /// As the Dockerfile has it.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// A URL gave nothing.
    #[error("fetch {url}: {reason}")]
    Fetch {
        /// Without credentials.
        url: String,
        /// Why.
        reason: String,
        /// Whether it may go better another time.
        again: bool,
    },
    /// The kernel refused.
    #[error("{call} {path:?}")]
    Io {
        /// The system call, or what was being done.
        call: &'static str,
        /// Of the file.
        path: String,
        /// What the kernel said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The store could not take or give something.
    #[error(transparent)]
    Store(#[from] Arc<crate::Error>),
    /// A layer could not be made of what a step wrote.
    #[error("keep what the step made")]
    Commit(#[source] Arc<commit::Error>),
    /// Whatever runs commands could not run this one.
    #[error("run the command: {message}")]
    Runner {
        /// What a caller can act on.
        kind: Kind,
        /// With all causes.
        message: String,
    },
    /// The client did not send what it was asked for.
    #[error("{0}")]
    Client(String),
    /// Nobody waits for the build any more, or something else failed first.
    #[error("the build was cancelled")]
    Cancelled,
}

impl Error {
    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Plan(_) | Error::Invalid(_) | Error::Missing(_) => Kind::InvalidArgument,
            Error::Denied(_) => Kind::Untrusted,
            Error::Limit(_) | Error::Command { disk_full: true, .. } => Kind::ResourceExhausted,
            Error::Command { .. } => Kind::FailedPrecondition,
            Error::Checksum { .. } => Kind::DataLoss,
            Error::Fetch { again, .. } => {
                if *again {
                    Kind::Unavailable
                } else {
                    Kind::InvalidArgument
                }
            }
            Error::Io { source, .. } => Kind::of_io(source),
            Error::Store(error) => error.kind(),
            Error::Commit(error) => error.kind(),
            Error::Runner { kind, .. } => *kind,
            Error::Client(_) => Kind::FailedPrecondition,
            Error::Cancelled => Kind::Cancelled,
        }
    }

    /// Of a system call about a path within some tree.
    pub(super) fn io<E: Into<io::Error>>(call: &'static str, path: &[u8]) -> impl FnOnce(E) -> Error {
        let path = shown(path);
        move |source| Error::Io { call, path, source: Arc::new(source.into()) }
    }
}

/// What is known of why a command failed.
fn why(oom_killed: bool, disk_full: bool) -> &'static str {
    match (oom_killed, disk_full) {
        (true, _) => ": it ran out of memory",
        (_, true) => ": No space left on the disk",
        _ => "",
    }
}

/// As much of a path as a message may repeat.
pub(super) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    if text.is_empty() { "/".to_owned() } else { text.chars().take(200).collect() }
}

impl From<crate::Error> for Error {
    fn from(error: crate::Error) -> Error {
        Error::Store(Arc::new(error))
    }
}

impl From<snapshot::Error> for Error {
    fn from(error: snapshot::Error) -> Error {
        crate::Error::from(error).into()
    }
}

impl From<content::Error> for Error {
    fn from(error: content::Error) -> Error {
        crate::Error::from(error).into()
    }
}

impl From<commit::Error> for Error {
    fn from(error: commit::Error) -> Error {
        Error::Commit(Arc::new(error))
    }
}

impl From<Box<Diagnostic>> for Error {
    fn from(diagnostic: Box<Diagnostic>) -> Error {
        Error::Plan(diagnostic)
    }
}
