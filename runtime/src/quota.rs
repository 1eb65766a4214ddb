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
