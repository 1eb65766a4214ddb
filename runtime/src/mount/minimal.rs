//! A mount namespace with nothing in it but what a container is made with.
//!
//! A new mount namespace begins as a copy of its maker's, mount by mount, and takes as long to go again. On a node each
//! container adds mounts of its own (a root, volumes), so that every further start would be slower than the one before.
//! Containers whose makers stand here, with their sources of mounts open already, cost the same however many there are.
//!
//! The host's root is here without what is mounted on it, and then procfs, sysfs, the devices and the cgroup hierarchies
//! at their places. All of it is private: what the host mounts or unmounts later doesn't arrive.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, ResolveFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use super::{Error, on_own_thread};
use crate::cgroup;
use crate::sys::{self, file};

/// Such a namespace. It lives as long as this value, and as long as somebody else holds it or is in it.
#[derive(Debug)]
pub struct MinimalNamespace {
    namespace: OwnedFd,
}

impl MinimalNamespace {
    /// Makes one.
    ///
    /// # Errors
    /// No right to mount, no cgroups, or no thread to be had.
    pub fn make() -> Result<MinimalNamespace, Error> {
        make().map(|namespace| MinimalNamespace { namespace })
    }

    /// Where others can open it, for as long as this value lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd()).into()
    }
}

impl AsFd for MinimalNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

fn make() -> Result<OwnedFd, Error> {
    let root = Path::new("/");
    let hierarchies = cgroup::roots().map_err(|source| Error::Cgroups { source: Box::new(source) })?;
    let kept =
        ["/proc", "/sys", "/dev"].map(Path::new).into_iter().chain(hierarchies.iter().map(PathBuf::as_path));
    // In their order each comes after those that it is below.
    let places: BTreeSet<&Path> = kept.flat_map(Path::ancestors).filter(|path| *path != root).collect();
    // Its root and its working directory are the thread's own.
    on_own_thread("namespace", root, || build(&places))
}

fn build(places: &BTreeSet<&Path>) -> sys::Result<OwnedFd> {
    sys::process::unshare(UnshareFlags::NEWNS)?;
    sys::mount::set_propagation("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let host = sys::mount::open_directory(Path::new("/"))?;
    let root = sys::mount::clone_tree(CWD, "/", false)?;
    sys::mount::attach(&root, &host)?;
    file::fchdir(&root)?;
    sys::mount::pivot_root_here()?;
    for place in places {
        let place = place.strip_prefix("/").unwrap_or(place);
        if file::is_mounted(&host, place)? {
            let tree = sys::mount::clone_tree(&host, place, false)?;
            sys::mount::attach_at(&tree, &root, place)?;
        }
    }
    file::fchdir(&host)?;
    sys::mount::unmount(".", UnmountFlags::DETACH)?;
    file::openat2(CWD, Path::new("/proc/thread-self/ns/mnt"), OFlags::RDONLY, ResolveFlags::empty())
}
