//! What can go wrong with a cgroup.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::systemd::BusError;
use crate::sys;

/// A failed operation on a cgroup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path has `..`, an empty component or nothing at all.
    #[error("cgroup path {path:?} is not a plain path below the hierarchy's root")]
    Path {
        /// As it was given.
        path: String,
    },
    /// The mount table can't be read.
    #[error("read {}", path.display())]
    Mountinfo {
        /// The table.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No cgroup file system is mounted at all.
    #[error("no cgroup hierarchy is mounted")]
    NotMounted,
    /// A limit needs a controller that this host lacks.
    #[error("{limit} needs the cgroup controller {controller}, which this host lacks")]
    Unavailable {
        /// The controller.
        controller: &'static str,
        /// What needs it.
        limit: &'static str,
    },
    /// A value that no kernel would take.
    #[error("{limit}: {reason}")]
    Invalid {
        /// The field of the resources.
        limit: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A system call on a cgroup file or directory failed.
    #[error("{call} {}", path.display())]
    Io {
        /// The call.
        call: &'static str,
        /// Its object.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A control file refused a value.
    #[error("write {value:?} to {}", path.display())]
    Write {
        /// The value.
        value: String,
        /// The control file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A control file's text is not what the kernel documents.
    #[error("{} has unexpected contents", path.display())]
    Contents {
        /// The control file.
        path: PathBuf,
    },
    /// The device filter of version 2 can't be put in place.
    #[error("filter the devices of {}", path.display())]
    Devices {
        /// The cgroup.
        path: PathBuf,
        /// The call and why it failed.
        #[source]
        source: sys::Error,
    },
    /// systemd can't be asked, or refused.
    #[error("have systemd manage {unit}")]
    Systemd {
        /// The scope.
        unit: String,
        /// Why.
        #[source]
        source: BusError,
    },
    /// A new limit is below what is used already, and whoever asked wanted to know before processes are killed for it.
    #[error("{limit} of {new} bytes is less than the {used} bytes in use")]
    InUse {
        /// The field of the resources.
        limit: &'static str,
        /// What was asked for.
        new: u64,
        /// What is used.
        used: u64,
    },
    /// An update failed and what it had changed so far can't be restored.
    #[error("undo the update, which failed ({}); some limits are new and some old", chain(failure))]
    Undo {
        /// Why the update failed.
        failure: Box<Error>,
        /// Why it could not be undone.
        #[source]
        source: Box<Error>,
    },
    /// The tasks did not all stop (or go on) in time; the old state was asked for again.
    #[error("{} is not {} after {deadline:?}", path.display(), if *frozen { "frozen" } else { "thawed" })]
    Freeze {
        /// The cgroup.
        path: PathBuf,
        /// What was asked for.
        frozen: bool,
        /// The time that was given.
        deadline: Duration,
    },
    /// Processes were left in the cgroup when the deadline passed.
    #[error("{} still has processes after {deadline:?}", path.display())]
    Busy {
        /// The directory that could not be removed.
        path: PathBuf,
        /// The time that was given.
        deadline: Duration,
    },
}

impl Error {
    /// Whether the cgroup is simply not there (never made, or removed meanwhile).
    pub fn is_not_found(&self) -> bool {
        match self {
            Error::Io { source, .. } | Error::Write { source, .. } => {
                source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::ENODEV)
            }
            _ => false,
        }
    }

    /// Whether the request, and not the host, is at fault.
    pub fn is_invalid_argument(&self) -> bool {
        match self {
            Error::Path { .. } | Error::Invalid { .. } | Error::Unavailable { .. } | Error::InUse { .. } => {
                true
            }
            Error::Write { source, .. } => {
                matches!(source.raw_os_error(), Some(libc::EINVAL | libc::ERANGE | libc::ENODEV))
            }
            _ => false,
        }
    }

    /// Whether the kernel says that something is in the way: processes where there must be none, or usage above a limit.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Error::Write { source, .. } if source.raw_os_error() == Some(libc::EBUSY))
    }

    pub(super) fn io(call: &'static str, path: impl AsRef<Path>) -> impl FnOnce(rustix::io::Errno) -> Error {
        move |errno| Error::Io { call, path: path.as_ref().to_owned(), source: errno.into() }
    }
}

/// An error with its causes, for a message that has room for only one source.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
