//! What a verb can fail with, and how it is told.
//!
//! Callers compare texts: what runc's users look for (`container does not exist`, `no such file or directory`,
//! `executable file not found in $PATH`) is there in the same words.

use std::io;

use crate::{cgroup, container, executable, hook, sys};

pub(super) type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("container {id:?} does not exist (container does not exist)")]
    Missing { id: String },
    #[error("container with given ID already exists: {id:?}")]
    Exists { id: String },
    #[error("container not running: {id:?} is {status}")]
    NotRunning { id: String, status: &'static str },
    #[error("{0}")]
    Refused(String),
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{what}")]
    Call {
        what: String,
        #[source]
        source: sys::Error,
    },
    #[error("failed to connect with seccomp agent that the profile names")]
    SeccompAgent(#[source] Box<Error>),
    #[error("{what}: {message}")]
    Container { what: &'static str, message: String },
    #[error("{what}")]
    Child {
        what: &'static str,
        #[source]
        source: container::Error,
    },
    #[error("cgroup {path:?}")]
    Cgroup {
        path: String,
        #[source]
        source: cgroup::Error,
    },
    #[error(transparent)]
    Hook(hook::Error),
    #[error(transparent)]
    Configuration(crate::init::Error),
    #[error("{path} is not valid")]
    Json {
        path: String,
        #[source]
        source: serde_json::Error,
    },
    #[error(transparent)]
    Protect(executable::Error),
}

impl Error {
    pub(super) fn io(what: impl Into<String>, source: io::Error) -> Error {
        Error::Io { what: what.into(), source }
    }

    pub(super) fn errno(what: impl Into<String>, errno: rustix::io::Errno) -> Error {
        Error::Io { what: what.into(), source: errno.into() }
    }

    pub(super) fn call(what: impl Into<String>) -> impl FnOnce(sys::Error) -> Error {
        let what = what.into();
        move |source| Error::Call { what, source }
    }

    pub(super) fn cgroup(path: &str) -> impl FnOnce(cgroup::Error) -> Error + use<> {
        let path = path.to_owned();
        move |source| Error::Cgroup { path, source }
    }

    pub(super) fn refused(why: impl Into<String>) -> Error {
        Error::Refused(why.into())
    }
}

/// An error with its causes in one line, the kernel's reasons in the words that callers know.
pub(super) fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    plain(&text)
}

/// Rust writes `No such file or directory (os error 2)` where Go writes `no such file or directory`.
fn plain(text: &str) -> String {
    const MARK: &str = " (os error ";
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(index) = rest.find(MARK) {
        let (before, after) = rest.split_at(index);
        let reason = before.rfind(": ").map_or(0, |colon| colon + 2);
        result.push_str(&before[..reason]);
        let mut letters = before[reason..].chars();
        result.extend(letters.next().map(|first| first.to_ascii_lowercase()));
        result.push_str(letters.as_str());
        rest = after[MARK.len()..].trim_start_matches(|c: char| c.is_ascii_digit());
        rest = rest.strip_prefix(')').unwrap_or(rest);
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_the_kernel_are_in_the_words_that_callers_know() {
        let told = "create: exec: \"/x\": No such file or directory (os error 2)";
        assert_eq!(plain(told), "create: exec: \"/x\": no such file or directory");
        assert_eq!(plain("A: Is a directory (os error 21): b"), "A: is a directory: b");
        assert_eq!(plain("nothing"), "nothing");
    }

    #[test]
    fn texts_have_the_whole_chain() {
        let error = Error::io("open x", io::Error::from_raw_os_error(libc::EACCES));
        assert_eq!(text(&error), "open x: permission denied");
    }
}
