//! What is in use, and by which pod: addresses, ports, interfaces.
//!
//! Only memory; the kernel's side is the business of `network`. A pod has all it
//! asked for or nothing.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tracing::warn;

use super::Attachment;
use super::address::{Pool, gateway, link_address};
use super::error::Error;
use super::port::{PortMapping, PortTable};

/// What is in use, and by which pod.
pub(super) struct State {
    pools: Vec<Pool>,
    ports: PortTable,
    pods: HashMap<String, Attachment>,
    /// Pods that have gone, since when, and whose interfaces may still be there.
    departed: HashMap<String, (Instant, Attachment)>,
}

impl State {
    pub(super) fn new(pools: Vec<Pool>) -> State {
        State { pools, ports: PortTable::default(), pods: HashMap::new(), departed: HashMap::new() }
    }

    /// Where addresses come from.
    pub(super) fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// Has addresses come from other pools from now on. Who has one keeps it.
    pub(super) fn move_to(&mut self, mut pools: Vec<Pool>) {
        for pool in &mut pools {
            match self.pools.iter().position(|known| known.subnet() == pool.subnet()) {
                Some(index) => *pool = self.pools.swap_remove(index),
                None => self.held().for_each(|net| {
                    claim(pool, net);
                }),
            }
        }
        self.pools = pools;
    }

    /// Every pod that has something.
    pub(super) fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.pods.values()
    }

    /// The subnets that pods get addresses from, and those that some have theirs from still.
    pub(super) fn subnets(&self) -> BTreeSet<IpNet> {
        self.pools.iter().map(Pool::subnet).chain(self.held().map(|net| net.trunc())).collect()
    }

    /// The addresses of pods, also of those that have gone and whose interfaces may still be there.
    fn held(&self) -> impl Iterator<Item = IpNet> {
        let departed = self.departed.values().map(|(_, attachment)| attachment);
        self.pods.values().chain(departed).flat_map(|attachment| attachment.addresses.iter().copied())
    }

    /// Those of the ports that no other pod holds.
    pub(super) fn own_or_free(&self, pod_id: &str, ports: &[PortMapping]) -> Vec<PortMapping> {
        let free = |port: &&PortMapping| {
            let holder = self.ports.holder(port);
            holder.is_none_or(|holder| holder == pod_id)
        };
        ports.iter().filter(free).copied().collect()
    }

    /// Addresses and ports for a pod, or nothing.
    pub(super) fn reserve(
        &mut self,
        pod_id: &str,
        host_interface: String,
        ports: Vec<PortMapping>,
    ) -> Result<Attachment, Error> {
        if self.pods.contains_key(pod_id) || self.departed.contains_key(pod_id) {
            return Err(Error::AlreadyAttached { pod_id: pod_id.to_owned() });
        }
        let mut addresses: Vec<IpNet> = Vec::new();
        for index in 0..self.pools.len() {
            let Some(address) = self.pools[index].take() else {
                self.give_back(&addresses);
                return Err(Error::AddressesExhausted { subnet: self.pools[index].subnet() });
            };
            addresses.push(address);
        }
        if let Err(error) = self.ports.take(pod_id, &ports) {
            self.give_back(&addresses);
            return Err(error);
        }
        let attachment = Attachment {
            host_interface,
            mac: display_address(link_address(&addresses)),
            addresses,
            ports,
            plugins: None,
        };
        self.pods.insert(pod_id.to_owned(), attachment.clone());
        Ok(attachment)
    }

    /// Takes over a pod from before a restart. Its addresses may be of a subnet
    /// that is no longer ours; the pod keeps them.
    pub(super) fn adopt(&mut self, pod_id: &str, attachment: &Attachment) {
        self.release(pod_id);
        for net in &attachment.addresses {
            let claimed = self.pools.iter_mut().any(|pool| claim(pool, *net));
            if !claimed {
                warn!(pod.id = %pod_id, address = %net, "address of the pod is not ours or in use twice");
            }
        }
        let mut adopted = attachment.clone();
        if let Err(error) = self.ports.take(pod_id, &attachment.ports) {
            warn!(pod.id = %pod_id, %error, "ports of the pod are in use twice");
            adopted.ports.clear();
        }
        self.pods.insert(pod_id.to_owned(), adopted);
    }

    /// Gives back the pod's ports; its addresses only when its interface is gone. A pod that has nothing here, after a
    /// restart, has nothing to give back.
    pub(super) fn depart(&mut self, pod_id: &str, attachment: &Attachment) {
        let stranger = || Attachment { addresses: Vec::new(), ports: Vec::new(), ..attachment.clone() };
        let attachment = self.pods.remove(pod_id).unwrap_or_else(stranger);
        self.ports.give_back(pod_id, &attachment.ports);
        self.departed.insert(pod_id.to_owned(), (Instant::now(), attachment));
    }

    /// Those who have departed at least so long ago.
    pub(super) fn departed(&self, age: Duration) -> Vec<(String, Attachment)> {
        let old = self.departed.iter().filter(|(_, (since, _))| since.elapsed() >= age);
        old.map(|(pod_id, (_, attachment))| (pod_id.clone(), attachment.clone())).collect()
    }

    /// The interface of a pod that has departed is gone.
    pub(super) fn settle(&mut self, pod_id: &str) {
        if let Some((_, attachment)) = self.departed.remove(pod_id) {
            self.give_back(&attachment.addresses);
        }
    }

    pub(super) fn release(&mut self, pod_id: &str) {
        if let Some(attachment) = self.pods.remove(pod_id) {
            self.ports.give_back(pod_id, &attachment.ports);
            self.give_back(&attachment.addresses);
        }
    }

    fn give_back(&mut self, addresses: &[IpNet]) {
        for net in addresses {
            for pool in &mut self.pools {
                pool.give_back(net.addr());
            }
        }
    }
}

