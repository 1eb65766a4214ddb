//! User and time namespaces: the birth of a container's process in them, and mappings of ids.
//!
//! A process can't enter a new user namespace and keep the host's view, nor a new time namespace by itself. So the
//! process that was cloned first is only a midwife: it does what needs the host (cgroup, sources of mounts), clones
//! the container's process as its sibling, writes its mappings, tells the parent and exits.

use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::thread::UnshareFlags;

use super::{Error, Result, namespace::Namespaces};
use crate::container::Reporter;
use crate::sys::{self, credential, file, process::Forked};

/// Whether a configuration asks for a namespace that takes a midwife.
pub(crate) fn needs_midwife(spec: &Spec) -> bool {
    let namespaces = spec.linux().iter().filter_map(|linux| linux.namespaces().as_ref()).flatten();
    namespaces
        .map(oci_spec::runtime::LinuxNamespace::typ)
        .any(|kind| matches!(kind, LinuxNamespaceType::User | LinuxNamespaceType::Time))
}

/// Clones the container's process into its user, time and pid namespaces. Returns in it; the caller exits.
///
/// `limit_tasks` is for once it is there, and before it does anything.
pub(super) fn deliver(
    namespaces: &Namespaces,
    linux: &Linux,
    reporter: &Reporter,
    limit_tasks: impl FnOnce() -> Result<()>,
) -> Result<()> {
    if namespaces.has_new(LinuxNamespaceType::Time) {
        sys::process::unshare(UnshareFlags::from_bits_retain(libc::CLONE_NEWTIME as u32))
            .map_err(Error::NewNamespaces)?;
        set_time_offsets(linux)?;
    }
    namespaces.join_of_birth()?;
    let new_users = namespaces.has_new(LinuxNamespaceType::User);
    let (waiting, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| Error::Descriptors(sys::Error::new("pipe2(O_CLOEXEC)", errno)))?;
    let mut flags = libc::CLONE_PARENT as u64;
    flags |= if new_users { libc::CLONE_NEWUSER as u64 } else { 0 };
    flags |= if namespaces.has_new(LinuxNamespaceType::Pid) { libc::CLONE_NEWPID as u64 } else { 0 };
    match sys::process::fork(flags, None).map_err(Error::NewNamespaces)? {
        Forked::Child => {
            drop(go);
            // One byte when the mappings are there; an end without it, and the midwife has said why.
            if !matches!(rustix::io::read(&waiting, &mut [0u8; 1]), Ok(1)) {
                sys::process::exit(super::EXIT_FAILED);
            }
            // The session of its midwife is not its own, and only who leads one can take a terminal.
            sys::process::setsid().map_err(Error::Session)?;
            if namespaces.of_users() {
                become_root()?;
            }
            Ok(())
        }
        Forked::Parent { pid, pidfd } => {
            let mapped = if new_users { map(pid, linux) } else { Ok(()) };
            let told = mapped.and_then(|()| limit_tasks()).and_then(|()| {
                reporter.born(pid).map_err(Error::Talk)?;
                rustix::io::write(&go, b"g")
                    .map(drop)
                    .map_err(|errno| Error::Talk(sys::Error::new("write(pipe)", errno)))
            });
            if let Err(error) = told {
                // The parent hasn't heard of it and would never reap it otherwise than as an orphan.
                let _ = sys::signal::pidfd_send_signal(&pidfd, libc::SIGKILL);
                return Err(error);
            }
            sys::process::exit(0)
        }
    }
}

/// Root of the user namespace, with all capabilities there.
pub(crate) fn become_root() -> Result<()> {
    let failed = |source| Error::User { uid: 0, gid: 0, source };
    credential::setgid(0).map_err(failed)?;
    credential::setuid(0).map_err(failed)?;
    credential::setgroups(&[]).map_err(failed)
}

fn map(pid: i32, linux: &Linux) -> Result<()> {
    let uids = linux.uid_mappings().as_deref().unwrap_or_default();
    let gids = linux.gid_mappings().as_deref().unwrap_or_default();
    if uids.is_empty() || gids.is_empty() {
        return Err(Error::Missing { field: "uidMappings or gidMappings for its user namespace" });
    }
    write_maps(pid, uids, gids)
}

/// Tells the kernel whom the users and groups of a new user namespace stand for.
pub(crate) fn write_maps(pid: i32, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<()> {
    for (name, mappings) in [("gid_map", gids), ("uid_map", uids)] {
        let path = PathBuf::from(format!("/proc/{pid}/{name}"));
        let mut text = String::new();
        for mapping in mappings {
            // Writing to a String can't fail.
            let _ = writeln!(text, "{} {} {}", mapping.container_id(), mapping.host_id(), mapping.size());
        }
        let written = file::openat2(CWD, &path, OFlags::WRONLY, ResolveFlags::empty())
            .and_then(|file| file::write(file, text.as_bytes()));
        written.map_err(|source| Error::Mapping { path: path.clone(), source })?;
    }
    Ok(())
}

/// `monotonic` and `boottime`, in the kernel's own words.
fn set_time_offsets(linux: &Linux) -> Result<()> {
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        let path = Path::new("/proc/self/timens_offsets");
        let line = format!("{clock} {} {}", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        let written = file::openat2(CWD, path, OFlags::WRONLY, ResolveFlags::empty())
            .and_then(|file| file::write(file, line.as_bytes()));
        written.map_err(|source| Error::Mapping { path: path.to_owned(), source })?;
    }
    Ok(())
}

/// A user namespace for the mapping of a mount: one that nobody lives in.
pub(super) fn namespace_of(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<OwnedFd> {
    let (waiting, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| Error::Descriptors(sys::Error::new("pipe2(O_CLOEXEC)", errno)))?;
    match sys::process::fork(libc::CLONE_NEWUSER as u64, None).map_err(Error::NewNamespaces)? {
        Forked::Child => {
            drop(go);
            let _ = rustix::io::read(&waiting, &mut [0u8; 1]);
            sys::process::exit(0)
        }
        Forked::Parent { pidfd, .. } => {
            let opened = pid_on_host(&pidfd).and_then(|pid| {
                write_maps(pid, uids, gids)?;
                let path = format!("/proc/{pid}/ns/user");
                rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(|errno| Error::Read { path: path.into(), source: io::Error::from(errno) })
            });
            drop(go);
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(pidfd.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            );
            opened
        }
    }
}

/// The pid by which the host's procfs, which is still mounted, knows a child of a process in a pid namespace.
fn pid_on_host(pidfd: &OwnedFd) -> Result<i32> {
    let path = PathBuf::from(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()));
    let text = std::fs::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|pid| pid.trim().parse().ok());
    pid.ok_or_else(|| Error::Read { path, source: io::ErrorKind::InvalidData.into() })
}

/// Gives a detached mount the mapping of a user namespace.
pub(super) fn map_mount(tree: impl AsFd, namespace: impl AsFd, recursive: bool) -> sys::Result<()> {
    sys::mount::set_mapping(tree, namespace, recursive)
}
