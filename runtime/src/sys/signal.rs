//! Signals by number (real-time ones included), the signal mask and signalfd.
//!
//! rustix names only the standard signals; a stop signal such as `SIGRTMIN+3` has to pass too.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `kill(pid, signal)`; a pid that is not positive would mean a group or everybody and is refused.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 0 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: takes integers only; pid > 0 names one process.
    check(unsafe { libc::kill(pid, signal) }.into())
}

/// `pidfd_send_signal(pidfd, signal, NULL, 0)`.
pub(crate) fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is borrowed for the call and a null siginfo is what kill(2) sends.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, 0u32) })
}

/// Blocks `signals` in this thread.
pub(crate) fn block(signals: &[i32]) -> io::Result<()> {
    let set = set_of(signals);
    // SAFETY: the set is initialised and lives through the call; the old mask isn't asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) }.into())
}

/// Blocks every signal that would end a program that doesn't care for it, and makes them readable.
pub(crate) fn block_terminating() -> io::Result<OwnedFd> {
    const HARMLESS: [i32; 6] =
        [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH, libc::SIGKILL, libc::SIGSTOP];
    let signals: Vec<i32> = (1..=64).filter(|signal| !HARMLESS.contains(signal)).collect();
    block(&signals)?;
    signalfd(&signals)
}

/// The next pending signal of a [`signalfd`].
pub(crate) fn next(signals: impl AsFd) -> Option<i32> {
    // struct signalfd_siginfo has 128 bytes and begins with the signal's number.
    let mut info = [0u8; 128];
    matches!(rustix::io::read(signals, &mut info), Ok(128)).then(|| i32::from(info[0]))
}

/// Ignores `signal`. Ignoring `SIGCHLD` makes the kernel reap children by itself.
pub(crate) fn ignore(signal: i32) -> io::Result<()> {
    // SAFETY: SIG_IGN installs no code of ours.
    match unsafe { libc::signal(signal, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A nonblocking, close-on-exec descriptor that becomes readable when one of `signals`, which must be blocked, is pending.
pub(crate) fn signalfd(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = set_of(signals);
    // SAFETY: -1 asks for a new descriptor; the set lives through the call.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    check(fd.into())?;
    // SAFETY: the kernel just made this descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigset_t is plain data; sigemptyset gives it its value.
    let mut set = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live sigset_t.
    unsafe { libc::sigemptyset(&mut set) };
    for &signal in signals {
        // SAFETY: as above; a number out of range is refused by the call and changes nothing.
        unsafe { libc::sigaddset(&mut set, signal) };
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kill_refuses_pids_that_mean_groups() {
        for pid in [0, -1, i32::MIN] {
            assert_eq!(kill(pid, libc::SIGKILL).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        }
    }

    #[test]
    fn kill_takes_real_time_signal_numbers() {
        let pid = std::process::id() as i32;
        assert!(kill(pid, 0).is_ok());
        assert_eq!(kill(pid, 4096).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
