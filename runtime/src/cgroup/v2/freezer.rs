//! Freezing in version 2: a file of the core, no controller.

use crate::cgroup::Error;
use crate::cgroup::directory::Directory;

/// Asks for the state; `cgroup.events` tells when it is reached.
pub(in crate::cgroup) fn set(directory: &Directory, frozen: bool) -> Result<(), Error> {
    directory.write("cgroup.freeze", if frozen { "1" } else { "0" })
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
    }
}
