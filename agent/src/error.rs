//! What can go wrong in the agent, in words that name the object.
//!
//! Each error has a [`Kind`]; `status.rs` turns that, and nothing else, into a gRPC code. Errors of the
//! image store, the runtime and the network pass through here and keep their own text.

use std::{io, path::PathBuf, time::Duration};

use crate::network;

/// The vocabulary that callers act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The object does not exist.
    NotFound,
    /// The name is in use.
    AlreadyExists,
    /// The request can never succeed as it is.
    InvalidArgument,
    /// The request may succeed once something else has changed.
    FailedPrecondition,
    /// A registry or a monitor does not answer.
    Unavailable,
    /// A registry wants other credentials.
    Unauthenticated,
    /// The node's policy does not allow the image.
    Untrusted,
    /// Disk, addresses or limits are used up.
    ResourceExhausted,
    /// Content is not what its digest says.
    DataLoss,
    /// The time given was not enough.
    DeadlineExceeded,
    /// The caller went away.
    Cancelled,
    /// Not there yet, or not possible on this machine.
    Unimplemented,
    /// A fault of the agent or of the machine.
    Internal,
}

/// An error of the agent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No object of that sort has that id or name.
    #[error("{object} {id:?} does not exist")]
    NotFound {
        /// "pod", "container" or "image".
        object: &'static str,
        /// As the caller gave it.
        id: String,
    },
    /// More than one object's id starts so.
    #[error("{object} {id:?} is ambiguous: more than one id starts with it; give more of it")]
    Ambiguous {
        /// "pod" or "container".
        object: &'static str,
        /// As the caller gave it.
        id: String,
    },
    /// The name belongs to another object.
    #[error("the {object} name {name:?} is in use by {holder}; remove that one or choose another name")]
    NameInUse {
        /// "pod" or "container".
        object: &'static str,
        /// The name asked for.
        name: String,
        /// Id of the object that has it.
        holder: String,
    },
    /// The request is wrong in itself.
    #[error("{0}")]
    Invalid(String),
    /// The object is not in the state the request needs.
    #[error("{0}")]
    Precondition(String),
    /// The agent or this machine cannot do it.
    #[error("{0}")]
    Unimplemented(String),
    /// As much as may be is in use.
    #[error("{0}")]
    Exhausted(String),
    /// The wait is over.
    #[error("{what} did not finish within {limit:?}")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// A stream that would go on ends with the agent.
    #[error("the agent is ending; it can be asked again when it has started")]
    Ending,
    /// Nobody waits for it any more.
    #[error("{0}")]
    Cancelled(String),
    /// A build's.
    #[error("{message}")]
    Build {
        /// What a caller can act on.
        kind: Kind,
        /// As a compiler would show it.
        message: String,
    },
    /// The image store's error.
    #[error(transparent)]
    Image(#[from] sampan_imagestore::Error),
    /// The network's error.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// The monitor refused or failed.
    #[error("{message}")]
    Monitor {
        /// What kind of refusal.
        kind: Kind,
        /// The monitor's text, with its causes.
        message: String,
    },
    /// The monitor of a pod cannot be reached.
    #[error("reach the monitor of pod {pod}")]
    MonitorGone {
        /// The pod's id.
        pod: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A mount of a container's root.
    #[error("mount the root of container {container}")]
    Mount {
        /// The container's id.
        container: String,
        /// Why.
        #[source]
        source: sampan_runtime::mount::Error,
    },
    /// A user that the image does not know.
    #[error(transparent)]
    User(#[from] sampan_runtime::user::Error),
    /// A seccomp profile that cannot be compiled.
    #[error("compile the seccomp profile")]
    Seccomp(#[from] sampan_runtime::seccomp::Error),
    /// A cgroup.
    #[error("cgroup {path}")]
    Cgroup {
        /// Below the roots of the hierarchies.
        path: String,
        /// Why.
        #[source]
        source: sampan_runtime::cgroup::Error,
    },
    /// A file of the agent's own.
    #[error("{call} {path}")]
    File {
        /// "read", "write", …
        call: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What should not happen.
    #[error("{0}")]
    Internal(String),
}

impl From<sampan_imagestore::SnapshotError> for Error {
    fn from(error: sampan_imagestore::SnapshotError) -> Error {
        Error::Image(error.into())
    }
}

impl From<sampan_imagestore::build::Error> for Error {
    fn from(error: sampan_imagestore::build::Error) -> Error {
        Error::Build { kind: image_kind(error.kind()), message: chain(&error) }
    }
}

/// The result of the agent's own functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        match self {
            Error::NotFound { .. } => Kind::NotFound,
            Error::NameInUse { .. } => Kind::AlreadyExists,
            Error::Invalid(_) | Error::Ambiguous { .. } | Error::User(_) => Kind::InvalidArgument,
            Error::Precondition(_) => Kind::FailedPrecondition,
            Error::Unimplemented(_) => Kind::Unimplemented,
            Error::Exhausted(_) => Kind::ResourceExhausted,
            Error::Deadline { .. } => Kind::DeadlineExceeded,
            Error::Cancelled(_) => Kind::Cancelled,
            Error::Image(error) => image_kind(error.kind()),
            Error::Network(error) => network_kind(error.kind()),
            Error::Monitor { kind, .. } | Error::Build { kind, .. } => *kind,
            Error::MonitorGone { .. } | Error::Ending => Kind::Unavailable,
            Error::File { source, .. } if out_of_space(source) => Kind::ResourceExhausted,
            Error::Cgroup { source, .. } if source.is_invalid_argument() => Kind::InvalidArgument,
            Error::Mount { .. }
            | Error::Seccomp(_)
            | Error::Cgroup { .. }
            | Error::File { .. }
            | Error::Internal(_) => Kind::Internal,
        }
    }

    /// The message with every cause behind it, for one line of a log or an answer.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// An error's text and the text of each cause, joined by colons.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Gives an I/O error the call and the path it belongs to.
pub(crate) fn at(call: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { call, path, source }
}

fn out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<network::cni::Error> for Error {
    fn from(error: network::cni::Error) -> Error {
        network::Error::from(error).into()
    }
}

fn network_kind(kind: network::Kind) -> Kind {
    match kind {
        network::Kind::InvalidArgument => Kind::InvalidArgument,
        network::Kind::AlreadyExists => Kind::AlreadyExists,
        network::Kind::FailedPrecondition => Kind::FailedPrecondition,
        network::Kind::ResourceExhausted => Kind::ResourceExhausted,
        network::Kind::DeadlineExceeded => Kind::DeadlineExceeded,
        network::Kind::Unavailable => Kind::Unavailable,
        network::Kind::Internal => Kind::Internal,
    }
}

pub(crate) fn image_kind(kind: sampan_imagestore::Kind) -> Kind {
    use sampan_imagestore::Kind as Image;
    match kind {
        Image::NotFound => Kind::NotFound,
        Image::AlreadyExists => Kind::AlreadyExists,
        Image::InvalidArgument => Kind::InvalidArgument,
        Image::FailedPrecondition => Kind::FailedPrecondition,
        Image::Unavailable => Kind::Unavailable,
        Image::Unauthenticated => Kind::Unauthenticated,
        Image::Untrusted => Kind::Untrusted,
        Image::ResourceExhausted => Kind::ResourceExhausted,
        Image::DataLoss => Kind::DataLoss,
        Image::Cancelled => Kind::Cancelled,
        Image::DeadlineExceeded => Kind::DeadlineExceeded,
        Image::Internal => Kind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_object_and_cause_once() {
        let error = at("write", "/x/pod.json")(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(error.kind(), Kind::ResourceExhausted);
        assert_eq!(error.chain(), "write /x/pod.json: no storage space");
    }
}
