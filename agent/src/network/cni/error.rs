//! What can go wrong between the agent and CNI plugins.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::network::Kind;

/// "Try again later" (CNI 1.1, section "Error").
const TRY_AGAIN: u64 = 11;

/// A failure of a CNI network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration or its folder could not be read.
    #[error("read the CNI configuration {}", path.display())]
    Unreadable {
        /// File or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The configuration makes no sense.
    #[error("CNI configuration {}: {problem}", path.display())]
    Configuration {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The plugin is nowhere.
    #[error("CNI plugin {plugin:?} is not in {folders}; install it (Debian: containernetworking-plugins)")]
    Missing {
        /// Its type.
        plugin: String,
        /// Where it was looked for.
        folders: String,
    },
    /// The plugin could not be executed or spoken to.
    #[error("run the CNI plugin {plugin:?}")]
    Run {
        /// Its type.
        plugin: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The plugin was stopped.
    #[error("CNI plugin {plugin:?} did not finish {verb} within {limit:?}")]
    TimedOut {
        /// Its type.
        plugin: String,
        /// What it was asked.
        verb: &'static str,
        /// What it had.
        limit: Duration,
    },
    /// The plugin says no.
    #[error("CNI plugin {plugin:?}: {verb}: {message} (code {code})")]
    Refused {
        /// Its type.
        plugin: String,
        /// What it was asked.
        verb: &'static str,
        /// The specification's number, or the plugin's own from 100 on.
        code: u64,
        /// Its words.
        message: String,
    },
    /// The plugin's answer cannot be understood.
    #[error("CNI plugin or network {plugin:?} gave a malformed answer: {problem}")]
    Malformed {
        /// Its type, or the network's name.
        plugin: String,
        /// What is wrong.
        problem: String,
    },
}

impl Error {
    /// The kind of this failure.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Unreadable { .. } | Error::Configuration { .. } | Error::Missing { .. } => {
                Kind::FailedPrecondition
            }
            Error::TimedOut { .. } => Kind::DeadlineExceeded,
            Error::Refused { code: TRY_AGAIN, .. } => Kind::Unavailable,
            Error::Run { .. } | Error::Refused { .. } | Error::Malformed { .. } => Kind::Internal,
        }
    }
}
