//! The descriptors a program starts with.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

/// Standard input, which is never closed here.
pub(crate) fn stdin() -> BorrowedFd<'static> {
    // SAFETY: 0 is open for the whole life of the process: Rust's start-up code opens it if it has to.
    unsafe { BorrowedFd::borrow_raw(0) }
}

/// Standard error, which is never closed here.
pub(crate) fn stderr() -> BorrowedFd<'static> {
    // SAFETY: as for 0.
    unsafe { BorrowedFd::borrow_raw(2) }
}

/// Closes everything that a careless parent left open above the standard descriptors.
///
/// For the first moments of a program: nothing that it has opened itself survives.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: the caller has no descriptor of its own yet, so none is owned by anything.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
