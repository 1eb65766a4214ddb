//! Addresses of one subnet, given out in turn.
//!
//! The first address is the gateway's. An address that was given back is the
//! last to be given out again, so that nobody talks to a new pod by mistake.
//! Nothing is written down: after a restart `claim` tells what is in use.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sha2::{Digest, Sha256};

/// The addresses of a subnet and which of them are in use.
///
/// Addresses are kept as offsets from the start of the subnet.
#[derive(Debug)]
pub(super) struct Pool {
    subnet: IpNet,
    /// The largest offset that may be given out.
    last: u128,
    /// Where the next search starts.
    next: u128,
    used: BTreeSet<u128>,
}

const GATEWAY: u128 = 1;
const FIRST: u128 = 2;

impl Pool {
    /// `None` when the subnet has no room for a gateway and one pod.
    pub(super) fn new(subnet: IpNet) -> Option<Pool> {
        let subnet = subnet.trunc();
        let bits = u32::from(subnet.max_prefix_len() - subnet.prefix_len());
        let size = 1u128.checked_shl(bits).unwrap_or(u128::MAX);
        // The last IPv4 address of a subnet is its broadcast address.
        let last = match subnet {
            IpNet::V4(_) => size.checked_sub(2)?,
            IpNet::V6(_) => size.checked_sub(1)?,
        };
        (last >= FIRST).then_some(Pool { subnet, last, next: FIRST, used: BTreeSet::new() })
    }

    pub(super) fn subnet(&self) -> IpNet {
        self.subnet
    }

    pub(super) fn gateway(&self) -> IpNet {
        gateway(self.subnet)
    }

    /// The next free address; `None` when all are in use.
    pub(super) fn take(&mut self) -> Option<IpNet> {
        let offset =
            self.first_free(self.next, self.last).or_else(|| self.first_free(FIRST, self.next - 1))?;
        self.used.insert(offset);
        self.next = if offset == self.last { FIRST } else { offset + 1 };
        Some(self.at(offset))
    }

    /// Marks an address as in use; false when it is already, or is not of this subnet.
    pub(super) fn claim(&mut self, address: IpAddr) -> bool {
        let Some(offset) = self.offset(address) else {
            return false;
        };
        let fresh = self.used.insert(offset);
        if fresh && offset >= self.next {
            self.next = if offset == self.last { FIRST } else { offset + 1 };
        }
        fresh
    }

    /// Gives an address back; one of another subnet is ignored.
    pub(super) fn give_back(&mut self, address: IpAddr) {
        if let Some(offset) = self.offset(address) {
            self.used.remove(&offset);
        }
    }

    fn first_free(&self, from: u128, to: u128) -> Option<u128> {
        if from > to {
            return None;
        }
        let mut candidate = from;
        for &used in self.used.range(from..=to) {
            if used != candidate {
                break;
            }
            candidate += 1;
        }
        (candidate <= to).then_some(candidate)
    }

    fn offset(&self, address: IpAddr) -> Option<u128> {
        if !self.subnet.contains(&address) {
            return None;
        }
        let offset = number(address) - number(self.subnet.network());
        (FIRST..=self.last).contains(&offset).then_some(offset)
    }

    fn at(&self, offset: u128) -> IpNet {
        at(self.subnet, offset)
    }
}

/// The gateway's address in the subnet of `net`.
pub(super) fn gateway(net: IpNet) -> IpNet {
    at(net, GATEWAY)
}

