//! nftables requests, encoded by hand: tables, chains, rules, sets and elements.
//!
//! Only the few expressions that our rules are made of are known here; which
//! rules there are is said in `ruleset`. Numbers on this wire are big-endian
//! unless a comparison is against a value in host order.

use super::netlink::{ACK, CREATE, Message, REQUEST, align};

/// A family of the packets a table sees, or of the addresses a rule works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Family {
    Unspecified = 0,
    Inet = 1,
    V4 = 2,
    Bridge = 7,
    V6 = 10,
}

/// Message types of the nftables subsystem.
#[derive(Debug, Clone, Copy)]
#[repr(u16)]
pub(super) enum Command {
    NewTable = 0,
    DeleteTable = 2,
    NewChain = 3,
    NewRule = 6,
    DeleteRule = 8,
    NewSet = 9,
    NewElement = 12,
    DeleteElement = 14,
}

const SUBSYSTEM_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// Marks the kind of an attribute that is made of attributes.
pub(super) const NESTED: u16 = 0x8000;

/// Attributes being laid out, one after another.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(4 + value.len()).expect("an attribute is below 64 KiB");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(align(self.0.len()), 0);
        self
    }

    pub(super) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes)) -> &mut Self {
        let mut inner = Attributes::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// The fixed header of every netfilter message, and its attributes.
pub(super) fn message(
    kind: u16,
    flags: u16,
    family: Family,
    resource: u16,
    action: &'static str,
    attributes: &Attributes,
) -> Message {
    let mut body = vec![family as u8, 0];
    body.extend_from_slice(&resource.to_be_bytes());
    body.extend_from_slice(&attributes.0);
    Message { kind, flags: REQUEST | flags, body, action }
}

/// One request about the table of the inet family.
pub(super) fn request(
    command: Command,
    flags: u16,
    action: &'static str,
    fill: impl FnOnce(&mut Attributes),
) -> Message {
    request_in(Family::Inet, command, flags, action, fill)
}

/// One request about a table of another family.
pub(super) fn request_in(
    family: Family,
    command: Command,
    flags: u16,
    action: &'static str,
    fill: impl FnOnce(&mut Attributes),
) -> Message {
    let mut attributes = Attributes::default();
    fill(&mut attributes);
    let kind = SUBSYSTEM_NFTABLES << 8 | command as u16;
    message(kind, flags, family, 0, action, &attributes)
}

/// A transaction: all the requests take effect at once, or none does.
///
/// Only the last request asks for an acknowledgement; refused ones answer unasked.
pub(super) fn transaction(mut requests: Vec<Message>) -> Vec<Message> {
    let bound = |kind, action| {
        let none = Attributes::default();
        message(kind, 0, Family::Unspecified, SUBSYSTEM_NFTABLES, action, &none)
    };
    if let Some(last) = requests.last_mut() {
        last.flags |= ACK;
    }
    let mut batch = vec![bound(BATCH_BEGIN, "commit nftables transaction")];
    batch.append(&mut requests);
    batch.push(bound(BATCH_END, "end nftables transaction"));
    batch
}

// Registers: four of 16 bytes, or sixteen of 4 bytes over the same room.
const VERDICT_REGISTER: u32 = 0;

/// A register of four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Register(pub(super) u32);

impl Register {
    fn encoded(self) -> u32 {
        8 + self.0
    }
}

/// What a rule can load from the packet and its connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Load {
    /// The family of the packet: one byte.
    NetworkFamily,
    /// The transport protocol: one byte.
    TransportProtocol,
    /// The first two bytes of the link-layer address that the packet comes from.
    LinkSource,
    /// Type of an ICMP message: one byte.
    IcmpType,
    /// Name of the interface that the packet came in by: 16 bytes.
    InputInterface,
    /// Name of the interface that the packet goes out by: 16 bytes.
    OutputInterface,
    /// Source address of an IPv4 (4 bytes) or IPv6 (16 bytes) packet.
    Source(Family),
    /// Destination address of an IPv4 or IPv6 packet.
    Destination(Family),
    /// Destination port of TCP, UDP, SCTP: two bytes at the same place in all.
    DestinationPort,
    /// Type of the destination address, by the routing table: host-order number.
    DestinationType,
    /// Status bits of the connection: host-order number.
    ConnectionStatus,
}

/// `RTN_LOCAL`: the address is one of this host's.
pub(super) const LOCAL: u32 = 2;
/// `IPS_DST_NAT`: the connection's destination was rewritten.
pub(super) const DESTINATION_REWRITTEN: u32 = 1 << 5;

/// The expressions of one rule, in order.
#[derive(Debug, Default)]
pub(super) struct Rule(Attributes);

impl Rule {
    fn expression(mut self, name: &str, fill: impl FnOnce(&mut Attributes)) -> Self {
        self.0.nested(1, |element| {
            element.text(1, name).nested(2, fill);
        });
        self
    }

