//! What a shim does to itself before it serves: it becomes the process that holds the pod's namespaces.
//!
//! It stays in the host's mount, pid and cgroup namespaces. What only makes it sturdier (its own cgroup, its OOM
//! score) may fail with a word about it; what makes the pod may not.

mod first;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

pub(super) use first::PodInit;

use super::server::OomScore;
use super::{Error, Options, say};
use crate::cgroup::Cgroup;
use crate::init;
use crate::sys;
use crate::users::{Mappings, UserNamespace};

/// What a pod has beyond the namespaces that its monitor lives in.
#[derive(Default)]
pub(super) struct Made {
    /// If its containers can share their pids.
    pub(super) init: Option<PodInit>,
    /// If it has users of its own.
    pub(super) users: Option<UserNamespace>,
    /// If those of its containers begin as a copy of another than the host's.
    pub(super) mounts: Option<OwnedFd>,
}

/// Leaves the parent's session and memory limit, and asks for the pod's orphans.
///
/// Returns the OOM scores, for the containers not to inherit ours.
pub(super) fn settle(options: &Options) -> Option<OomScore> {
    let tolerate = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            say(&format!("{what}: {error}"));
        }
    };
    // Wherever we were started must not stay in use because of us.
    let _ = rustix::process::chdir("/");
    // A parent may have made us a leader already.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"sampan-shim");
    let entered =
        Cgroup::new(&options.cgroup).and_then(|cgroup| cgroup.create().and_then(|()| cgroup.enter()));
    if let Err(error) = entered {
        say(&format!("monitor cgroup {}: {}", options.cgroup, super::chain(&error)));
    }
    let oom_score = lower_oom_score();
    tolerate("lower the OOM score", oom_score.as_ref().map(drop).map_err(|error| error.kind().into()));
    tolerate(
        "become a subreaper",
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(Into::into),
    );
    let not_dumpable = rustix::process::DumpableBehavior::NotDumpable;
    tolerate("forbid dumps", rustix::process::set_dumpable_behavior(not_dumpable).map_err(Into::into));
    oom_score.ok()
}

fn lower_oom_score() -> io::Result<OomScore> {
    const OWN: &str = "-1000";
    let original = std::fs::read_to_string(OOM_SCORE)?.trim_end().to_owned();
    set_oom_score(OWN)?;
    Ok(OomScore { own: OWN, original })
}

/// Sets this process's `oom_score_adj`.
pub(super) fn set_oom_score(value: &str) -> io::Result<()> {
    write_file(Path::new(OOM_SCORE), value)
}

const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Makes the pod's namespaces and sets what belongs to them.
pub(super) fn make(options: &Options, null: &OwnedFd) -> Result<Made, Error> {
    let mut flags = UnshareFlags::empty();
    flags.set(UnshareFlags::NEWNET, !options.host_network);
    // A pod on the host's network has the host's name too, as its connections show it.
    flags.set(UnshareFlags::NEWUTS, !options.host_network);
    flags.set(UnshareFlags::NEWIPC, !options.host_ipc);
    let mounts = options.mounts.as_deref().and_then(open_mounts);
    let made = match &options.users {
        Some(mappings) => with_users(options, mappings, flags, null)?,
        None => {
            if !flags.is_empty() {
                sys::process::unshare(flags).map_err(|source| Error::Namespaces { source })?;
            }
            let fork = || PodInit::fork(libc::CLONE_NEWPID as u64, mounts.as_ref(), null)?.settle();
            Made { init: options.shared_pid.then(fork).transpose()?, ..Made::default() }
        }
    };
    settle_namespaces(options)?;
    Ok(Made { mounts, ..made })
}

/// It only makes containers quicker, so they are made without it too.
fn open_mounts(path: &Path) -> Option<OwnedFd> {
    let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty());
    opened.inspect_err(|errno| say(&format!("mount namespace {}: {errno}", path.display()))).ok()
}

