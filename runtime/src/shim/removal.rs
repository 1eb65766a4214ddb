//! Cgroups on their way out.
//!
//! Processes that were killed take a moment to go, and the shim never waits for anybody. So a cgroup that is still
//! busy is tried again at the loop's next turn, until its deadline.
//!
//! That of an exec which ended by itself stays for the next one where it is known to be empty, which is on version 2.
//! Kubelet watches that hierarchy and takes every cgroup in it for a container: with one made for each exec probe it
//! would make and drop what it keeps of a container all the time.

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
    /// They live on in the parent, and the cgroup may stay for others.
    MovedUp,
}

/// What a try has come to.
pub(super) enum Outcome {
    Done,
    Busy,
    Failed(Error),
}

pub(super) struct Removal<T> {
    cgroup: Cgroup,
    /// The cgroup as it was asked for.
    pub(super) name: String,
    rest: Rest,
    until: Instant,
    /// What to do when it is done.
    pub(super) then: T,
}

impl<T> Removal<T> {
    /// Of a container's cgroup.
    pub(super) fn new(name: &str, then: T) -> Result<Removal<T>, Error> {
        Ok(Removal::with(Cgroup::new(name)?, name, Rest::Killed, then))
    }

    /// Of an exec's cgroup.
    pub(super) fn of_exec(name: &str, rest: Rest, then: T) -> Result<Removal<T>, Error> {
        Ok(Removal::with(Cgroup::new_exec(name)?, name, rest, then))
    }

    fn with(cgroup: Cgroup, name: &str, rest: Rest, then: T) -> Removal<T> {
        Removal { cgroup, name: name.to_owned(), rest, until: Instant::now() + DEADLINE, then }
    }

    /// Tries once, without waiting.
    pub(super) fn attempt(&self) -> Outcome {
        let busy = match self.clear() {
            Ok(()) => return Outcome::Done,
            Err(error @ Error::Busy { .. }) => error,
            Err(error) => return Outcome::Failed(error),
        };
        let cleared = match self.rest {
            Rest::Killed => self.cgroup.kill(),
            Rest::MovedUp => self.cgroup.dissolve(),
        };
        match cleared.and_then(|()| self.clear()) {
            Ok(()) => Outcome::Done,
            Err(Error::Busy { .. }) if Instant::now() < self.until => Outcome::Busy,
            Err(Error::Busy { .. }) => Outcome::Failed(busy),
            Err(error) => Outcome::Failed(error),
        }
    }

    fn clear(&self) -> Result<(), Error> {
        // One that is gone, or can't be read, is not for anybody else.
        match self.rest == Rest::MovedUp && self.cgroup.is_vacant().unwrap_or(false) {
            true => Ok(()),
            // The agent, which removes it too, has time to talk to systemd of a scope.
            false => self.cgroup.remove_directories(Duration::ZERO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a machine without systemd nobody would answer.
    #[test]
    fn systemd_is_not_asked() {
        let name = format!("sampan-test.slice:sampan:removal-{}", std::process::id());
        let outcome = Removal::new(&name, ()).unwrap().attempt();
        assert!(matches!(outcome, Outcome::Done));
    }
}