    pub(super) fn load(self, what: Load, register: Register) -> Self {
        let to = register.encoded();
        let meta = |rule: Self, key| {
            rule.expression("meta", |data| {
                data.number(1, to).number(2, key);
            })
        };
        let payload = |rule: Self, base, offset, length| {
            rule.expression("payload", |data| {
                data.number(1, to).number(2, base);
                data.number(3, offset).number(4, length);
            })
        };
        match what {
            Load::InputInterface => meta(self, 6),
            Load::OutputInterface => meta(self, 7),
            Load::NetworkFamily => meta(self, 15),
            Load::TransportProtocol => meta(self, 16),
            Load::LinkSource => payload(self, 0, 6, 2),
            Load::IcmpType => payload(self, 2, 0, 1),
            Load::Source(Family::V6) => payload(self, 1, 8, 16),
            Load::Source(_) => payload(self, 1, 12, 4),
            Load::Destination(Family::V6) => payload(self, 1, 24, 16),
            Load::Destination(_) => payload(self, 1, 16, 4),
            Load::DestinationPort => payload(self, 2, 2, 2),
            // Result "address type", of the destination.
            Load::DestinationType => self.expression("fib", |data| {
                data.number(1, to).number(2, 3).number(3, 2);
            }),
            Load::ConnectionStatus => self.expression("ct", |data| {
                data.number(1, to).number(2, 2);
            }),
        }
    }

    /// Goes on only if what is loaded equals `value`.
    pub(super) fn equal(self, what: Load, value: &[u8]) -> Self {
        self.compare(what, 0, value)
    }

    /// Goes on only if what is loaded differs from `value`.
    pub(super) fn different(self, what: Load, value: &[u8]) -> Self {
        self.compare(what, 1, value)
    }

    fn compare(self, what: Load, operation: u32, value: &[u8]) -> Self {
        self.load(what, Register(0)).test(operation, value)
    }

    /// Compares the first register; operation 0 is "equal", 1 "different".
    fn test(self, operation: u32, value: &[u8]) -> Self {
        self.expression("cmp", |data| {
            data.number(1, Register(0).encoded()).number(2, operation);
            data.nested(3, |data| {
                data.bytes(1, value);
            });
        })
    }

    /// Goes on only if the first bits of what is loaded are those of `prefix`.
    pub(super) fn within(self, what: Load, prefix: &[u8], mask: &[u8]) -> Self {
        self.load(what, Register(0)).mask(mask).test(0, prefix)
    }

    /// Goes on only if one of the `bits` of a host-order number is set.
    pub(super) fn any_bit(self, what: Load, bits: u32) -> Self {
        self.load(what, Register(0)).mask(&bits.to_ne_bytes()).test(1, &[0; 4])
    }

    fn mask(self, mask: &[u8]) -> Self {
        self.expression("bitwise", |data| {
            let register = Register(0).encoded();
            data.number(1, register).number(2, register);
            data.number(3, u32::try_from(mask.len()).unwrap_or(0));
            data.nested(4, |data| {
                data.bytes(1, mask);
            });
            data.nested(5, |data| {
                data.bytes(1, &vec![0; mask.len()]);
            });
        })
    }

    /// Looks the first registers up in a map and replaces them by what it finds;
    /// the rule ends where nothing is found.
    pub(super) fn map(self, set: &str) -> Self {
        self.expression("lookup", |data| {
            let register = Register(0).encoded();
            data.text(1, set).number(2, register).number(3, register);
        })
    }

    /// Rewrites the destination to the address in the first registers and the
    /// port in `port`.
    pub(super) fn rewrite_destination(self, family: Family, port: Register) -> Self {
        self.expression("nat", |data| {
            data.number(1, 1).number(2, u32::from(family as u8));
            data.number(3, Register(0).encoded());
            data.number(5, port.encoded());
        })
    }

    /// Rewrites the source to the address of the interface the packet leaves by.
    pub(super) fn masquerade(self) -> Self {
        self.expression("masq", |_| {})
    }

    pub(super) fn drop_packet(self) -> Self {
        self.verdict(0)
    }

    /// Ends the chain for this packet.
    pub(super) fn accept(self) -> Self {
        self.verdict(1)
    }

    fn verdict(self, code: u32) -> Self {
        self.expression("immediate", |data| {
            data.number(1, VERDICT_REGISTER).nested(2, |data| {
                data.nested(2, |verdict| {
                    verdict.number(1, code);
                });
            });
        })
    }

    /// The request that appends this rule to a chain.
    pub(super) fn append_to(self, table: &str, chain: &str) -> Message {
        self.append_in(Family::Inet, table, chain)
    }

    /// The same for a table of another family.
    pub(super) fn append_in(self, family: Family, table: &str, chain: &str) -> Message {
        const APPEND: u16 = 0x800;
        request_in(family, Command::NewRule, CREATE | APPEND, "add nftables rule", |rule| {
            rule.text(1, table).text(2, chain);
            rule.bytes(4 | NESTED, &self.0.0);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::netlink::attributes;

    #[test]
    fn attributes_are_padded_and_nested() {
        let mut list = Attributes::default();
        list.text(1, "ab").nested(2, |inner| {
            inner.number(3, 0x0102_0304);
        });
        assert_eq!(list.0, [7, 0, 1, 0, b'a', b'b', 0, 0, 12, 0, 2, 0x80, 8, 0, 3, 0, 1, 2, 3, 4]);
        let kinds: Vec<_> = attributes(&list.0).map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [1, 2]);
    }

    #[test]
    fn only_the_last_request_of_a_transaction_is_acknowledged() {
        let one = || request(Command::NewTable, CREATE, "t", |_| {});
        let batch = transaction(vec![one(), one()]);
        let acknowledged: Vec<_> = batch.iter().map(|m| m.flags & ACK != 0).collect();
        assert_eq!(acknowledged, [false, false, true, false]);
        assert_eq!(batch[0].kind, BATCH_BEGIN);
        assert_eq!(batch[0].body, [0, 0, 0, 10]);
        assert_eq!(batch[3].kind, BATCH_END);
    }
}