/// The namespaces of a pod with users of its own belong to these. So a process that is born into all of them makes
/// them, and the monitor, which stays one of the host's users, joins what it is to live in.
fn with_users(
    options: &Options,
    mappings: &Mappings,
    flags: UnshareFlags,
    null: &OwnedFd,
) -> Result<Made, Error> {
    let failed = |error: init::Error| Error::Users { source: error.into() };
    let root = mappings.root().ok_or_else(|| failed(init::Error::Missing { field: "mapping of root" }))?;
    let mut all = u64::from(flags.bits()) | libc::CLONE_NEWUSER as u64;
    all |= if options.shared_pid { libc::CLONE_NEWPID as u64 } else { 0 };
    // A mount namespace of the host's is not for those who are nobody there.
    let holder = PodInit::fork(all, None, null)?;
    init::write_maps(holder.pid, &mappings.uids, &mappings.gids).map_err(failed)?;
    let join = ThreadNameSpaceType::from_bits_retain(flags.bits());
    sys::process::setns(&holder.pidfd, join).map_err(|source| Error::Namespaces { source })?;
    let own = std::process::id() as i32;
    let users = UserNamespace::of_monitor(own, root).map_err(|error| Error::Setup {
        step: "find the pod's user namespace",
        source: io::Error::other(super::chain(&error)),
    })?;
    // One that is not to be settled ends here. That is noticed as the end of an orphan.
    let init = options.shared_pid.then(|| holder.settle()).transpose()?;
    Ok(Made { init, users: Some(users), mounts: None })
}

/// Sets what belongs to the namespaces that the monitor is in now.
fn settle_namespaces(options: &Options) -> Result<(), Error> {
    if let Some(hostname) = options.hostname.as_deref().filter(|_| !options.host_network) {
        let set = rustix::system::sethostname(hostname.as_bytes());
        set.map_err(|errno| Error::Hostname { hostname: hostname.to_owned(), source: errno.into() })?;
    }
    options.sysctls.iter().try_for_each(|(name, value)| set_sysctl(options, name, value))
}

/// Only what a namespace of the pod's own holds may be set: anything else would be the host's.
fn set_sysctl(options: &Options, name: &str, value: &str) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Sysctl { name: name.to_owned(), value: value.to_owned(), source };
    let refuse = |why: &str| Err(failed(io::Error::new(io::ErrorKind::InvalidInput, why)));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/');
    if !name.bytes().all(plain) || name.split(['.', '/']).any(str::is_empty) || value.contains(['\0', '\n']) {
        return refuse("not the name and value of a sysctl");
    }
    let dotted = name.replace('/', ".");
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| dotted.starts_with(prefix))
        || dotted == "kernel.sem";
    match () {
        () if dotted.starts_with("net.") && options.host_network => {
            return refuse("the pod has the host's network");
        }
        () if ipc && options.host_ipc => return refuse("the pod has the host's IPC"),
        () if dotted.starts_with("net.") || ipc => {}
        () => return refuse("not in a namespace of the pod"),
    }
    // With slashes, a dot is part of a name, such as that of a VLAN interface.
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let procfs = options.procfs.as_deref().unwrap_or(Path::new("/proc"));
    write_file(&procfs.join("sys").join(path), value).map_err(failed)
}

fn write_file(path: &Path, value: &str) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    Ok(rustix::io::write(&file, value.as_bytes()).map(drop)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(host: bool) -> Options {
        Options { host_network: host, host_ipc: host, ..Options::default() }
    }

    #[test]
    fn sysctls_of_the_host_and_things_that_are_none_are_refused() {
        for (host, name, value) in [
            (false, "kernel.core_pattern", "|/bin/sh"),
            (false, "kernel.shm_rmid_forced/../core_pattern", "x"),
            (false, "net..ipv4", "1"),
            (false, "net.ipv4.ip_forward", "1\n2"),
            (false, "kernel.shmmax+x", "1"),
            (true, "net.ipv4.ip_forward", "1"),
            (true, "kernel.msgmax", "1"),
        ] {
            let error = set_sysctl(&options(host), name, value).unwrap_err();
            assert!(error.is_invalid_argument(), "{name}: {error}");
        }
    }
}
