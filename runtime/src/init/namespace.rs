//! The namespaces of a container: new ones, those of others, or the parent's.
//!
//! The pid namespace is the parent's business, since it takes effect at clone; with a user or time namespace it is the
//! midwife's (see `identity`). A mount namespace of its own is a must for containers of monitors; on the command line one
//! that has none mounts in its caller's, as the specification has it, and nothing else there is changed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespaceType};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

use super::{Error, PodNamespaces, Result};
use crate::sys;

/// What stands for the path of a namespace that is known by its descriptor.
const OF_POD: &str = "(the pod's)";

pub(super) struct Namespaces {
    join: Vec<Join>,
    new: UnshareFlags,
}

struct Join {
    kind: LinuxNamespaceType,
    path: PathBuf,
    file: OwnedFd,
}

impl Join {
    fn enter(&self) -> Result<()> {
        let Join { kind, path, file } = self;
        sys::process::setns(file, ThreadNameSpaceType::from_bits_retain(*kind as u32))
            .map_err(|source| Error::JoinNamespace { kind: kind.to_string(), path: path.clone(), source })
    }
}

/// Whether a process gets a namespace of this kind when it is cloned, and never later.
fn is_of_birth(kind: LinuxNamespaceType) -> bool {
    matches!(kind, LinuxNamespaceType::User | LinuxNamespaceType::Pid | LinuxNamespaceType::Time)
}

impl Namespaces {
    /// Opens those to be joined, which needs the host's mounts. Those of the pod are open already.
    pub(super) fn of(linux: &Linux, pod: PodNamespaces, on_command_line: bool) -> Result<Namespaces> {
        let of_pod =
            |kind, file: Option<OwnedFd>| file.map(|file| Join { kind, path: PathBuf::from(OF_POD), file });
        let users = of_pod(LinuxNamespaceType::User, pod.users);
        let join = users.into_iter().chain(of_pod(LinuxNamespaceType::Pid, pod.pids)).collect();
        let mut namespaces = Namespaces { join, new: UnshareFlags::empty() };
        for namespace in linux.namespaces().iter().flatten() {
            let kind = namespace.typ();
            match namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
                None => namespaces.new |= UnshareFlags::from_bits_retain(kind as u32),
                Some(path) => {
                    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
                    let file = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|errno| {
                        let source = sys::Error::new("open(O_RDONLY)", errno);
                        Error::JoinNamespace { kind: kind.to_string(), path: path.clone(), source }
                    })?;
                    namespaces.join.push(Join { kind, path: path.clone(), file });
                }
            }
        }
        let own_mounts = namespaces.has_own(LinuxNamespaceType::Mount);
        if !own_mounts && (!on_command_line || namespaces.of_users()) {
            return Err(Error::Missing { field: "mount namespace" });
        }
        // Its root and its working directory come with a mount namespace: whatever is found by a path goes before.
        namespaces.join.sort_by_key(|join| join.kind == LinuxNamespaceType::Mount);
        Ok(namespaces)
    }

    /// Joins, then makes the new ones in one call, but for that of cgroups. Those of birth are there already, and where there
    /// are users of the container's own, those that take the host's privileges.
    pub(super) fn enter(&self) -> Result<()> {
        let early = self.of_users();
        let late =
            |join: &&Join| !is_of_birth(join.kind) && (!early || join.kind == LinuxNamespaceType::Mount);
        self.join.iter().filter(late).try_for_each(Join::enter)?;
        let others = [
            LinuxNamespaceType::User,
            LinuxNamespaceType::Pid,
            LinuxNamespaceType::Time,
            LinuxNamespaceType::Cgroup,
        ];
        let others = others.into_iter().fold(0, |flags, kind| flags | kind as u32);
        let new = self.new.difference(UnshareFlags::from_bits_retain(others));
        sys::process::unshare(new).map_err(Error::NewNamespaces)
    }

    /// Whether the host's cgroups are where they were, once the others have been entered.
    pub(super) fn leave_hierarchies(&self) -> bool {
        let joined = |kind| self.join.iter().any(|join| join.kind == kind);
        !joined(LinuxNamespaceType::Mount) && !joined(LinuxNamespaceType::Cgroup)
    }

    /// Makes one of cgroups if it is to be new: its root is the cgroup that the process is in.
    pub(super) fn enter_that_of_cgroups(&self) -> Result<()> {
        match self.has_new(LinuxNamespaceType::Cgroup) {
            true => sys::process::unshare(UnshareFlags::NEWCGROUP).map_err(Error::NewNamespaces),
            false => Ok(()),
        }
    }

    /// Joins those that a process gets by being born in them; users last, as that gives up the host's privileges. With
    /// users of the container's own, others come before: they may belong to others still.
    pub(super) fn join_of_birth(&self) -> Result<()> {
        if self.of_users() {
            let early = |join: &&Join| !is_of_birth(join.kind) && join.kind != LinuxNamespaceType::Mount;
            self.join.iter().filter(early).try_for_each(Join::enter)?;
        }
        let of = |kind| self.join.iter().filter(move |join| join.kind == kind);
        let others = of(LinuxNamespaceType::Pid).chain(of(LinuxNamespaceType::Time));
        others.chain(of(LinuxNamespaceType::User)).try_for_each(Join::enter)
    }

    /// The user namespace of the pod, if it has one.
    pub(super) fn users_of_pod(&self) -> Option<BorrowedFd<'_>> {
        let of_pod = |join: &&Join| join.kind == LinuxNamespaceType::User && join.path == Path::new(OF_POD);
        self.join.iter().find(of_pod).map(|join| join.file.as_fd())
    }

    /// Whether the container has a user namespace of its own, new or joined.
    pub(super) fn of_users(&self) -> bool {
        self.has_own(LinuxNamespaceType::User)
    }

    pub(super) fn has_new(&self, kind: LinuxNamespaceType) -> bool {
        self.new.contains(UnshareFlags::from_bits_retain(kind as u32))
    }

    /// Whether the namespace isn't the parent's: only then may the container's settings change it.
    pub(super) fn has_own(&self, kind: LinuxNamespaceType) -> bool {
        self.has_new(kind) || self.join.iter().any(|join| join.kind == kind)
    }
}
