//! The `freezer` controller: stops every task of a cgroup where it stands.

use crate::cgroup::Error;
use crate::cgroup::directory::Directory;

/// Asks for the state; a large cgroup takes a while to freeze.
pub(super) fn set(directory: &Directory, frozen: bool) -> Result<(), Error> {
    directory.write("freezer.state", if frozen { "FROZEN" } else { "THAWED" })
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
        }
    }
}
