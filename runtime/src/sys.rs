//! The crate's only unsafe code: system calls that rustix has no safe form of.
//!
//! A function a call; each returns owned, close-on-exec descriptors and plain `io::Error`s.

pub(crate) mod signal;

#[cfg(test)]
mod child;
#[cfg(test)]
pub(crate) use child::before_exec;
