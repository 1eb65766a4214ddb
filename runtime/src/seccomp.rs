//! System call filters: the default profile, and compiling a profile to what the kernel runs.
//!
//! Compiling takes milliseconds, so it is done once a profile; the program's bytes are what is kept and handed on.
//! Loading a program is for the container's first process. Flags of a profile (`SECCOMP_FILTER_FLAG_*`) and who is
//! notified concern loading; they are not part of a program, and only the command line knows them (see `filter`).

mod compile;
mod filter;
#[cfg(test)]
mod interpret;
mod profile;
mod program;
mod table;

pub use compile::compile;
pub(crate) use filter::Filter;
pub use profile::default_profile;
pub use program::Program;

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The profile asks for something that a filter cannot do or that this version does not.
    #[error("seccomp profile: {reason}")]
    Profile {
        /// What.
        reason: String,
    },
    /// libseccomp refused.
    #[error("seccomp: {step}")]
    Library {
        /// What was asked of it.
        step: String,
        /// Its answer.
        #[source]
        source: libseccomp::error::SeccompError,
    },
    /// The compiled program could not be taken over.
    #[error("seccomp: export the program")]
    Export(#[source] std::io::Error),
    /// The bytes are no program.
    #[error("seccomp program of {length} bytes: {reason}")]
    Program {
        /// How many there are.
        length: usize,
        /// What is wrong with them.
        reason: &'static str,
    },
}
