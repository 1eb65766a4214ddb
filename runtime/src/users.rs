//! The user namespace of a pod, held by a descriptor.
//!
//! It exists as long as somebody holds it: the monitor does, and the pod's other namespaces belong to it. So the
//! monitor's IPC namespace, which every such pod has of its own, is where others find it. Mounts are given its mapping
//! (Linux 5.12; 5.19 for the layers of an overlay): on the disk the owners stay what they are in images.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};
use rustix::fs::{Mode, OFlags};

use crate::sys;

/// A user namespace.
#[derive(Debug)]
pub struct UserNamespace {
    fd: OwnedFd,
    root: (u32, u32),
}

/// Why a user namespace can't be had.
#[derive(Debug, thiserror::Error)]
#[error("the user namespace that {} belongs to", path.display())]
pub struct Error {
    path: PathBuf,
    #[source]
    source: sys::Error,
}

impl AsFd for UserNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl UserNamespace {
    /// That of a pod, by the process of its monitor; `root` is who root of the pod is on the host, user and group.
    pub fn of_monitor(pid: i32, root: (u32, u32)) -> Result<UserNamespace, Error> {
        let path = PathBuf::from(format!("/proc/{pid}/ns/ipc"));
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let owner = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|errno| sys::Error::new("open(O_RDONLY)", errno))
            .and_then(sys::process::owning_users);
        owner.map(|fd| UserNamespace { fd, root }).map_err(|source| Error { path, source })
    }

    /// User and group that root is on the host.
    pub fn root(&self) -> (u32, u32) {
        self.root
    }
}

/// The users and groups of a pod as the host has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mappings {
    /// Of users.
    pub uids: Vec<LinuxIdMapping>,
    /// Of groups.
    pub gids: Vec<LinuxIdMapping>,
}

impl Mappings {
    /// Whose the pod's root is on the host.
    pub fn root(&self) -> Option<(u32, u32)> {
        let of = |list: &[LinuxIdMapping]| {
            let holds_root = list.iter().find(|run| run.container_id() == 0);
            holds_root.map(LinuxIdMapping::host_id)
        };
        Some((of(&self.uids)?, of(&self.gids)?))
    }
}

/// `INSIDE:OUTSIDE:LENGTH`, as the monitor is told a run of ids.
pub fn parse(text: &str) -> Result<LinuxIdMapping, String> {
    let parts: Option<Vec<u32>> = text.split(':').map(|part| part.parse().ok()).collect();
    match parts.as_deref() {
        Some(&[inside, outside, length]) if length > 0 => {
            let run = LinuxIdMappingBuilder::default().container_id(inside).host_id(outside).size(length);
            run.build().map_err(|error| error.to_string())
        }
        _ => Err("expected INSIDE:OUTSIDE:LENGTH".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_ids_are_three_numbers_of_which_the_last_is_not_zero() {
        let run = parse("0:100000:65536").unwrap();
        assert_eq!((run.container_id(), run.host_id(), run.size()), (0, 100_000, 65_536));
        for bad in ["", "0", "0:1", "0:1:0", "0:1:2:3", "-1:0:1", "0:4294967296:1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn root_of_the_pod_is_where_its_mapping_begins() {
        let mappings = Mappings {
            uids: vec![parse("5:10:1").unwrap(), parse("0:70:5").unwrap()],
            gids: vec![parse("0:80:5").unwrap()],
        };
        assert_eq!(mappings.root(), Some((70, 80)));
        assert_eq!(Mappings::default().root(), None);
    }
}
