//! The first process of a pod's shared pid namespace: it does nothing but be there and have the pod's orphans reaped.
//!
//! Containers that may trace processes reach it, and by it what it can reach. So it has an empty root, no capabilities
//! and next to no system calls. It listens to the monitor, which never says anything: the end of that connection is the
//! end of the monitor, whatever that died of, and then it ends too.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompBuilder, LinuxSyscallBuilder};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

use crate::shim::Error;
use crate::sys::process::Forked;
use crate::sys::{self, credential, file};
use crate::{init, seccomp};

/// What lists of processes show of it.
const TITLE: &CStr = c"sampan-pod";
/// What it hears when everything is there that it waits for.
const GO_ON: &[u8] = b"o";
/// It makes a few system calls, of which copying the host's mounts takes longest.
const CONFINED: Duration = Duration::from_secs(30);
/// The longest word about a failure, which is the text of a call.
const MAX_WORD: usize = 512;

/// Such a process. It ends when this value does, if nobody has ended it before.
pub(in crate::shim) struct PodInit {
    pub(in crate::shim) pid: i32,
    pub(in crate::shim) pidfd: OwnedFd,
    /// Closed on exec, and by each child of the monitor at its birth.
    connection: OwnedFd,
}

impl PodInit {
    /// Makes one in new namespaces of the kinds that `flags` are. It waits to be settled, and owns them until then.
    ///
    /// It is in the monitor's cgroup, so that it is out of reach of the containers' limits. Its mount namespace comes from
    /// `mounts`, or else from the monitor's.
    pub(super) fn fork(flags: u64, mounts: Option<&OwnedFd>, null: &OwnedFd) -> Result<PodInit, Error> {
        let failed = |source| Error::PodInit { source };
        let pair =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (connection, monitor) =
            pair.map_err(|errno| failed(sys::Error::new("socketpair(AF_UNIX, SOCK_SEQPACKET)", errno)))?;
        match sys::process::fork(flags, None).map_err(failed)? {
            Forked::Parent { pid, pidfd } => Ok(PodInit { pid, pidfd, connection }),
            Forked::Child => {
                let null = null.as_fd();
                let others: Vec<_> = [&monitor].into_iter().chain(mounts).map(AsFd::as_fd).collect();
                if let Ok(kept) = sys::process::keep_only([null, null, null], 0, &others) {
                    live(kept);
                }
                sys::process::exit(1)
            }
        }
    }

    /// Has it become what it is to be, now that its users, if it has its own, are mapped.
    pub(super) fn settle(self) -> Result<PodInit, Error> {
        self.confine().map(|()| self).map_err(|source| Error::PodInit { source })
    }

    fn confine(&self) -> sys::Result<()> {
        let call = |name: &'static str| move |errno| sys::Error::new(name, errno);
        set_socket_timeout(&self.connection, Timeout::Recv, Some(CONFINED))
            .map_err(call("setsockopt(SO_RCVTIMEO)"))?;
        rustix::io::write(&self.connection, GO_ON).map_err(call("write(socket)"))?;
        let mut word = [0u8; MAX_WORD];
        let length = rustix::io::read(&self.connection, &mut word).map_err(call("read(socket)"))?;
        match word[..length].split_first_chunk() {
            Some((&errno, text)) => match i32::from_ne_bytes(errno) {
                0 => Ok(()),
                errno => Err(sys::Error::new(String::from_utf8_lossy(text), Errno::from_raw_os_error(errno))),
            },
            None => Err(sys::Error::new("the process ended before it was confined", Errno::CHILD)),
        }
    }
}

