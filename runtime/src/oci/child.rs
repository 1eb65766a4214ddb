//! A process on its way to its program, and what its parent does for it meanwhile.

use std::os::fd::AsFd;

use oci_spec::runtime::State;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::{Error, Result, socket};
use crate::container::{Channel, Child, Report};
use crate::seccomp::Filter;
use crate::sys;

/// The next report that the caller has to decide on. The births and listeners in between are seen to.
pub(super) fn next_report(
    child: &mut Child,
    what: &'static str,
    notified: Option<&Notified<'_>>,
) -> Result<Report> {
    loop {
        match receive(&child.channel, what)? {
            Report::Born { pid } => {
                let midwife = std::mem::replace(
                    &mut child.pidfd,
                    sys::process::pidfd_open(pid).map_err(Error::call(what))?,
                );
                child.pid = pid;
                reap(&midwife)?;
            }
            Report::Listener { number } => {
                announce(number, child.pid, child.pidfd.as_fd(), notified)?;
                child.channel.start().map_err(|source| Error::Child { what, source })?;
            }
            report => return Ok(report),
        }
    }
}

/// Who gets to know of calls that the filter notifies of, and what they are told.
pub(super) struct Notified<'a> {
    pub(super) filter: &'a Filter,
    pub(super) state: &'a State,
}

/// Sends the descriptor of the notifications, `number` of the process, to the socket that the profile names.
pub(super) fn announce(
    number: i32,
    pid: i32,
    pidfd: impl AsFd,
    notified: Option<&Notified<'_>>,
) -> Result<()> {
    let Some(Notified { filter, state }) = notified else {
        return Err(Error::refused("the process notifies of calls, and nobody is to be told"));
    };
    let what = "pass on the notifications of the seccomp filter";
    let listener = sys::process::pidfd_getfd(pidfd, number).map_err(Error::call(what))?;
    let path = filter.listener.as_deref().unwrap_or(std::path::Path::new(""));
    let mut state = (*state).clone();
    state.set_pid(Some(pid));
    let message = serde_json::json!({
        "ociVersion": super::OCI_VERSION,
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": filter.metadata,
        "state": state,
    });
    socket::send(path, message.to_string().as_bytes(), &[listener.as_fd()])
        .map_err(|source| Error::SeccompAgent(Box::new(source)))
}

/// The next report, waited for. The end of the process is one.
pub(super) fn receive(channel: &Channel, what: &'static str) -> Result<Report> {
    loop {
        if let Some(report) = channel.receive().map_err(|source| Error::Child { what, source })? {
            return Ok(report);
        }
        match poll(&mut [PollFd::new(channel, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::errno("poll", errno)),
        }
    }
}

/// Waits for the end of a child and tells its exit code, 128 and the signal if it was one.
pub(super) fn reap(pidfd: impl AsFd) -> Result<u8> {
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                let signalled = || 128 + status.terminating_signal().unwrap_or_default();
                return Ok(status.exit_status().unwrap_or_else(signalled) as u8);
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::errno("waitid(pidfd)", errno)),
        }
    }
}

/// Ends a child that didn't come to anything. The failure that led to it is the one to be told.
pub(super) fn abandon(child: &Child) {
    let _ = sys::signal::pidfd_send_signal(&child.pidfd, libc::SIGKILL);
    let _ = reap(&child.pidfd);
}
