//! Where both systems keep their files: on a file system of its own, and what a reboot makes void in memory.
//!
//! A node's disk has a journal, and its `/run` is a tmpfs. What a machine for tests and builds has in their place may
//! differ: an ext4 without a journal looks at every inode that was deleted in the last minutes before it gives one away,
//! so that pods which come and go cost more and more. All mounts are in this program's own namespace and end with it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;
use tempfile::{NamedTempFile, TempDir};

/// Of a sparse file: room for what two systems pull and unpack.
const SIZE: u64 = 16 << 30;

/// A folder on such a file system, and one in memory.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: TempDir,
}

impl Disk {
    /// To be called while this program has one thread.
    pub(crate) fn make() -> Result<Disk> {
        #[allow(deprecated, reason = "it is unsafe for the descriptors of threads only, and there is one")]
        rustix::thread::unshare(UnshareFlags::NEWNS).context("unshare")?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).context("make the mounts private")?;
        // Names of sockets are short.
        let disk = Disk { folder: tempfile::Builder::new().prefix("spb-").tempdir_in("/tmp")? };
        for folder in [disk.lasting(), disk.memory()] {
            std::fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        }
        // Once it is mounted, its name is needed no more.
        let image = NamedTempFile::new_in("/var/tmp").context("make a file for a disk")?;
        image.as_file().set_len(SIZE).context("make a file for a disk")?;
        // Nothing of it is left to be done in the background.
        let options = "lazy_itable_init=0,lazy_journal_init=0";
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", options]).arg(image.path()))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(image.path()).arg(disk.lasting()))?;
        rustix::mount::mount("tmpfs", disk.memory(), "tmpfs", MountFlags::empty(), None)
            .context("mount a tmpfs")?;
        Ok(disk)
    }

    /// What survives a reboot.
    pub(crate) fn lasting(&self) -> PathBuf {
        self.folder.path().join("d")
    }

    /// What doesn't.
    pub(crate) fn memory(&self) -> PathBuf {
        self.folder.path().join("m")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for folder in [self.lasting(), self.memory()] {
            unmount(&folder);
        }
    }
}

fn unmount(folder: &Path) {
    // What stays ends with the namespace.
    let _ = rustix::mount::unmount(folder, UnmountFlags::DETACH);
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