/// Its whole life: waits until it may go on, becomes what it is to be, tells, and waits for the monitor's end.
fn live(kept: Vec<OwnedFd>) {
    let mut kept = kept.into_iter();
    let (Some(monitor), mounts) = (kept.next(), kept.next()) else { return };
    let mut word = [0u8; 1];
    if !matches!(rustix::io::read(&monitor, &mut word), Ok(1)) || word != GO_ON {
        return;
    }
    match become_first(mounts) {
        Ok(()) => {
            // From here on, anything but read, write and exit is death.
            let _ = rustix::io::write(&monitor, &0i32.to_ne_bytes());
            // All signals but SIGKILL are as nothing to a first process without handlers.
            while matches!(rustix::io::read(&monitor, &mut word), Ok(1..) | Err(Errno::INTR)) {}
            sys::process::exit_thread(0)
        }
        Err(error) => {
            let mut word = error.errno().raw_os_error().to_ne_bytes().to_vec();
            word.extend(error.to_string().bytes());
            word.truncate(MAX_WORD);
            let _ = rustix::io::write(&monitor, &word);
        }
    }
}

fn become_first(mounts: Option<OwnedFd>) -> sys::Result<()> {
    let call = |name: &'static str| {
        move |error: io::Error| sys::Error::new(name, Errno::from_io_error(&error).unwrap_or(Errno::IO))
    };
    init::become_root().map_err(|error| match error {
        init::Error::User { source, .. } => source,
        other => sys::Error::new(other, Errno::PERM),
    })?;
    sys::signal::ignore(libc::SIGCHLD).map_err(call("signal(SIGCHLD, SIG_IGN)"))?;
    // Those in the pod see it, and are not to read of the host's folders.
    let _ = rustix::thread::set_name(TITLE);
    let _ = sys::process::set_title(TITLE);
    if let Some(mounts) = mounts {
        sys::process::setns(mounts, ThreadNameSpaceType::MOUNT)?;
    }
    sys::process::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP)?;
    empty_root()?;
    init::give_up_capabilities()?;
    // The change of user may have undone it.
    sys::process::set_not_dumpable()?;
    credential::no_new_privs()?;
    give_up_calls()
}

/// Leaves the host's mounts for a root with nothing in it that nobody can write to.
fn empty_root() -> sys::Result<()> {
    sys::mount::set_propagation("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = sys::mount::Context::open("tmpfs")?.mount(attributes)?;
    let old = sys::mount::open_directory(Path::new("/"))?;
    sys::mount::attach(&root, &old)?;
    file::fchdir(&root)?;
    sys::mount::pivot_root_here()?;
    file::fchdir(&old)?;
    sys::mount::unmount(".", UnmountFlags::DETACH)?;
    file::chdir("/")
}

/// Leaves the calling process read, write and exit.
fn give_up_calls() -> sys::Result<()> {
    match credential::strict_seccomp() {
        // Whoever started the agent has filters for us, beside which there is only one more of these.
        Err(error) if error.errno() == Errno::INVAL => {
            let program = seccomp::compile(&few_calls())
                .map_err(|error| sys::Error::new(crate::shim::chain(&error), Errno::INVAL))?;
            credential::load_seccomp(&credential::filters(&program.to_bytes()), 0).map(drop)
        }
        result => result,
    }
}

/// What strict mode allows.
fn few_calls() -> LinuxSeccomp {
    let names = ["read", "write", "exit", "rt_sigreturn"].map(str::to_owned);
    let allowed = LinuxSyscallBuilder::default().names(names).action(LinuxSeccompAction::ScmpActAllow);
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActKillProcess)
        .syscalls(vec![allowed.build().expect("every required field is given")])
        .build()
        .expect("every required field is given")
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// A filter that allows everything.
    fn load_filter() -> sys::Result<()> {
        let all =
            LinuxSeccompBuilder::default().default_action(LinuxSeccompAction::ScmpActLog).build().unwrap();
        let program = seccomp::compile(&all).unwrap();
        credential::load_seccomp(&credential::filters(&program.to_bytes()), 0).map(drop)
    }

    #[test]
    fn a_process_has_few_calls_left_even_when_it_is_filtered_already() {
        for filtered in [false, true] {
            let mut command = Command::new("/bin/true");
            sys::child::before_exec(&mut command, move || {
                credential::no_new_privs()?;
                if filtered {
                    load_filter()?;
                }
                Ok(give_up_calls()?)
            });
            let status = command.spawn().unwrap().wait().unwrap();
            assert!(matches!(status.signal(), Some(libc::SIGKILL | libc::SIGSYS)), "{filtered}: {status}");
        }
    }
}
