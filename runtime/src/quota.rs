//! Project quotas: how much a tree of files takes, counted by the file system, and how much it may.
//!
//! ext4 (made with `-O project,quota`, mounted with `prjquota`) and xfs (mounted with `prjquota`) have them; elsewhere
//! the kernel says that there are none. A directory is put into a project while it is empty, and what is made in it
//! later belongs to the project too. Which numbers are free is for the caller to know.

use std::os::fd::AsFd;

use crate::sys::{Error, quota};

/// What a project takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Files, directories and others.
    pub inodes: u64,
}

/// Puts an empty directory into a project.
///
/// # Errors
/// When its file system knows no projects.
pub fn assign(directory: impl AsFd, project: u32) -> Result<(), Error> {
    quota::set_project(directory, project)
}

/// Lets a project take no more than so many bytes, rounded up to KiB, of the file system that `on` is on; 0 is no limit.
///
/// # Errors
/// When the file system keeps no quotas of projects.
pub fn limit(on: impl AsFd, project: u32, bytes: u64) -> Result<(), Error> {
    let kibibytes = bytes.div_ceil(1024);
    let block = quota::Block {
        hard_limit: kibibytes,
        soft_limit: kibibytes,
        valid: quota::SPACE_LIMITS,
        ..quota::Block::default()
    };
    quota::set(on, project, &block)
}

/// What a project takes of the file system that `on` is on: no walk, the file system has it at hand.
///
/// # Errors
/// When the file system keeps no quotas of projects.
pub fn usage(on: impl AsFd, project: u32) -> Result<Usage, Error> {
    let block = quota::get(on, project)?;
    Ok(Usage { bytes: block.space, inodes: block.inodes })
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::{ErrorKind, Write},
        path::{Path, PathBuf},
        process::Command,
    };

    use super::*;

    /// A small ext4 with quotas of projects; unmounted when dropped.
    struct Disk(tempfile::TempDir);

    impl Disk {
        /// None where the kernel keeps no quotas. Where it has to, `SAMPAN_TEST_QUOTAS` is set, and that is a failure.
        fn new() -> Option<Disk> {
            let disk = Disk(tempfile::tempdir().unwrap());
            let image = disk.0.path().join("image");
            File::create(&image).unwrap().set_len(64 << 20).unwrap();
            fs::create_dir(disk.path()).unwrap();
            let features = ["-q", "-m0", "-O", "project,quota", "-E", "quotatype=prjquota"];
            let made = Command::new("mkfs.ext4").args(features).arg(&image).status().unwrap();
            assert!(made.success(), "mkfs.ext4: {made}");
            let mount =
                Command::new("mount").args(["-o", "loop,prjquota"]).args([&image, &disk.path()]).output();
            let mount = mount.unwrap();
            assert!(
                mount.status.success() || std::env::var_os("SAMPAN_TEST_QUOTAS").is_none(),
                "no quotas here: {}",
                String::from_utf8_lossy(&mount.stderr)
            );
            mount.status.success().then_some(disk)
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("disk")
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            for mounted in [self.path().join("merged"), self.path()] {
                let _ = Command::new("umount").arg("-l").arg(mounted).output();
            }
        }
    }

    /// Writes so many MiB and says how many it got.
    fn fill(path: &Path, mebibytes: u64) -> (File, u64, Option<ErrorKind>) {
        let mut file = File::create(path).unwrap();
        for written in 0..mebibytes {
            if let Err(error) = file.write_all(&[7; 1 << 20]).and_then(|()| file.sync_data()) {
                return (file, written, Some(error.kind()));
            }
        }
        (file, mebibytes, None)
    }

    #[test]
    fn the_quota_of_a_project_holds_beneath_an_overlay() {
        let Some(disk) = Disk::new() else {
            let folder = File::open(std::env::temp_dir()).unwrap();
            usage(&folder, 7).expect_err("nothing is counted where nothing is kept");
            limit(&folder, 7, 1 << 20).expect_err("a limit that nobody keeps is refused");
            return;
        };
        let path = |name: &str| disk.path().join(name);
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(path(name)).unwrap();
        }
        let on = File::open(disk.path()).unwrap();
        for name in ["upper", "work"] {
            assign(File::open(path(name)).unwrap(), 7).unwrap();
        }
        limit(&on, 7, 8 << 20).unwrap();
        let options = ["lowerdir=lower", "upperdir=upper", "workdir=work"].join(",");
        let mut mount = Command::new("mount");
        mount.current_dir(disk.path()).args(["-t", "overlay", "overlay", "-o", &options, "merged"]);
        assert!(mount.status().unwrap().success());

        fs::create_dir(path("merged/folder")).unwrap();
        let (open, written, error) = fill(&path("merged/folder/file"), 16);
        assert_eq!(error, Some(ErrorKind::QuotaExceeded), "after {written} MiB");
        assert!((6..8).contains(&written), "{written} MiB of 8");
        // A file that no walk finds is counted as long as it is open: it is the file system that tells.
        fs::remove_file(path("merged/folder/file")).unwrap();
        let used = usage(&on, 7).unwrap();
        assert!((written << 20..=8 << 20).contains(&used.bytes) && used.inodes >= 3, "{used:?}");
        drop(open);
        let (_, written, error) = fill(&path("beside"), 16);
        assert_eq!((written, error), (16, None), "what is in no project has no limit");
        limit(&on, 7, 0).unwrap();
        assert_eq!(fill(&path("merged/file"), 16).2, None);
        assert!(usage(&on, 7).unwrap().bytes >= 16 << 20);
    }
}