fn at(subnet: IpNet, offset: u128) -> IpNet {
    let sum = number(subnet.network()).saturating_add(offset);
    let address = match subnet {
        IpNet::V4(_) => Ipv4Addr::from_bits(u32::try_from(sum).unwrap_or(u32::MAX)).into(),
        IpNet::V6(_) => Ipv6Addr::from_bits(sum).into(),
    };
    IpNet::new_assert(address, subnet.prefix_len())
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// What link-layer addresses of pods begin with.
pub(super) const OF_PODS: [u8; 2] = [0x72, 0x70];

/// The link-layer address of a pod with these addresses.
///
/// It follows from the address, so whoever gets the address next is found under
/// the entry that neighbours still have. It is locally administered.
pub(super) fn link_address(addresses: &[IpNet]) -> [u8; 6] {
    let [a, b, c, d] = match addresses.first().map(IpNet::addr) {
        None => [0; 4],
        Some(IpAddr::V4(address)) => address.octets(),
        Some(IpAddr::V6(address)) => folded(address),
    };
    let [first, second] = OF_PODS;
    [first, second, a, b, c, d]
}

/// The end of an address, which no two pods of a subnet have in common, shifted by its beginning: pods of a former
/// subnet may be on the same bridge.
fn folded(address: Ipv6Addr) -> [u8; 4] {
    let octets = address.octets();
    let (beginning, end) = octets.split_at(12);
    let shift = Sha256::digest(beginning);
    std::array::from_fn(|index| end[index] ^ shift[index])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(subnet: &str) -> Pool {
        Pool::new(subnet.parse().unwrap()).unwrap()
    }

    #[test]
    fn first_pod_follows_the_gateway() {
        let mut v4 = pool("10.200.7.0/24");
        assert_eq!(v4.gateway().to_string(), "10.200.7.1/24");
        assert_eq!(v4.take().unwrap().to_string(), "10.200.7.2/24");
        let mut v6 = pool("fd12::/64");
        assert_eq!(v6.gateway().to_string(), "fd12::1/64");
        assert_eq!(v6.take().unwrap().to_string(), "fd12::2/64");
    }

    #[test]
    fn address_given_back_is_the_last_to_be_reused() {
        let mut pool = pool("10.0.0.0/29");
        let first = pool.take().unwrap();
        pool.give_back(first.addr());
        let others: Vec<_> = (0..4).map(|_| pool.take().unwrap()).collect();
        assert!(!others.contains(&first));
        assert_eq!(pool.take(), Some(first));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn subnet_without_room_is_refused() {
        for subnet in ["10.0.0.0/31", "10.0.0.0/32", "fd00::/127", "fd00::/128"] {
            assert!(Pool::new(subnet.parse().unwrap()).is_none(), "{subnet}");
        }
        assert_eq!(pool("10.0.0.0/30").take().unwrap().to_string(), "10.0.0.2/30");
        assert!(Pool::new("::/0".parse().unwrap()).is_some());
    }

    #[test]
    fn claimed_addresses_are_not_given_out() {
        let mut pool = pool("10.0.0.0/29");
        assert!(pool.claim("10.0.0.3".parse().unwrap()));
        assert!(!pool.claim("10.0.0.3".parse().unwrap()));
        assert!(!pool.claim("10.0.0.1".parse().unwrap()), "the gateway");
        assert!(!pool.claim("10.0.0.7".parse().unwrap()), "the broadcast");
        assert!(!pool.claim("192.168.0.1".parse().unwrap()), "elsewhere");
        let given: Vec<_> = std::iter::from_fn(|| pool.take()).map(|net| net.addr().to_string()).collect();
        assert_eq!(given, ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"]);
    }

    #[test]
    fn link_address_is_locally_administered_unicast() {
        let mac = link_address(&["10.200.1.9/24".parse().unwrap()]);
        assert_eq!(mac, [0x72, 0x70, 10, 200, 1, 9]);
        assert_eq!(mac[0] & 0b11, 0b10);
    }

    #[test]
    fn link_addresses_differ_within_a_subnet_and_between_subnets() {
        let nets = ["fd0a::/64", "fd0b::/64", "fd0b:0:0:1::/64", "10.200.1.0/24", "10.200.2.0/24"];
        let mut seen = std::collections::HashSet::new();
        for mut pool in nets.map(pool) {
            for _ in 0..200 {
                assert!(seen.insert(link_address(&[pool.take().unwrap()])), "{pool:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_address_is_given_out_twice(operations in prop::collection::vec(any::<Option<u8>>(), 1..300)) {
            let mut pool = pool("10.9.0.0/27");
            let mut held: Vec<IpNet> = Vec::new();
            for operation in operations {
                match operation {
                    Some(index) if !held.is_empty() => {
                        let net = held.swap_remove(usize::from(index) % held.len());
                        pool.give_back(net.addr());
                    }
                    _ => match pool.take() {
                        Some(net) => {
                            prop_assert!(!held.contains(&net));
                            prop_assert!(pool.subnet().contains(&net.addr()));
                            held.push(net);
                        }
                        None => prop_assert_eq!(held.len(), 29),
                    },
                }
            }
        }
    }
}
