//! The `freezer` controller: stops every task of a cgroup where it stands.

use std::time::Duration;

use crate::cgroup::Error;
use crate::cgroup::directory::{Directory, within};

/// Asks for the state; a large cgroup takes a while to freeze.
pub(super) fn set(directory: &Directory, frozen: bool) -> Result<(), Error> {
    directory.write("freezer.state", if frozen { "FROZEN" } else { "THAWED" })
}

/// Asks for the state and waits until every task has it. One that can't be frozen in time is let go again.
pub(super) fn set_within(directory: &Directory, frozen: bool, deadline: Duration) -> Result<(), Error> {
    set(directory, frozen)?;
    let mut tries = 0u32;
    let reached = within(deadline, || {
        if state(directory)? == if frozen { "FROZEN" } else { "THAWED" } {
            return Ok(true);
        }
        // The kernel freezes those that are there when it is asked: a task that was being forked is asked again. One
        // that waits for a frozen one of its own kind never arrives, unless all go on for a moment.
        tries += 1;
        if frozen && tries.is_multiple_of(50) {
            set(directory, false)?;
        }
        set(directory, frozen)?;
        Ok(false)
    })?;
    if !reached {
        set(directory, !frozen)?;
        return Err(Error::Freeze { path: directory.path().to_owned(), frozen, deadline });
    }
    Ok(())
}

/// Whether the state was asked for here, by whomever, and not only further up.
pub(super) fn is_frozen(directory: &Directory) -> Result<bool, Error> {
    Ok(state(directory)? != "THAWED")
}

/// The root has no such file and is never frozen.
fn state(directory: &Directory) -> Result<String, Error> {
    match directory.open_optional("freezer.state")? {
        Some(_) => directory.read("freezer.state"),
        None => Ok("THAWED".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;

    #[test]
    fn states_have_the_kernels_names() {
        let fake = Fake::with(&[("freezer.state", "")]);
        for (frozen, text) in [(true, "FROZEN"), (false, "THAWED")] {
            std::fs::write(fake.path().join("freezer.state"), "").unwrap();
            set(&fake.directory(), frozen).unwrap();
            assert_eq!(fake.text("freezer.state"), text);
            assert_eq!(is_frozen(&fake.directory()).unwrap(), frozen);
        }
    }
}
