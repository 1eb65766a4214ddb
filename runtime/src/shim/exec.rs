//! A process that a client runs in a container, beside the container's own.

use std::os::fd::{AsFd, OwnedFd};

use super::protocol::ErrorKind;
use crate::container::Channel;

pub(super) struct Exec {
    pub(super) number: u32,
    /// The number of the container that it runs in.
    pub(super) container: u32,
    /// The connection that it belongs to, until that is closed.
    pub(super) client: Option<u32>,
    /// None when another runtime runs it, which has none for it alone.
    pub(super) cgroup: Option<String>,
    /// Whom the shim waits for: the process, or its delegate.
    pub(super) child: i32,
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    /// Until the program is executed.
    pub(super) channel: Option<Channel>,
    /// Why it never came to run its program.
    pub(super) failure: Option<(ErrorKind, String)>,
    /// The client wants no more of it than to know that it is gone.
    pub(super) given_up: bool,
}

impl Exec {
    /// The client has gone before the end: every process of the exec goes too.
    pub(super) fn abandon(&mut self) {
        self.client = None;
        self.kill();
    }

    /// Kills every process of the exec.
    pub(super) fn kill(&self) {
        // It may not have reached its cgroup yet. One that is gone already is what we want.
        let _ = crate::sys::signal::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        // What this misses is found when the process has been reaped and the cgroup is removed.
        let cgroup = self.cgroup.as_deref().map(crate::cgroup::Cgroup::new_exec);
        let _ = cgroup.map(|cgroup| cgroup.and_then(|cgroup| cgroup.kill()));
    }
}
