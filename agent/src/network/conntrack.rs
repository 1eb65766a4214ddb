//! Tracked connections: requests that list some of them, and that forget one.
//!
//! Kernels from 6.12 on forget by a filter all that it fits; older ones want the whole tuple of each. So those that a
//! filter fits are listed, and each is forgotten by its tuple. Kernels before 5.8 list all of a family whatever is asked
//! for: what they answer is compared here as well.

use std::net::IpAddr;

use super::netfilter::{Attributes, Family, NESTED, message};
use super::netlink::{ACK, DUMP, Message, Reply, attribute};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;

// What a connection has.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
// What a tuple has.
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
// What its protocol has.
const NUMBER: u16 = 1;
const DESTINATION_PORT: u16 = 3;

/// Which tracked connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// Those of a family and protocol that were opened to a port.
    ToPort { family: Family, protocol: u8, port: u16 },
    /// Those of a protocol that an address answers.
    AnsweredBy { address: IpAddr, protocol: u8 },
}

impl Filter {
    fn family(&self) -> Family {
        match self {
            Filter::ToPort { family, .. } => *family,
            Filter::AnsweredBy { address, .. } if address.is_ipv4() => Family::V4,
            Filter::AnsweredBy { .. } => Family::V6,
        }
    }

    /// Whether it fits a connection with these attributes.
    fn fits(&self, connection: &[u8]) -> bool {
        let of_protocol = |tuple, kind| attribute(attribute(attribute(connection, tuple)?, PROTOCOL)?, kind);
        match *self {
            Filter::ToPort { protocol, port, .. } => {
                of_protocol(ORIGINAL, NUMBER) == Some(&[protocol])
                    && of_protocol(ORIGINAL, DESTINATION_PORT) == Some(&port.to_be_bytes())
            }
            Filter::AnsweredBy { address, protocol } => {
                let (kind, octets) = source(address);
                let addresses = attribute(connection, REPLY).and_then(|tuple| attribute(tuple, ADDRESSES));
                of_protocol(REPLY, NUMBER) == Some(&[protocol])
                    && addresses.and_then(|addresses| attribute(addresses, kind)) == Some(&octets)
            }
        }
    }
}

/// A source address as it is in a tuple: its kind and its bytes.
fn source(address: IpAddr) -> (u16, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (1, address.octets().to_vec()),
        IpAddr::V6(address) => (3, address.octets().to_vec()),
    }
}

/// The request for a dump of the connections that a filter fits, and perhaps others.
pub(super) fn list(filter: &Filter) -> Message {
    const SOURCE_ADDRESS_FLAG: u32 = 1 << 0;
    const NUMBER_FLAG: u32 = 1 << 3;
    const DESTINATION_PORT_FLAG: u32 = 1 << 5;

    let mut attributes = Attributes::default();
    let (tuple, flags) = match *filter {
        Filter::ToPort { protocol, port, .. } => {
            attributes.nested(ORIGINAL, |tuple| {
                tuple.nested(PROTOCOL, |of_protocol| {
                    of_protocol.bytes(NUMBER, &[protocol]).bytes(DESTINATION_PORT, &port.to_be_bytes());
                });
            });
            (ORIGINAL, NUMBER_FLAG | DESTINATION_PORT_FLAG)
        }
        Filter::AnsweredBy { address, protocol } => {
            let (kind, octets) = source(address);
            attributes.nested(REPLY, |tuple| {
                tuple.nested(ADDRESSES, |addresses| {
                    addresses.bytes(kind, &octets);
                });
                tuple.nested(PROTOCOL, |of_protocol| {
                    of_protocol.bytes(NUMBER, &[protocol]);
                });
            });
            (REPLY, SOURCE_ADDRESS_FLAG | NUMBER_FLAG)
        }
    };
    // The flags of each tuple have its number.
    attributes.nested(FILTER, |filter| {
        filter.bytes(tuple, &flags.to_ne_bytes());
    });
    message(SUBSYSTEM << 8 | GET, DUMP, filter.family(), 0, "list tracked connections", &attributes)
}

/// The request to forget a connection that was listed; `None` for one that the filter does not fit.
pub(super) fn forget(listed: &Reply, filter: &Filter) -> Option<Message> {
    /// Before the attributes: family, version, resource.
    const HEADER: usize = 4;
    let connection = listed.body.get(HEADER..).filter(|connection| filter.fits(connection))?;
    let mut attributes = Attributes::default();
    attributes.bytes(ORIGINAL | NESTED, attribute(connection, ORIGINAL)?);
    for kind in [ZONE, ID] {
        if let Some(value) = attribute(connection, kind) {
            attributes.bytes(kind, value);
        }
    }
    let kind = SUBSYSTEM << 8 | DELETE;
    Some(message(kind, ACK, filter.family(), 0, "forget a tracked connection", &attributes))
}
