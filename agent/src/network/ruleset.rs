//! The nftables rules of one bridge: one table of the inet family, named after it.
//!
//! ```text
//! raw prerouting   from the bridge to 127.0.0.0/8 ............ drop
//! nat prerouting   to 127.0.0.0/8 ............................ as it is
//!                  to an address of this host, by map ........ pod:port
//! nat output       to ::1 .................................... as it is
//!                  to an address of this host, by map ........ pod:port
//! nat postrouting  from our subnets, not to the bridge ....... masquerade
//!                  from 127.0.0.0/8 to the bridge ............ masquerade
//!                  from our subnets, rewritten, to the bridge  masquerade
//! ```
//!
//! The rules do not change with the pods, but for the last one of a subnet that
//! new pods get no addresses from: a published port is an element of a
//! map, so the ports of a pod come and go in one transaction, and the cost of a
//! packet does not grow with the number of ports.
//!
//! - Ports are published on 127.0.0.1 too. For this the bridge has
//!   `route_localnet`, which alone would let pods reach services that the host
//!   offers on 127.0.0.1: hence the first rule. Nor are packets that come from
//!   outside with a destination in 127.0.0.0/8 ever rewritten.
//! - `::1` cannot be published: IPv6 has no `route_localnet`. It is left alone,
//!   so that clients are refused at once and go on to 127.0.0.1.
//! - A pod that talks to a published port of its own bridge is masqueraded:
//!   otherwise the answer would go straight to it, from an address it did not ask.
//! - There is no forward chain: accepting a packet in one table cannot keep
//!   another table, such as a firewall with policy drop, from dropping it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::netfilter::{
    Command, DESTINATION_REWRITTEN, Family, LOCAL, Load, Register, Rule, request, transaction,
};
use super::netlink::{CREATE, Message};
use super::port::PortMapping;

/// One element of a port map: where a port of the host leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Element {
    protocol: u8,
    /// The host's address; `None` for all of the pod address's family.
    host: Option<IpAddr>,
    host_port: u16,
    pod: IpAddr,
    pod_port: u16,
}

impl Element {
    /// The elements that publish a port on the addresses of a pod.
    pub(super) fn of(port: &PortMapping, addresses: &[IpNet]) -> Vec<Element> {
        addresses
            .iter()
            .map(IpNet::addr)
            .filter(|pod| port.host_ip.is_none_or(|host| host.is_ipv4() == pod.is_ipv4()))
            .map(|pod| Element {
                protocol: port.protocol.number(),
                host: port.host_ip.filter(|host| !host.is_unspecified()),
                host_port: port.host_port,
                pod,
                pod_port: port.container_port,
            })
            .collect()
    }

