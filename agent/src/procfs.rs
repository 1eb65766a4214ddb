//! A procfs of the agent's own, by which kernel parameters are set in the namespaces of pods.
//!
//! `/proc/sys/net/ipv4` is another directory in each network namespace, under one name. A procfs keeps those of all
//! namespaces that were looked at in one list, and goes through it at each namespace's first look: beside 500 pods, a
//! start spent a millisecond there. So one that has served some pods is put away for a new one.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use tracing::debug;

/// How often one is used: twice for most pods.
const USES: usize = 64;

/// The procfs for the next use, and how many uses it has had.
#[derive(Debug)]
pub(crate) struct PodProcfs(Mutex<(Procfs, usize)>);

impl PodProcfs {
    pub(crate) fn new() -> PodProcfs {
        PodProcfs(Mutex::new((Procfs::new(), 0)))
    }

    /// For one use.
    pub(crate) fn get(&self) -> Procfs {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if current.1 == USES {
            *current = (Procfs::new(), 0);
        }
        current.1 += 1;
        current.0.clone()
    }
}

/// A procfs that stays for as long as this value does; the host's, where none can be mounted.
#[derive(Debug, Clone)]
pub(crate) struct Procfs(Option<Arc<OwnedFd>>);

impl Procfs {
    fn new() -> Procfs {
        let mounted = mount().inspect_err(|error| debug!(%error, "no procfs for pods alone"));
        Procfs(mounted.ok().map(Arc::new))
    }

    /// Where every process finds it that may look into the agent.
    pub(crate) fn path(&self) -> PathBuf {
        match &self.0 {
            Some(root) => format!("/proc/{}/fd/{}", std::process::id(), root.as_raw_fd()).into(),
            None => "/proc".into(),
        }
    }
}

/// Nowhere, and gone with its descriptor.
fn mount() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_another_procfs_than_the_hosts_and_changes_after_some_pods() {
        let pods = PodProcfs::new();
        let first = pods.get();
        assert_ne!(first.path(), PathBuf::from("/proc"));
        let device = |path: PathBuf| rustix::fs::stat(path).unwrap().st_dev;
        assert_ne!(device(first.path().join("sys")), device("/proc/sys".into()));
        let forwards = |path: PathBuf| std::fs::read_to_string(path.join("sys/net/ipv4/ip_forward")).unwrap();
        assert_eq!(forwards(first.path()), forwards("/proc".into()));
        let later: Vec<Procfs> = (0..USES).map(|_| pods.get()).collect();
        assert_eq!(later[0].path(), first.path());
        assert_ne!(later.last().unwrap().path(), first.path());
        assert_eq!(forwards(first.path()), forwards("/proc".into()), "who has it keeps it");
    }
}
