//! Freezing in version 2: a file of the core, no controller.

use std::time::Duration;

use crate::cgroup::Error;
use crate::cgroup::directory::{Directory, pairs, within};

/// Asks for the state; `cgroup.events` tells when it is reached.
pub(in crate::cgroup) fn set(directory: &Directory, frozen: bool) -> Result<(), Error> {
    directory.write("cgroup.freeze", if frozen { "1" } else { "0" })
}

/// Asks for the state and waits until every task has it. One that can't be frozen in time is let go again.
pub(in crate::cgroup) fn set_within(
    directory: &Directory,
    frozen: bool,
    deadline: Duration,
) -> Result<(), Error> {
    set(directory, frozen)?;
    let events = directory.open_file("cgroup.events")?;
    let mut buffer = Vec::new();
    let reached = within(deadline, || {
        let now = pairs(events.read(&mut buffer)?).find(|(name, _)| *name == b"frozen");
        // A thawed cgroup below a frozen one stays as it is; that is not what was asked for here.
        Ok(!frozen || now.is_some_and(|(_, value)| value == 1))
    })?;
    if !reached {
        set(directory, !frozen)?;
        return Err(Error::Freeze { path: directory.path().to_owned(), frozen, deadline });
    }
    Ok(())
}

/// Whether the state was asked for here, by whomever, and not only further up.
pub(in crate::cgroup) fn is_frozen(directory: &Directory) -> Result<bool, Error> {
    Ok(directory.read("cgroup.freeze")? == "1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;

    #[test]
    fn states_are_digits() {
        let fake = Fake::with(&[("cgroup.freeze", "")]);
        set(&fake.directory(), true).unwrap();
        assert_eq!(fake.text("cgroup.freeze"), "1");
        assert!(is_frozen(&fake.directory()).unwrap());
    }

    #[test]
    fn tasks_that_do_not_freeze_in_time_are_let_go() {
        let fake = Fake::with(&[("cgroup.freeze", "0"), ("cgroup.events", "populated 1\nfrozen 0\n")]);
        let error = set_within(&fake.directory(), true, Duration::from_millis(5)).unwrap_err();
        assert!(matches!(error, Error::Freeze { frozen: true, .. }), "{error}");
        assert_eq!(fake.text("cgroup.freeze"), "0");
    }
}
