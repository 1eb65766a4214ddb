//! Network devices that a container gets of its own: taken from the namespace of whoever makes the container, with
//! their addresses, and set up in the container's.
//!
//! They aren't given back: the kernel returns what is a piece of hardware when the container's namespace ends, and
//! removes the rest.

use std::collections::BTreeMap;
use std::fs::File;

use oci_spec::runtime::{Linux, LinuxNamespaceType};

use super::{Error, Result, namespace::Namespaces};
use crate::netlink::{Address, Netlink};

pub(super) struct Devices {
    /// About the namespace in which they still are.
    origin: Netlink,
    list: Vec<Device>,
}

struct Device {
    name: String,
    /// What it is called in the container.
    inside: String,
    index: u32,
    addresses: Vec<Address>,
}

impl Devices {
    /// Finds what is asked for, before the container's namespaces are entered.
    pub(super) fn find(linux: &Linux, namespaces: &Namespaces) -> Result<Option<Devices>> {
        let Some(asked) = linux.net_devices().as_ref().filter(|devices| !devices.is_empty()) else {
            return Ok(None);
        };
        let unsupported = |what: &str| Err(Error::Unsupported { what: what.to_owned() });
        if !namespaces.has_own(LinuxNamespaceType::Network) {
            return unsupported("netDevices without a network namespace of the container's own");
        }
        if namespaces.of_users() {
            return unsupported("netDevices with a user namespace");
        }
        let of_socket = |source| Error::NetworkDevice { name: "all".to_owned(), source };
        let origin = Netlink::open().map_err(of_socket)?;
        let mut list: Vec<Device> = Vec::new();
        // In an order that is always the same.
        for (name, device) in asked.iter().collect::<BTreeMap<_, _>>() {
            let inside = device.name().as_ref().filter(|inside| !inside.is_empty()).unwrap_or(name);
            for name in [name, inside] {
                check(name)?;
            }
            if list.iter().any(|other| other.inside == *inside) {
                return Err(Error::Duplicate { what: format!("network device {inside}") });
            }
            let failed = |source| Error::NetworkDevice { name: name.clone(), source };
            let index = origin.index(name).map_err(failed)?;
            let addresses = origin.addresses(index).map_err(failed)?;
            list.push(Device { name: name.clone(), inside: inside.clone(), index, addresses });
        }
        Ok(Some(Devices { origin, list }))
    }

    /// Takes them along, once the namespaces are entered and while the host's procfs is at hand.
    pub(super) fn take(self) -> Result<()> {
        let path = "/proc/self/ns/net";
        let namespace = File::open(path).map_err(|source| Error::Read { path: path.into(), source })?;
        for Device { name, inside, index, addresses } in self.list {
            let failed = |source| Error::NetworkDevice { name: name.clone(), source };
            self.origin.hand_over(index, &namespace, &inside).map_err(failed)?;
            let own = Netlink::open().map_err(failed)?;
            // A number that is taken there is exchanged for another.
            let index = own.index(&inside).map_err(failed)?;
            for address in addresses {
                own.add(index, address).map_err(failed)?;
            }
            own.set_up(index).map_err(failed)?;
        }
        Ok(())
    }
}

/// As the kernel has it for names of devices; it would read `%d` as a place for a number.
fn check(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
    if name.is_empty() || name.len() > 15 || matches!(name, "." | "..") || !name.bytes().all(plain) {
        return Err(Error::NetworkDeviceName { name: name.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_the_kernel_takes() {
        for name in ["eth0", "a.b-c_d", "fifteen-letters"] {
            assert!(check(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a:b", "a b", "eth%d", "sixteen--letters", "ä"] {
            assert!(check(name).is_err(), "{name:?}");
        }
    }
}
