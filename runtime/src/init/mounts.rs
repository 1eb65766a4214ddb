//! The mounts of a configuration, made beneath the container's root in their order.
//!
//! Every destination is a descriptor before anything is mounted on it; one that is missing is made.
//! Sources of bind mounts are paths of the host, which whoever wrote the configuration vouches for.

use std::os::fd::OwnedFd;
use std::path::Path;

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType, OFlags};
use rustix::io::Errno;

use super::{Error, Result, cgroupfs, rootfs::Rootfs};
use crate::beneath;
use crate::mount::{Bind, Options};
use crate::sys::{self, mount::Attributes};

pub(super) fn mount_all(rootfs: &Rootfs, mounts: &[Mount], cgroups: &cgroupfs::View<'_>) -> Result<()> {
    for mount in mounts {
        let destination = mount.destination();
        let options = Options::parse(mount.options().iter().flatten())
            .map_err(|option| refused(destination, format!("option {option:?} is not supported")))?;
        let kind = mount.typ().as_deref().unwrap_or("none");
        match options.bind {
            Some(bind) => bind_mount(rootfs, mount, bind, &options)?,
            None if kind == "bind" => bind_mount(rootfs, mount, Bind::Recursive, &options)?,
            None if matches!(kind, "cgroup" | "cgroup2") => {
                let target = directory(rootfs, destination, true)?;
                let mounted = cgroupfs::mount(&target, &options, cgroups);
                mounted.map_err(failed(kind, destination))?;
            }
            None => filesystem(rootfs, mount, kind, &options)?,
        }
    }
    Ok(())
}

fn filesystem(rootfs: &Rootfs, mount: &Mount, kind: &str, options: &Options) -> Result<()> {
    let destination = mount.destination();
    // Masks are found by path later: where proc and sys are must not be for a symlink to say.
    let target = directory(rootfs, destination, matches!(kind, "proc" | "sysfs"))?;
    let detached = crate::mount::filesystem(kind, mount.source().as_deref(), options);
    let attached = detached.and_then(|detached| {
        sys::mount::attach(&detached, &target)?;
        propagate(&detached, options)
    });
    attached.map_err(failed(kind, destination))
}

fn bind_mount(rootfs: &Rootfs, mount: &Mount, bind: Bind, options: &Options) -> Result<()> {
    let destination = mount.destination();
    let path = mount.source().as_deref().ok_or_else(|| refused(destination, "no source".to_owned()))?;
    let no_source =
        |source| Error::MountSource { from: path.to_owned(), destination: destination.clone(), source };
    let tree = sys::mount::clone_tree(CWD, path, bind == Bind::Recursive).map_err(no_source)?;
    let stat = sys::file::fstat(&tree).map_err(no_source)?;
    let target = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        directory(rootfs, destination, false)?
    } else {
        beneath::file(rootfs, destination).map_err(no_destination(destination))?
    };
    let attached = crate::mount::restrict(&tree, options).and_then(|()| {
        sys::mount::attach(&tree, &target)?;
        propagate(&tree, options)
    });
    attached.map_err(failed("bind", destination))
}

/// Only an attached mount can be shared with others.
fn propagate(mount: &OwnedFd, options: &Options) -> sys::Result<()> {
    let Some((propagation, recursive)) = options.propagation else { return Ok(()) };
    sys::mount::set_attributes(mount, Attributes { propagation, ..Attributes::default() }, recursive)
}

/// A directory to mount on. The root itself is none: everything here is resolved beneath it.
fn directory(rootfs: &Rootfs, destination: &Path, plain: bool) -> Result<OwnedFd> {
    let found =
        if plain { plain_directory(rootfs, destination) } else { beneath::directory(rootfs, destination) };
    let found = found.map_err(no_destination(destination))?;
    let (stat, root) = (sys::file::fstat(&found), sys::file::fstat(rootfs));
    let (stat, root) =
        (stat.map_err(no_destination(destination))?, root.map_err(no_destination(destination))?);
    if (stat.st_dev, stat.st_ino) == (root.st_dev, root.st_ino) {
        return Err(refused(destination, "the root itself can't be mounted on".to_owned()));
    }
    Ok(found)
}

fn plain_directory(rootfs: &Rootfs, path: &Path) -> sys::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match beneath::open_plain(rootfs, path, flags) {
        Err(error) if error.errno() == Errno::NOENT => {
            beneath::directory(rootfs, path)?;
            beneath::open_plain(rootfs, path, flags)
        }
        result => result,
    }
}

fn failed(kind: &str, destination: &Path) -> impl FnOnce(sys::Error) -> Error {
    move |source| Error::Mount { kind: kind.to_owned(), destination: destination.to_owned(), source }
}

fn no_destination(destination: &Path) -> impl Fn(sys::Error) -> Error {
    move |source| Error::MountDestination { destination: destination.to_owned(), source }
}

fn refused(destination: &Path, problem: String) -> Error {
    Error::MountRefused { destination: destination.to_owned(), problem }
}
