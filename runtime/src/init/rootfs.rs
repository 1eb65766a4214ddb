//! The container's root file system, from a directory of the host to `/`.
//!
//! A bind mount of the directory on itself is what pivot_root needs, and its descriptor is what
//! all paths of the container are resolved beneath.

use std::collections::HashMap;
use std::iter::successors;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::Linux;
use rustix::fs::{CWD, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::{Error, Result};
use crate::mount::propagation;
use crate::mountinfo::{self, Entry};
use crate::sys::{self, file, mount::Attributes};

pub(super) struct Rootfs {
    fd: OwnedFd,
    /// As the configuration has it: kind, and whether mounts below are meant too.
    propagation: Option<(u64, bool)>,
    place: Place,
}

/// Where its mount is.
#[derive(PartialEq, Eq)]
enum Place {
    /// On its own directory.
    Directory,
    /// The same in a namespace that is not the container's, where nothing else may change.
    Guest,
    /// Over the namespace's root.
    Root,
}

impl AsFd for Rootfs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Rootfs {
    /// A copy of the mounts at `path`, attached to nothing, for a container that won't be able to reach it by itself.
    pub(super) fn open_tree(path: &Path, linux: &Linux) -> Result<OwnedFd> {
        let failed = |source| Error::Rootfs { path: path.to_owned(), source };
        let tree = sys::mount::clone_tree(CWD, path, true).map_err(failed)?;
        let (kind, recursive) = known_propagation(linux.rootfs_propagation().as_deref())?.unwrap_or(UNASKED);
        let kind = cut_off(kind, recursive).unwrap_or(kind);
        let attributes = Attributes { propagation: kind, ..Attributes::default() };
        sys::mount::set_attributes(&tree, attributes, true).map_err(failed)?;
        Ok(tree)
    }

    /// In the mount namespace of the caller: binds `path` on itself, in private.
    pub(super) fn as_guest(path: &Path) -> Result<Rootfs> {
        let failed = |source| Error::Rootfs { path: path.to_owned(), source };
        let directory = sys::mount::open_directory(path).map_err(failed)?;
        let fd = sys::mount::clone_tree(&directory, "", true).map_err(failed)?;
        let private = Attributes { propagation: libc::MS_PRIVATE, ..Attributes::default() };
        sys::mount::set_attributes(&fd, private, true).map_err(failed)?;
        sys::mount::attach(&fd, &directory).map_err(failed)?;
        Ok(Rootfs { fd, propagation: None, place: Place::Guest })
    }

    /// In a mount namespace of the container's: cuts it off from the host's as `word` says, and binds `path` on itself, or `tree`
    /// where there is one.
    pub(super) fn prepare(path: &Path, word: Option<&str>, tree: Option<OwnedFd>) -> Result<Rootfs> {
        let failed = |source| Error::Rootfs { path: path.to_owned(), source };
        let propagation = known_propagation(word)?;
        let (kind, recursive) = propagation.unwrap_or(UNASKED);
        let mut flags = MountPropagationFlags::from_bits_retain(kind as u32);
        flags.set(MountPropagationFlags::REC, recursive);
        sys::mount::set_propagation("/", flags).map_err(failed)?;

        if let Some(fd) = tree {
            // Over the root, which every user can reach; paths of the host go on being resolved beneath it.
            let root = sys::mount::open_directory(Path::new("/")).map_err(failed)?;
            set_mount_of(&root, libc::MS_PRIVATE).map_err(failed)?;
            sys::mount::attach(&fd, &root).map_err(failed)?;
            return Ok(Rootfs { fd, propagation, place: Place::Root });
        }
        let directory = sys::mount::open_directory(path).map_err(failed)?;
        let cut_off = cut_off(kind, recursive);
        if let Some(kind) = cut_off {
            set_mount_of(&directory, kind).map_err(failed)?;
        }
        let fd = sys::mount::clone_tree(&directory, "", true).map_err(failed)?;
        if let Some(kind) = cut_off {
            let attributes = Attributes { propagation: kind, ..Attributes::default() };
            sys::mount::set_attributes(&fd, attributes, true).map_err(failed)?;
        }
        sys::mount::attach(&fd, &directory).map_err(failed)?;
        Ok(Rootfs { fd, propagation, place: Place::Directory })
    }

    /// Makes it the root, drops the host's mounts and closes it for writing when asked.
    ///
    /// Without `pivot` the root is moved over the host's and entered by chroot, for hosts whose root can't be pivoted.
    pub(super) fn enter(self, read_only: bool, pivot: bool) -> Result<()> {
        file::fchdir(&self.fd).map_err(Error::Pivot)?;
        if pivot && self.place != Place::Guest {
            self.pivot()?;
        } else {
            if self.place != Place::Guest {
                self.hide_those_of_the_kernel()?;
            }
            if self.place == Place::Directory {
                sys::mount::attach_at(&self.fd, CWD, "/").map_err(Error::Pivot)?;
            }
            rustix::process::chroot(".")
                .map_err(|errno| Error::Pivot(sys::Error::new("chroot(\".\")", errno)))?;
        }
        file::chdir("/").map_err(Error::Pivot)?;
        if let Some((kind, recursive)) = self.propagation {
            let attributes = Attributes { propagation: kind, ..Attributes::default() };
            sys::mount::set_attributes(&self.fd, attributes, recursive).map_err(Error::Pivot)?;
        }
        if read_only {
            let attributes = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
            sys::mount::set_attributes(&self.fd, attributes, false)
                .map_err(|source| Error::ReadOnly { path: Path::new("/").to_owned(), source })?;
        }
        Ok(())
    }

    /// Takes away, or covers, each procfs and sysfs that isn't the container's. What is only out of reach counts for the
    /// kernel: with one that has nothing masked, a user namespace may mount another such.
    fn hide_those_of_the_kernel(&self) -> Result<()> {
        let path = Path::new("/proc/self/mountinfo");
        let unread = |source| Error::Read { path: path.to_owned(), source };
        let table = std::fs::read_to_string(path).map_err(unread)?;
        let own = mountinfo::id_of(&self.fd).map_err(|errno| unread(errno.into()))?;
        let mounts: Vec<Entry<'_>> = table.lines().filter_map(Entry::parse).collect();
        let parents: HashMap<u64, u64> = mounts.iter().map(|mount| (mount.id, mount.parent)).collect();
        // The root of a namespace is its own parent, or that of nobody who is listed.
        let step = |id: &u64| parents.get(id).copied().filter(|parent| parent != id);
        let is_own = |mount: &&Entry<'_>| successors(Some(mount.id), step).any(|id| id == own);
        for mount in mounts.iter().filter(|mount| matches!(mount.kind, "proc" | "sysfs") && !is_own(mount)) {
            let path = mount.path();
            // The host's must not go too.
            if sys::mount::set_propagation(&path, SLAVES).is_err() {
                // It went with another, or nobody can reach it.
                continue;
            }
            match sys::mount::unmount(&path, UnmountFlags::DETACH) {
                // Locked, as it came from the owner of a user namespace.
                Err(error) if matches!(error.errno(), Errno::INVAL | Errno::PERM) => {
                    sys::mount::mount("tmpfs", &path, "tmpfs", MountFlags::empty(), c"")
                        .map_err(Error::Pivot)?;
                }
                result => result.map_err(Error::Pivot)?,
            }
        }
        Ok(())
    }

    fn pivot(&self) -> Result<()> {
        // Held by its descriptor: a path that ends in "." means the new root, on top of which the old one comes to lie.
        let old = sys::mount::open_directory(Path::new("/")).map_err(Error::Pivot)?;
        sys::mount::pivot_root_here().map_err(Error::Pivot)?;
        file::fchdir(&old).map_err(Error::Pivot)?;
        // Its unmounting must not reach the host, nor must the container's own mounts be cut off from it.
        if self.propagation.is_some() {
            sys::mount::set_propagation(".", SLAVES).map_err(Error::Pivot)?;
        }
        sys::mount::unmount(".", UnmountFlags::DETACH).map_err(Error::Pivot)
    }
}

/// What a container's copies of the host's mounts are made, if anything.
pub(super) fn inherited_propagation(linux: Option<&Linux>) -> Result<Option<u64>> {
    let word = linux.and_then(|linux| linux.rootfs_propagation().as_deref());
    let (kind, recursive) = known_propagation(word)?.unwrap_or(UNASKED);
    Ok(recursive.then_some(kind))
}

/// Of mounts that are about to go: their end stays in this namespace.
const SLAVES: MountPropagationFlags = MountPropagationFlags::DOWNSTREAM.union(MountPropagationFlags::REC);

/// Without a word, what the host mounts later still arrives, and nothing of ours gets out.
const UNASKED: (u64, bool) = (libc::MS_SLAVE, true);

/// Kind and recursiveness of a word of the configuration.
fn known_propagation(word: Option<&str>) -> Result<Option<(u64, bool)>> {
    let word = word.filter(|word| !word.is_empty());
    word.map(|word| propagation(word).ok_or_else(|| Error::Propagation { word: word.to_owned() })).transpose()
}

/// What the root's mounts are made first, where what the container mounts could show up on the host otherwise. What the host
/// mounts still gets in where that was asked for.
fn cut_off(kind: u64, recursive: bool) -> Option<u64> {
    let gets_out = kind == libc::MS_SHARED || !recursive;
    gets_out.then_some(if kind == libc::MS_SLAVE { kind } else { libc::MS_PRIVATE })
}

/// Makes the mount that `directory` lies on one of this kind.
fn set_mount_of(directory: &OwnedFd, kind: u64) -> sys::Result<()> {
    let attributes = Attributes { propagation: kind, ..Attributes::default() };
    let mut current = file::open_path_at(directory, ".", OFlags::DIRECTORY)?;
    loop {
        match sys::mount::set_attributes(&current, attributes, false) {
            // Not the root of a mount: that is further up.
            Err(error) if error.errno() == Errno::INVAL => {
                current = file::open_path_at(&current, "..", OFlags::DIRECTORY)?;
            }
            result => return result,
        }
    }
}
