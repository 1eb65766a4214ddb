//! The file system that writable layers are on, and the names of block devices.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rustix::fs::{major, minor, stat, statvfs};

/// A file system's size, as its owner sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// Bytes it can hold.
    pub(crate) bytes: u64,
    /// Inodes it can have; 0 where there is no such number.
    pub(crate) inodes: u64,
    /// Inodes not in use.
    pub(crate) inodes_free: u64,
    /// Its device, such as `/dev/sda1`.
    pub(crate) device: String,
}

/// Names of devices, which do not change while they are there.
#[derive(Debug)]
pub(super) struct Disks {
    sysfs: PathBuf,
    names: Mutex<HashMap<(u32, u32), String>>,
}

impl Disks {
    pub(super) fn new() -> Disks {
        Disks { sysfs: "/sys/dev/block".into(), names: Mutex::default() }
    }

    /// Of the file system that a folder is on; all zero when it cannot be asked.
    pub(super) fn capacity(&self, folder: &Path) -> Capacity {
        let (Ok(system), Ok(stat)) = (statvfs(folder), stat(folder)) else { return Capacity::default() };
        Capacity {
            bytes: system.f_blocks.saturating_mul(system.f_frsize),
            inodes: system.f_files,
            inodes_free: system.f_ffree,
            device: self.name(major(stat.st_dev), minor(stat.st_dev)),
        }
    }

    /// `/dev/NAME`, or the numbers of a device that has no name.
    pub(super) fn name(&self, major: u32, minor: u32) -> String {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.entry((major, minor)).or_insert_with(|| self.look_up(major, minor)).clone()
    }

    fn look_up(&self, major: u32, minor: u32) -> String {
        let numbers = format!("{major}:{minor}");
        let event = fs::read_to_string(self.sysfs.join(&numbers).join("uevent")).unwrap_or_default();
        let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        name.map_or(numbers, |name| format!("/dev/{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_the_kernel_names_them() {
        let sysfs = tempfile::tempdir().unwrap();
        fs::create_dir(sysfs.path().join("8:1")).unwrap();
        fs::write(sysfs.path().join("8:1/uevent"), "MAJOR=8\nMINOR=1\nDEVNAME=sda1\nDEVTYPE=partition\n")
            .unwrap();
        let disks = Disks { sysfs: sysfs.path().into(), names: Mutex::default() };
        assert_eq!((disks.name(8, 1), disks.name(0, 42)), ("/dev/sda1".into(), "0:42".into()));
    }

    #[test]
    fn the_root_has_a_size() {
        let capacity = Disks::new().capacity(Path::new("/"));
        assert!(capacity.bytes > 0 && !capacity.device.is_empty(), "{capacity:?}");
        assert_eq!(Disks::new().capacity(Path::new("/no/such/folder")), Capacity::default());
    }
}
