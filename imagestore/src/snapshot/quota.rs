//! Writable layers as projects of the file system: counted without a walk, and limited.
//!
//! Every writable snapshot is a project of its own where the file system keeps quotas of projects; its record has the
//! number. Elsewhere layers are counted by walking them, and none can be limited. The system calls are somebody
//! else's: this crate has no unsafe code.

use std::{
    collections::HashSet,
    fmt::Debug,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use super::{Access, Error, Folders, Snapshots, Usage};

/// The first of the numbers that are ours, and how many there are. Other tools count from 1.
const FIRST: u32 = 0x5a00_0000;
const NUMBERS: u32 = 1 << 24;

/// What a file system does with projects.
pub trait ProjectQuota: Debug + Send + Sync {
    /// Puts an empty directory, and what will be made in it, into a project.
    fn assign(&self, directory: BorrowedFd<'_>, project: u32) -> io::Result<()>;
    /// Lets a project take so many bytes of the file system that `on` is on; 0 is no limit.
    fn limit(&self, on: BorrowedFd<'_>, project: u32, bytes: u64) -> io::Result<()>;
    /// What a project takes of the file system that `on` is on. Fails where no quotas are kept.
    fn usage(&self, on: BorrowedFd<'_>, project: u32) -> io::Result<Usage>;
}

/// What works on this file system, or nothing.
pub(super) fn probe(
    folders: &Folders,
    quota: Option<Arc<dyn ProjectQuota>>,
) -> Option<Arc<dyn ProjectQuota>> {
    let quota = quota?;
    match quota.usage(folders.active.as_fd(), 0) {
        Ok(_) => Some(quota),
        Err(error) => {
            tracing::debug!(%error, "writable layers cannot be limited here");
            None
        }
    }
}

/// A number that nobody has, the next after `last` if it is free.
pub(super) fn free_number(last: Option<u32>, taken: &HashSet<u32>) -> u32 {
    let start = last.map_or(0, |last| last.wrapping_sub(FIRST).wrapping_add(1));
    let numbers = (0..NUMBERS).map(|step| FIRST + start.wrapping_add(step) % NUMBERS);
    // There are more than there can be snapshots.
    numbers.into_iter().find(|number| !taken.contains(number)).unwrap_or(FIRST)
}

impl Snapshots {
    /// Whether writable layers can be limited here.
    pub fn can_limit(&self) -> bool {
        self.quota.is_some()
    }

    /// Lets the writable layer of an active snapshot take no more than so many bytes. Before anything is written to it.
    ///
    /// # Errors
    /// [`Error::NoQuota`] where the file system keeps no quotas of projects.
    pub fn limit(&self, key: &str, bytes: u64) -> Result<(), Error> {
        let project = self.state().ready(key)?.project;
        let (Some(quota), Some(project)) = (&self.quota, project) else {
            return Err(Error::NoQuota { path: self.folders.path.clone() });
        };
        let path = self.folders.path.join("active").join(key);
        quota.limit(self.folders.active.as_fd(), project, bytes).map_err(Error::io("quotactl_fd", path))
    }

    /// Puts the directories of a snapshot that is being made into a project.
    pub(super) fn assign(&self, project: u32, directories: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let Some(quota) = &self.quota else { return Ok(()) };
        let assign = || {
            // What its last owner was allowed is over.
            quota.limit(self.folders.active.as_fd(), project, 0)?;
            directories.iter().try_for_each(|directory| quota.assign(*directory, project))
        };
        assign().map_err(Error::io("put into a project", self.folders.path.join("staging")))
    }

    /// The number of a project for a new snapshot, if it is to be one.
    pub(super) fn new_project(&self, access: Access) -> Option<u32> {
        self.quota.as_ref().filter(|_| access != Access::View)?;
        let mut state = self.state();
        let taken = state.active.values().filter_map(|active| active.project).collect();
        let number = free_number(state.last_project, &taken);
        state.last_project = Some(number);
        Some(number)
    }

    /// What a project has, told by the file system.
    pub(super) fn project_usage(&self, key: &str, project: u32) -> Result<Option<Usage>, Error> {
        let Some(quota) = &self.quota else { return Ok(None) };
        let usage = quota.usage(self.folders.active.as_fd(), project);
        let path = self.folders.path.join("active").join(key);
        usage.map(Some).map_err(Error::io("quotactl_fd", path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_as_late_as_possible() {
        let taken = HashSet::from([FIRST, FIRST + 2]);
        assert_eq!(free_number(None, &HashSet::new()), FIRST);
        assert_eq!(free_number(None, &taken), FIRST + 1);
        assert_eq!(free_number(Some(FIRST + 1), &taken), FIRST + 3);
        assert_eq!(free_number(Some(FIRST + NUMBERS - 1), &taken), FIRST + 1);
    }
}
