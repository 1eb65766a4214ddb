//! Device nodes of a container: the ones every container has, and those of its configuration.
//!
//! In a user namespace, where nodes can't be made, those of the host are bound instead.
//! Nodes are made where they are missing. What is there already has to be the same device: a node
//! that an image brought is never taken for another one. A `/dev` that is bound from the host is
//! left as it is.

use std::os::fd::OwnedFd;
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount};
use rustix::fs::{CWD, FileType, OFlags, ResolveFlags};

use super::{Error, Result, rootfs::Rootfs};
use crate::beneath;
use crate::sys::{self, file};

/// Name, major, minor.
const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Target, name.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

pub(super) fn make(rootfs: &Rootfs, mounts: &[Mount], devices: &[LinuxDevice], bound: bool) -> Result<()> {
    if !is_bound(mounts) {
        let failed = |name: &str| {
            let path = Path::new("/dev").join(name);
            move |source| Error::Device { path, source }
        };
        let dev = beneath::directory(rootfs, Path::new("/dev")).map_err(failed(""))?;
        for (name, major, minor) in NODES {
            let (kind, numbers) = (FileType::CharacterDevice, (major, minor));
            if bound {
                bind(rootfs, &Path::new("/dev").join(name), kind, numbers).map_err(|e| e.at("/dev", name))?;
                continue;
            }
            node(&dev, Path::new(name), kind, 0o666, numbers).map_err(|e| e.at("/dev", name))?;
        }
        for (target, name) in LINKS {
            file::symlinkat(target, &dev, name).map_err(failed(name))?;
        }
    }
    // Every container has a multiplexer of its own, that of its devpts.
    for device in devices.iter().filter(|device| device.path() != Path::new("/dev/ptmx")) {
        make_listed(rootfs, device, bound)?;
    }
    Ok(())
}

fn is_bound(mounts: &[Mount]) -> bool {
    mounts.iter().any(|mount| {
        let bound = mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
        mount.destination() == Path::new("/dev") && (bound || mount.typ().as_deref() == Some("bind"))
    })
}

fn make_listed(rootfs: &Rootfs, device: &LinuxDevice, bound: bool) -> Result<()> {
    let path = device.path();
    let refused = |problem| Error::DeviceRefused { path: path.clone(), problem };
    let failed = |source| Error::Device { path: path.clone(), source };
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => return Err(refused("\"a\" is no type of a node")),
    };
    let number = |value: i64| u32::try_from(value).map_err(|_| refused("its numbers are out of range"));
    let numbers =
        if kind == FileType::Fifo { (0, 0) } else { (number(device.major())?, number(device.minor())?) };
    if bound && kind != FileType::Fifo {
        return bind(rootfs, path, kind, numbers).map_err(|error| error.at_path(path));
    }
    let (parent, name) = beneath::parent(rootfs, path).map_err(failed)?;
    let mode = device.file_mode().unwrap_or(0o666) & 0o7777;
    if node(&parent, Path::new(name), kind, mode, numbers).map_err(|error| error.at_path(path))? {
        let (uid, gid) = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
        if (uid, gid) != (0, 0) {
            file::fchownat(&parent, name, uid, gid).map_err(failed)?;
        }
    }
    Ok(())
}

enum NodeError {
    Call(sys::Error),
    Taken,
    Missing,
}

impl NodeError {
    fn at(self, directory: &str, name: &str) -> Error {
        self.at_path(&Path::new(directory).join(name))
    }

    fn at_path(self, path: &Path) -> Error {
        let path = path.to_owned();
        match self {
            NodeError::Call(source) => Error::Device { path, source },
            NodeError::Missing => {
                Error::DeviceRefused { path, problem: "the host has no such device to be bound" }
            }
            NodeError::Taken => Error::DeviceRefused { path, problem: "something else has its place" },
        }
    }
}

/// Mounts the host's node of the same path, which has to be the same device.
fn bind(
    rootfs: &Rootfs,
    path: &Path,
    kind: FileType,
    numbers: (u32, u32),
) -> std::result::Result<(), NodeError> {
    let path = Path::new("/").join(path);
    let source = file::open_path_at(CWD, &path, OFlags::empty()).map_err(NodeError::Call)?;
    if !is(&source, kind, numbers).map_err(NodeError::Call)? {
        return Err(NodeError::Missing);
    }
    let attached = beneath::file(rootfs, &path).and_then(|target| {
        let tree = sys::mount::clone_tree(&source, "", false)?;
        sys::mount::attach(&tree, &target)
    });
    attached.map_err(NodeError::Call)
}

/// Makes a node; false when the very same was there already.
fn node(
    directory: &OwnedFd,
    name: &Path,
    kind: FileType,
    mode: u32,
    numbers: (u32, u32),
) -> std::result::Result<bool, NodeError> {
    if file::mknodat(directory, name, kind, mode, numbers).map_err(NodeError::Call)? {
        return Ok(true);
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let found = file::openat2(directory, name, flags, ResolveFlags::BENEATH).map_err(NodeError::Call)?;
    if is(&found, kind, numbers).map_err(NodeError::Call)? { Ok(false) } else { Err(NodeError::Taken) }
}

/// Whether a descriptor is of a certain device.
pub(super) fn is(found: &OwnedFd, kind: FileType, (major, minor): (u32, u32)) -> sys::Result<bool> {
    let stat = file::fstat(found)?;
    let same_numbers = kind == FileType::Fifo || stat.st_rdev == rustix::fs::makedev(major, minor);
    Ok(FileType::from_raw_mode(stat.st_mode) == kind && same_numbers)
}