    fn map(&self) -> &'static Map {
        let index = usize::from(self.pod.is_ipv6()) * 2 + usize::from(self.host.is_none());
        &MAPS[index]
    }

    fn key(&self) -> Vec<u8> {
        let mut key = self.host.map(octets).unwrap_or_default();
        key.extend_from_slice(&[self.protocol, 0, 0, 0]);
        key.extend_from_slice(&padded(self.host_port));
        key
    }

    fn value(&self) -> Vec<u8> {
        let mut value = octets(self.pod);
        value.extend_from_slice(&padded(self.pod_port));
        value
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A port as it lies in a register.
fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// A map from (host address,) protocol and port to a pod's address and port.
#[derive(Debug)]
struct Map {
    name: &'static str,
    family: Family,
    /// Whether the host's address is part of the key.
    by_address: bool,
}

const MAPS: [Map; 4] = [
    Map { name: "address_ports4", family: Family::V4, by_address: true },
    Map { name: "ports4", family: Family::V4, by_address: false },
    Map { name: "address_ports6", family: Family::V6, by_address: true },
    Map { name: "ports6", family: Family::V6, by_address: false },
];

impl Map {
    /// Registers that an address of the family fills.
    fn address_registers(&self) -> u32 {
        if self.family == Family::V6 { 4 } else { 1 }
    }

    fn create(&self, table: &str, id: u32) -> Message {
        const MAP: u32 = 8;
        // nft's own numbers of its types, six bits each; they only tell it how
        // to show the elements.
        const PROTOCOL: u32 = 12;
        const SERVICE: u32 = 13;
        let address = if self.family == Family::V6 { 8 } else { 7 };
        let address_length = self.address_registers() * 4;
        let mut key_type = PROTOCOL << 6 | SERVICE;
        let mut key_length = 8;
        if self.by_address {
            key_type |= address << 12;
            key_length += address_length;
        }
        request(Command::NewSet, CREATE, "create nftables map", |set| {
            set.text(1, table).text(2, self.name).number(3, MAP);
            set.number(4, key_type).number(5, key_length);
            set.number(6, address << 6 | SERVICE);
            set.number(7, address_length + 4).number(10, id);
        })
    }

    /// The rule that rewrites the destination by this map.
    fn rule(&self) -> Rule {
        let mut next = 0;
        let mut rule = Rule::default().equal(Load::NetworkFamily, &[family_number(self.family)]);
        if self.by_address {
            rule = rule.load(Load::Destination(self.family), Register(0));
            next = self.address_registers();
        } else {
            rule = rule.equal(Load::DestinationType, &LOCAL.to_ne_bytes());
        }
        rule.load(Load::TransportProtocol, Register(next))
            .load(Load::DestinationPort, Register(next + 1))
            .map(self.name)
            .rewrite_destination(self.family, Register(self.address_registers()))
    }
}

fn family_number(family: Family) -> u8 {
    family as u8
}

/// A chain that the kernel calls at a hook.
struct Chain {
    name: &'static str,
    kind: &'static str,
    hook: u32,
    priority: i32,
}

const ISOLATION: Chain = Chain { name: "isolation", kind: "filter", hook: 0, priority: -300 };
const PREROUTING: Chain = Chain { name: "prerouting", kind: "nat", hook: 0, priority: -100 };
const OUTPUT: Chain = Chain { name: "output", kind: "nat", hook: 3, priority: -100 };
const POSTROUTING: Chain = Chain { name: "postrouting", kind: "nat", hook: 4, priority: 100 };

impl Chain {
    fn create(&self, table: &str) -> Message {
        const ACCEPT: u32 = 1;
        request(Command::NewChain, CREATE, "create nftables chain", |chain| {
            chain.text(1, table).text(3, self.name);
            chain.nested(4, |hook| {
                hook.number(1, self.hook);
                hook.number(2, self.priority.cast_unsigned());
            });
            chain.number(5, ACCEPT).text(7, self.kind);
        })
    }
}

/// The rules of one bridge.
#[derive(Debug, Clone)]
pub(super) struct Ruleset {
    bridge: String,
}

impl Ruleset {
    pub(super) fn new(bridge: &str) -> Self {
        Ruleset { bridge: bridge.to_owned() }
    }

    /// Creates the table with the rules for pods of these subnets, or renews the
    /// rules of one that exists and keeps the elements of its maps.
    pub(super) fn install(&self, subnets: &BTreeSet<IpNet>) -> Vec<Message> {
        let table = self.bridge.as_str();
        let chains = [ISOLATION, PREROUTING, OUTPUT, POSTROUTING];
        let mut requests = vec![self.create_table()];
        requests.extend(chains.iter().map(|chain| chain.create(table)));
        requests.push(request(Command::DeleteRule, 0, "renew nftables rules", |rule| {
            rule.text(1, table);
        }));
        let ids = 1..;
        requests.extend(MAPS.iter().zip(ids).map(|(map, id)| map.create(table, id)));
        requests.push(self.keep_pods_from_loopback());
        requests.extend(self.publishing());
        requests.extend(self.masquerading(subnets));
        transaction(requests)
    }

    fn keep_pods_from_loopback(&self) -> Message {
        from_loopback_prefix(
            Rule::default().equal(Load::InputInterface, &interface(&self.bridge)),
            Load::Destination(Family::V4),
        )
        .drop_packet()
        .append_to(&self.bridge, ISOLATION.name)
    }

    fn publishing(&self) -> Vec<Message> {
        let table = self.bridge.as_str();
        let untouched_v4 = from_loopback_prefix(Rule::default(), Load::Destination(Family::V4));
        let untouched_v6 = Rule::default()
            .equal(Load::NetworkFamily, &[Family::V6 as u8])
            .equal(Load::Destination(Family::V6), &std::net::Ipv6Addr::LOCALHOST.octets());
        let mut requests = vec![
            untouched_v4.accept().append_to(table, PREROUTING.name),
            untouched_v6.accept().append_to(table, OUTPUT.name),
        ];
        for chain in [PREROUTING, OUTPUT] {
            requests.extend(MAPS.iter().map(|map| map.rule().append_to(table, chain.name)));
        }
        requests
    }

    fn masquerading(&self, subnets: &BTreeSet<IpNet>) -> Vec<Message> {
        let bridge = interface(&self.bridge);
        let mut rules = Vec::new();
        for subnet in subnets {
            let from_pods = || from_subnet(Rule::default(), subnet);
            rules.push(from_pods().different(Load::OutputInterface, &bridge));
            rules.push(
                from_pods()
                    .equal(Load::OutputInterface, &bridge)
                    .any_bit(Load::ConnectionStatus, DESTINATION_REWRITTEN),
            );
        }
        rules.push(
            from_loopback_prefix(Rule::default(), Load::Source(Family::V4))
                .equal(Load::OutputInterface, &bridge),
        );
        rules.into_iter().map(|rule| rule.masquerade().append_to(&self.bridge, POSTROUTING.name)).collect()
    }

    /// A table with a chain of a kind that ours of that name is not.
    #[cfg(test)]
    pub(super) fn install_filter_chain(&self, name: &'static str) -> Vec<Message> {
        let chain = Chain { name, ..ISOLATION };
        transaction(vec![self.create_table(), chain.create(&self.bridge)])
    }

    fn create_table(&self) -> Message {
        request(Command::NewTable, CREATE, "create nftables table", |table| {
            table.text(1, &self.bridge);
        })
    }

    /// Removes the table with all that is in it.
    pub(super) fn remove(&self) -> Vec<Message> {
        transaction(vec![request(Command::DeleteTable, 0, "delete nftables table", |table| {
            table.text(1, &self.bridge);
        })])
    }

    /// Adds elements, all or none.
    pub(super) fn publish(&self, elements: &[Element]) -> Vec<Message> {
        transaction(self.change(Command::NewElement, elements))
    }

    /// Removes elements, all or none.
    pub(super) fn withdraw(&self, elements: &[Element]) -> Vec<Message> {
        transaction(self.change(Command::DeleteElement, elements))
    }

    /// Makes these the only elements, in one step.
    pub(super) fn replace(&self, elements: &[Element]) -> Vec<Message> {
        let mut requests: Vec<_> = MAPS
            .iter()
            .map(|map| {
                request(Command::DeleteElement, 0, "empty nftables map", |list| {
                    list.text(1, &self.bridge).text(2, map.name);
                })
            })
            .collect();
        requests.extend(self.change(Command::NewElement, elements));
        transaction(requests)
    }

    /// One request for each map and each few hundred elements: an attribute
    /// holds less than 64 KiB.
    fn change(&self, command: Command, elements: &[Element]) -> Vec<Message> {
        const AT_ONCE: usize = 400;
        let (flags, action) = match command {
            Command::NewElement => (CREATE, "publish ports"),
            _ => (0, "withdraw ports"),
        };
        let mut requests = Vec::new();
        for map in &MAPS {
            let of_map: Vec<_> = elements.iter().filter(|element| element.map().name == map.name).collect();
            requests.extend(of_map.chunks(AT_ONCE).map(|chunk| {
                request(command, flags, action, |list| {
                    list.text(1, &self.bridge).text(2, map.name);
                    list.nested(3, |list| {
                        for element in chunk {
                            list.nested(1, |attributes| {
                                attributes.nested(1, |key| {
                                    key.bytes(1, &element.key());
                                });
                                if let Command::NewElement = command {
                                    attributes.nested(2, |value| {
                                        value.bytes(1, &element.value());
                                    });
                                }
                            });
                        }
                    });
                })
            }));
        }
        requests
    }
}

/// An interface's name as it lies in a register.
fn interface(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    padded
}

fn from_subnet(rule: Rule, subnet: &IpNet) -> Rule {
    let family = match subnet {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    };
    rule.equal(Load::NetworkFamily, &[family_number(family)]).within(
        Load::Source(family),
        &octets(subnet.network()),
        &octets(subnet.netmask()),
    )
}

fn from_loopback_prefix(rule: Rule, address: Load) -> Rule {
    rule.equal(Load::NetworkFamily, &[family_number(Family::V4)]).within(
        address,
        &[127, 0, 0, 0],
        &[255, 0, 0, 0],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::port::Protocol;

    fn port(host_ip: Option<&str>) -> PortMapping {
        PortMapping {
            protocol: Protocol::Tcp,
            host_ip: host_ip.map(|text| text.parse().unwrap()),
            host_port: 8080,
            container_port: 80,
        }
    }

    #[test]
    fn port_is_an_element_of_the_map_of_its_family_and_address() {
        let addresses = ["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()];
        let maps = |host_ip| -> Vec<_> {
            Element::of(&port(host_ip), &addresses).iter().map(|element| element.map().name).collect()
        };
        assert_eq!(maps(None), ["ports4", "ports6"]);
        assert_eq!(maps(Some("0.0.0.0")), ["ports4"]);
        assert_eq!(maps(Some("::")), ["ports6"]);
        assert_eq!(maps(Some("192.0.2.1")), ["address_ports4"]);
        assert_eq!(maps(Some("2001:db8::1")), ["address_ports6"]);
    }

    #[test]
    fn element_has_every_part_in_registers_of_its_own() {
        let elements = Element::of(&port(Some("192.0.2.1")), &["10.0.0.2/24".parse().unwrap()]);
        assert_eq!(elements[0].key(), [192, 0, 2, 1, 6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(elements[0].value(), [10, 0, 0, 2, 0, 80, 0, 0]);
    }
}