/// Marks a pod's address as in use, and that of its gateway, which the bridge keeps as long as the pod does.
fn claim(pool: &mut Pool, net: IpNet) -> bool {
    pool.claim(gateway(net).addr());
    pool.claim(net.addr())
}

fn display_address(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Protocol;

    fn state() -> State {
        let pool = |subnet: &str| Pool::new(subnet.parse().unwrap()).unwrap();
        State::new(vec![pool("10.0.0.0/29"), pool("fd00::/126")])
    }

    fn port(host_port: u16) -> PortMapping {
        PortMapping { protocol: Protocol::Tcp, host_ip: None, host_port, container_port: 80 }
    }

    #[test]
    fn what_cannot_be_given_as_a_whole_is_given_back() {
        let mut state = state();
        state.reserve("a", "spa".into(), vec![port(80)]).unwrap();
        // Neither a clash of ports nor an empty pool of IPv6 addresses costs an IPv4 address.
        for _ in 0..10 {
            assert!(state.reserve("b", "spb".into(), vec![port(80)]).is_err());
        }
        state.reserve("b", "spb".into(), vec![]).unwrap();
        for _ in 0..10 {
            let error = state.reserve("c", "spc".into(), vec![]).unwrap_err();
            assert_eq!(error.to_string(), "every address of fd00::/126 is in use");
        }
        state.release("b");
        state.reserve("c", "spc".into(), vec![]).unwrap();
    }

    #[test]
    fn addresses_of_a_departed_pod_wait_for_its_interface_and_ports_do_not() {
        let mut state = state();
        let first = state.reserve("a", "spa".into(), vec![port(80)]).unwrap();
        state.depart("a", &first);
        assert!(state.reserve("a", "spa".into(), vec![]).is_err(), "its interface may be there");
        assert!(state.own_or_free("b", &[port(80)]) == [port(80)]);
        state.reserve("b", "spb".into(), vec![port(80)]).unwrap();
        assert!(state.reserve("c", "spc".into(), vec![]).is_err(), "two addresses of version 6, both in use");
        assert!(state.departed(Duration::from_secs(3600)).is_empty());
        for (pod_id, attachment) in state.departed(Duration::ZERO) {
            assert_eq!((pod_id.as_str(), &attachment), ("a", &first));
            state.settle(&pod_id);
        }
        let again = state.reserve("c", "spc".into(), vec![]).unwrap();
        assert_eq!(again.addresses[1], first.addresses[1]);
    }

    #[test]
    fn adopted_pod_does_not_take_the_ports_of_another() {
        let mut state = state();
        let first = state.reserve("a", "spa".into(), vec![port(80)]).unwrap();
        let mut other = State::new(Vec::new());
        other.adopt("a", &first);
        other.adopt("b", &first);
        let published: usize = other.attachments().map(|attachment| attachment.ports.len()).sum();
        assert_eq!(published, 1);
        assert!(other.own_or_free("b", &[port(80)]).is_empty());
        assert_eq!(other.own_or_free("a", &[port(80)]), [port(80)]);
    }
}
