//! Both ends of a pseudo terminal.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::{Result, check, named};

/// `ioctl(master, TIOCSPTLCK, 0)`: lets the slave be opened.
pub(crate) fn unlock(master: impl AsFd) -> Result<()> {
    let locked: libc::c_int = 0;
    // SAFETY: the kernel reads one int, which lives through the call.
    let result =
        unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSPTLCK, std::ptr::from_ref(&locked)) };
    named(check(result.into()), || "ioctl(TIOCSPTLCK)").map(drop)
}

/// `ioctl(master, TIOCGPTPEER)`: the slave, whatever its name leads to.
pub(crate) fn peer(master: impl AsFd) -> Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: takes integers only.
    let result = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) };
    let number = named(check(result.into()), || "ioctl(TIOCGPTPEER)")?;
    // SAFETY: the kernel just made this descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number as i32) })
}
