//! Cgroups on their way out.
//!
//! Processes that were killed take a moment to go, and the shim never waits for anybody. So a cgroup that is still
//! busy is tried again at the loop's next turn, until its deadline.

use std::time::{Duration, Instant};

use crate::cgroup::{Cgroup, Error};

/// A cgroup with processes in it after this long has one that can't be killed.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long the loop may sleep while a removal is under way.
pub(super) const PAUSE: Duration = Duration::from_millis(2);

/// What becomes of processes that are still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// They are killed.
    Killed,
    /// They live on in the parent.
    MovedUp,
}

/// What a try has come to.
pub(super) enum Outcome {
    Removed,
    Busy,
    Failed(Error),
}

pub(super) struct Removal<T> {
    cgroup: Cgroup,
    rest: Rest,
    until: Instant,
    /// What to do when it is done.
    pub(super) then: T,
}

impl<T> Removal<T> {
    pub(super) fn new(cgroup: Cgroup, rest: Rest, then: T) -> Removal<T> {
        Removal { cgroup, rest, until: Instant::now() + DEADLINE, then }
    }

    /// Tries once, without waiting.
    pub(super) fn attempt(&self) -> Outcome {
        let busy = match self.cgroup.remove(Duration::ZERO) {
            Ok(()) => return Outcome::Removed,
            Err(error @ Error::Busy { .. }) => error,
            Err(error) => return Outcome::Failed(error),
        };
        let cleared = match self.rest {
            Rest::Killed => self.cgroup.kill(),
            Rest::MovedUp => self.cgroup.dissolve(),
        };
        match cleared.and_then(|()| self.cgroup.remove(Duration::ZERO)) {
            Ok(()) => Outcome::Removed,
            Err(Error::Busy { .. }) if Instant::now() < self.until => Outcome::Busy,
            Err(Error::Busy { .. }) => Outcome::Failed(busy),
            Err(error) => Outcome::Failed(error),
        }
    }
}
