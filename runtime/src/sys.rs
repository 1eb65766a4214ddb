//! System calls: a function each, whose error shows the call that failed.
//!
//! Only what rustix has no safe form of is unsafe; the rest gives rustix's calls their names.
//! Descriptors come in as `impl AsFd` and go out as `OwnedFd`, always close-on-exec. This is the
//! only module with unsafe code. What a failure means is the caller's to say: each of its errors
//! has one of these as its source.

use std::fmt;
use std::io;

use rustix::io::Errno;

pub(crate) mod bpf;
pub(crate) mod child;
pub(crate) mod credential;
pub(crate) mod descriptor;
mod entry;
pub(crate) mod file;
pub(crate) mod memory;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod quota;
pub(crate) mod scheduling;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod terminal;

#[cfg(test)]
pub(crate) use child::before_exec;

/// A system call that failed. Displays as the call, with the kernel's reason as its source.
#[derive(Debug)]
pub struct Error {
    call: String,
    source: io::Error,
}

impl Error {
    pub(crate) fn new(call: impl fmt::Display, errno: Errno) -> Error {
        Error { call: call.to_string(), source: errno.into() }
    }

    /// The kernel's reason.
    pub(crate) fn errno(&self) -> Errno {
        Errno::from_io_error(&self.source).unwrap_or(Errno::IO)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.call)
    }
}

impl From<Error> for io::Error {
    /// The kernel's reason with the call in front of it.
    fn from(error: Error) -> io::Error {
        io::Error::new(error.source.kind(), error)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// What every function here returns.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Wraps the outcome of a rustix call. The text is made only when the call failed.
fn named<T, D: fmt::Display>(result: rustix::io::Result<T>, call: impl FnOnce() -> D) -> Result<T> {
    result.map_err(|errno| Error::new(call(), errno))
}

/// The outcome of a raw call: the value, or errno as -1 says.
fn check(result: libc::c_long) -> rustix::io::Result<libc::c_long> {
    if result == -1 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(result)
}
