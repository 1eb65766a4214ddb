//! `net_cls` and `net_prio`: a class for a container's packets, and their priority on each interface.
//!
//! Interfaces are named as the calling process sees them.

use oci_spec::runtime::LinuxNetwork;

use crate::cgroup::Error;
use crate::cgroup::directory::Directory;

pub(super) fn has_class(network: &LinuxNetwork) -> bool {
    network.class_id().is_some_and(|class| class != 0)
}

pub(super) fn has_priorities(network: &LinuxNetwork) -> bool {
    network.priorities().as_ref().is_some_and(|priorities| !priorities.is_empty())
}

pub(super) fn set_class(directory: &Directory, network: &LinuxNetwork) -> Result<(), Error> {
    directory.write("net_cls.classid", &network.class_id().unwrap_or(0).to_string())
}

pub(super) fn set_priorities(directory: &Directory, network: &LinuxNetwork) -> Result<(), Error> {
    let lines = network.priorities().iter().flatten().map(|one| format!("{} {}", one.name(), one.priority()));
    directory.write_keyed("net_prio.ifpriomap", &lines.collect::<Vec<_>>(), "0")
}

/// Both in one question, for version 2, which has neither.
pub(in crate::cgroup) fn concerned(network: &LinuxNetwork) -> bool {
    has_class(network) || has_priorities(network)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;
    use oci_spec::runtime::{LinuxInterfacePriorityBuilder, LinuxNetworkBuilder};

    #[test]
    fn class_and_priorities_go_to_their_files() {
        let eth0 = LinuxInterfacePriorityBuilder::default().name("eth0").priority(5u32).build().unwrap();
        let network =
            LinuxNetworkBuilder::default().class_id(0x0010_0001u32).priorities(vec![eth0]).build().unwrap();
        assert!(has_class(&network) && has_priorities(&network));
        let fake = Fake::with(&[("net_cls.classid", ""), ("net_prio.ifpriomap", "")]);
        set_class(&fake.directory(), &network).unwrap();
        set_priorities(&fake.directory(), &network).unwrap();
        assert_eq!(fake.text("net_cls.classid"), "1048577");
        assert_eq!(fake.text("net_prio.ifpriomap"), "eth0 5");
    }
}
