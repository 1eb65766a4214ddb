//! A small real filesystem: ext4 on a loop device, to be filled up.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A mounted loop device; unmounted and gone when dropped.
#[derive(Debug)]
pub struct Disk {
    // The backing file lies beside the mount point.
    base: TempDir,
}

impl Disk {
    /// An empty ext4 of so many MiB.
    ///
    /// # Panics
    /// When it cannot be made: without it the test means nothing.
    pub fn new(mebibytes: u64) -> Disk {
        // Nothing is left for the kernel to do in the background.
        let disk = Disk::unmounted(mebibytes, &["-E", "lazy_itable_init=0,lazy_journal_init=0"]);
        run(disk.mount("loop"));
        disk
    }

    /// One that keeps quotas of projects; `None` where the kernel cannot.
    ///
    /// # Panics
    /// When it cannot be made, and where `SAMPAN_TEST_QUOTAS` says that the kernel can and it does not.
    pub fn with_quotas(mebibytes: u64) -> Option<Disk> {
        let disk = Disk::unmounted(mebibytes, &["-O", "project,quota", "-E", "quotatype=prjquota"]);
        let mounted = disk.mount("loop,prjquota").output().expect("mount");
        let (can, why) = (mounted.status.success(), String::from_utf8_lossy(&mounted.stderr));
        assert!(can || std::env::var_os("SAMPAN_TEST_QUOTAS").is_none(), "no quotas here: {why}");
        can.then_some(disk)
    }

    fn unmounted(mebibytes: u64, features: &[&str]) -> Disk {
        let base = tempfile::Builder::new().prefix("sp-disk-").tempdir().expect("a temporary directory");
        let image = base.path().join("image");
        let file = std::fs::File::create(&image).expect("create the backing file");
        file.set_len(mebibytes << 20).expect("set its length");
        let disk = Disk { base };
        std::fs::create_dir(disk.path()).expect("create the mount point");
        run(Command::new("mkfs.ext4").arg("-q").arg("-m0").args(features).arg(&image));
        disk
    }

    fn mount(&self, options: &str) -> Command {
        let mut command = Command::new("mount");
        command.arg("-o").arg(options).arg(self.base.path().join("image")).arg(self.path());
        command
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.base.path().join("mnt")
    }

    /// Bytes that a process may still write.
    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.path()).expect("statvfs");
        stat.f_bavail * stat.f_frsize
    }

    /// Takes all but about so many bytes with a file, and gives its path.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn fill_but(&self, left: u64) -> PathBuf {
        let ballast = self.path().join("ballast");
        let file = std::fs::File::create(&ballast).expect("create the ballast");
        let mut length = self.free().saturating_sub(left);
        // What describes the file takes space too.
        while rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length).is_err() {
            length = length.checked_sub(64 << 10).expect("a disk with room");
        }
        ballast
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.path());
    }
}

fn unmount(path: &Path) {
    // Lazily: what still holds it must not keep the test machine's loop device.
    drop(Command::new("umount").arg("-l").arg(path).status());
}

fn run(mut command: impl std::borrow::BorrowMut<Command>) {
    let command = command.borrow_mut();
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_refuses_and_goes_away() {
        let disk = Disk::new(16);
        let path = disk.path();
        let ballast = disk.fill_but(1 << 20);
        assert!(disk.free() < 2 << 20);
        assert!(std::fs::write(path.join("file"), vec![0; 4 << 20]).is_err());
        std::fs::remove_file(ballast).unwrap();
        drop(disk);
        assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&*path.to_string_lossy()));
    }
}
