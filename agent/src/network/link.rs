//! Interfaces, their addresses and routes, as rtnetlink requests and answers.
//!
//! Requests are encoded by netlink-packet-route. Of the answers only the few
//! attributes that matter are read, so that what a newer kernel adds cannot
//! make a dump unreadable.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use rustix::net;
use serde::Serialize;

use super::netlink::{
    CREATE, DUMP, EXCLUSIVE, Error, Message, REPLACE, Reply, Socket, attribute, attributes, read_u32,
};

/// The name of every pod's interface.
pub(super) const POD_INTERFACE: &str = "eth0";

/// Traffic of one interface since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct InterfaceStats {
    /// Name of the interface.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets that could not be received.
    pub rx_errors: u64,
    /// Packets that arrived and were dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets that were dropped instead of sent.
    pub tx_dropped: u64,
}

impl InterfaceStats {
    /// The same traffic as it is seen at the other end of a pair.
    pub(super) fn seen_from_peer(self, name: &str) -> InterfaceStats {
        InterfaceStats {
            name: name.to_owned(),
            rx_bytes: self.tx_bytes,
            rx_packets: self.tx_packets,
            rx_errors: self.tx_errors,
            rx_dropped: self.tx_dropped,
            tx_bytes: self.rx_bytes,
            tx_packets: self.rx_packets,
            tx_errors: self.rx_errors,
            tx_dropped: self.rx_dropped,
        }
    }
}

/// What is known of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// Such as `bridge` or `veth`; empty for most hardware.
    pub(super) kind: String,
    pub(super) mtu: u32,
    pub(super) master: Option<u32>,
    /// Packets pass: the kernel has seen the carrier come up and acted on it.
    pub(super) operational: bool,
    pub(super) stats: InterfaceStats,
}

impl Link {
    fn parse(body: &[u8]) -> Option<Link> {
        const NAME: u16 = 3;
        const MTU: u16 = 4;
        const MASTER: u16 = 10;
        const OPERATIONAL_STATE: u16 = 16;
        const INFO: u16 = 18;
        const STATS: u16 = 23;
        const UP: u8 = 6;

        let mut link = Link {
            index: read_u32(body.get(..16)?, 4),
            name: String::new(),
            kind: String::new(),
            mtu: 0,
            master: None,
            operational: false,
            stats: InterfaceStats::default(),
        };
        for (kind, value) in attributes(&body[16..]) {
            match kind {
                NAME => link.name = text(value),
                MTU => link.mtu = number(value)?,
                MASTER => link.master = number(value),
                OPERATIONAL_STATE => link.operational = value.first() == Some(&UP),
                INFO => link.kind = attribute(value, 1).map(text).unwrap_or_default(),
                STATS => link.stats = stats(value)?,
                _ => {}
            }
        }
        link.stats.name.clone_from(&link.name);
        Some(link)
    }
}

fn text(value: &[u8]) -> String {
    let value = value.strip_suffix(&[0]).unwrap_or(value);
    String::from_utf8_lossy(value).into_owned()
}

fn number(value: &[u8]) -> Option<u32> {
    (value.len() >= 4).then(|| read_u32(value, 0))
}

/// The head of `struct rtnl_link_stats64`.
fn stats(value: &[u8]) -> Option<InterfaceStats> {
    let word = |index: usize| -> Option<u64> {
        let bytes = value.get(index * 8..index * 8 + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    Some(InterfaceStats {
        name: String::new(),
        rx_packets: word(0)?,
        tx_packets: word(1)?,
        rx_bytes: word(2)?,
        tx_bytes: word(3)?,
        rx_errors: word(4)?,
        tx_errors: word(5)?,
        rx_dropped: word(6)?,
        tx_dropped: word(7)?,
    })
}

fn parse_all(replies: &[Reply]) -> Result<Vec<Link>, Error> {
    const NEW_LINK: u16 = 16;
    replies
        .iter()
        .filter(|reply| reply.kind == NEW_LINK)
        .map(|reply| Link::parse(&reply.body).ok_or(Error::Malformed))
        .collect()
}

/// A request about an interface, named by its index or by its name.
fn message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

fn name(name: &str) -> LinkAttribute {
    LinkAttribute::IfName(name.to_owned())
}

fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
    message
}

/// Every interface of the socket's namespace.
pub(super) fn list(socket: &mut Socket) -> Result<Vec<Link>, Error> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    parse_all(&socket.dump(&Message::route("list interfaces", DUMP, &request))?)
}

/// The interface of a name, if there is one.
pub(super) fn find(socket: &mut Socket, interface: &str) -> Result<Option<Link>, Error> {
    match socket.transact(&[get(interface)]) {
        Ok(replies) => Ok(parse_all(&replies)?.pop()),
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The ports of a bridge.
pub(super) fn list_ports(socket: &mut Socket, bridge: u32) -> Result<Vec<Link>, Error> {
    let attributes = vec![
        LinkAttribute::Controller(bridge),
        // Without the protocols' own counters, which are most of an answer.
        LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
    ];
    let request = RouteNetlinkMessage::GetLink(message(0, attributes));
    let replies = socket.dump(&Message::route("list bridge ports", DUMP, &request))?;
    let mut links = parse_all(&replies)?;
    // Kernels that know no such filter answer with every interface.
    links.retain(|link| link.master == Some(bridge));
    Ok(links)
}

fn get(interface: &str) -> Message {
    let request = RouteNetlinkMessage::GetLink(message(0, vec![name(interface)]));
    Message::route("look up interface", 0, &request)
}

/// Waits until packets pass the interfaces, as far as they exist.
///
/// The kernel notices a carrier in a work queue, shortly after the interface was
/// set up; a packet sent before that is lost, and with it a second until it is
/// sent again. False when it took longer than `limit`.
pub(super) fn wait_operational(
    socket: &mut Socket,
    interfaces: &[&str],
    limit: Duration,
) -> Result<bool, Error> {
    let requests: Vec<_> = interfaces.iter().map(|interface| get(interface)).collect();
    let start = Instant::now();
    let mut pause = Duration::from_micros(50);
    loop {
        let replies = socket.transact(&requests)?;
        if parse_all(&replies)?.iter().all(|link| link.operational) {
            return Ok(true);
        }
        if start.elapsed() > limit {
            return Ok(false);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(2));
    }
}

/// Makes a bridge without spanning tree, whose ports forward at once.
pub(super) fn create_bridge(bridge: &str, address: [u8; 6]) -> Message {
    let options = vec![
        InfoBridge::ForwardDelay(0),
        // There is no querier among pods, so snooping would only cost time.
        InfoBridge::MulticastSnooping(false),
    ];
    let request = message(
        0,
        vec![
            name(bridge),
            // Without one of its own a bridge changes its address with its ports.
            LinkAttribute::Address(address.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(options)),
            ]),
        ],
    );
    let request = RouteNetlinkMessage::NewLink(request);
    Message::route("create bridge", CREATE | EXCLUSIVE, &request)
}

/// A pair of interfaces, one end a port of a bridge and the other in a pod.
pub(super) struct Pair<'a> {
    pub(super) host_name: &'a str,
    pub(super) host_address: [u8; 6],
    pub(super) bridge: u32,
    pub(super) pod: BorrowedFd<'a>,
    pub(super) pod_address: [u8; 6],
    pub(super) mtu: u32,
    pub(super) ipv6: bool,
}

/// Makes a pair: the host's end set up and on the bridge, the pod's end down.
///
/// Each end has one queue. Without being told the kernel makes as many as there may be processors, an object in sysfs for
/// each, and then, waiting for its readers, takes all but one away again (`veth_init_queues`).
pub(super) fn create_pair(pair: &Pair<'_>) -> Vec<Message> {
    let peer = message(
        0,
        vec![
            name(POD_INTERFACE),
            LinkAttribute::NetNsFd(pair.pod.as_raw_fd()),
            LinkAttribute::Mtu(pair.mtu),
            LinkAttribute::Address(pair.pod_address.to_vec()),
            LinkAttribute::NumTxQueues(1),
            LinkAttribute::NumRxQueues(1),
        ],
    );
    let host = message(
        0,
        vec![
            name(pair.host_name),
            LinkAttribute::Mtu(pair.mtu),
            LinkAttribute::Address(pair.host_address.to_vec()),
            LinkAttribute::NumTxQueues(1),
            LinkAttribute::NumRxQueues(1),
            LinkAttribute::Controller(pair.bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ],
    );
    // Where bridged packets pass netfilter, one that a pod sends to a port of
    // its own is turned around on the bridge: the port must take it back.
    let hairpin = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]);
    let mut port = message(
        0,
        vec![
            name(pair.host_name),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(hairpin),
            ]),
        ],
    );
    if pair.ipv6 {
        port.attributes.push(without_link_local());
    }
    let create = RouteNetlinkMessage::NewLink(up(host));
    let configure = RouteNetlinkMessage::NewLink(port);
    vec![
        Message::route("create interface pair", CREATE | EXCLUSIVE, &create),
        Message::route("configure bridge port", 0, &configure),
    ]
}

/// Keeps the kernel from giving the interface an IPv6 address by itself.
fn without_link_local() -> LinkAttribute {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])
}

pub(super) fn set_mtu(interface: &str, mtu: u32) -> Message {
    let attributes = vec![name(interface), LinkAttribute::Mtu(mtu)];
    let request = RouteNetlinkMessage::SetLink(message(0, attributes));
    Message::route("set mtu", 0, &request)
}

pub(super) fn set_up(interface: &str) -> Message {
    let request = RouteNetlinkMessage::SetLink(up(message(0, vec![name(interface)])));
    Message::route("set interface up", 0, &request)
}

/// Whether there is an interface of this name, which the kernel tells without its lock for changes (`rtnl`).
pub(super) fn exists(interface: &str) -> Result<bool, Errno> {
    let socket = net::socket(net::AddressFamily::UNIX, net::SocketType::DGRAM, None)?;
    match net::netdevice::name_to_index(socket, interface) {
        Ok(_) => Ok(true),
        Err(Errno::NODEV) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Removes an interface, and with one end of a pair the other; a missing one is no error.
pub(super) fn delete(socket: &mut Socket, interface: &str) -> Result<(), Error> {
    let request = RouteNetlinkMessage::DelLink(message(0, vec![name(interface)]));
    match socket.transact(&[Message::route("delete interface", 0, &request)]) {
        Err(error) if error.errno() != Some(Errno::NODEV) => Err(error),
        _ => Ok(()),
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Gives an interface an address, usable at once: IPv6 does not look for another
/// holder first, as it is us who give addresses out.
pub(super) fn add_address(index: u32, net: IpNet) -> Message {
    let mut request = AddressMessage::default();
    request.header.family = family(net.addr());
    request.header.prefix_len = net.prefix_len();
    request.header.index = index;
    request.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    match net {
        IpNet::V4(net) => request.attributes.push(AddressAttribute::Broadcast(net.broadcast())),
        IpNet::V6(_) => request.header.flags = AddressHeaderFlags::Nodad,
    }
    let request = RouteNetlinkMessage::NewAddress(request);
    Message::route("add address", CREATE | REPLACE, &request)
}

/// Takes an address from an interface, and the route to its subnet with it; a missing one is no error.
pub(super) fn delete_address(socket: &mut Socket, index: u32, net: IpNet) -> Result<(), Error> {
    let mut request = AddressMessage::default();
    request.header.family = family(net.addr());
    request.header.prefix_len = net.prefix_len();
    request.header.index = index;
    request.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    let request = RouteNetlinkMessage::DelAddress(request);
    match socket.transact(&[Message::route("delete address", 0, &request)]) {
        Err(error) if error.errno() != Some(Errno::ADDRNOTAVAIL) => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn add_default_route(index: u32, gateway: IpAddr) -> Message {
    let mut request = RouteMessage::default();
    request.header.address_family = family(gateway);
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    request.header.protocol = RouteProtocol::Boot;
    request.header.scope = RouteScope::Universe;
    request.header.kind = RouteType::Unicast;
    request.attributes = vec![
        RouteAttribute::Gateway(match gateway {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        }),
        RouteAttribute::Oif(index),
    ];
    let request = RouteNetlinkMessage::NewRoute(request);
    Message::route("add default route", CREATE | EXCLUSIVE, &request)
}

/// An address of an interface, or a route: a net that this host reaches by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) net: IpNet,
    pub(super) index: u32,
}

/// The nets that interfaces have addresses in.
pub(super) fn list_addresses(socket: &mut Socket) -> Result<Vec<Reach>, Error> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let replies = socket.dump(&Message::route("list addresses", DUMP, &request))?;
    let parse = |reply: &Reply| {
        let body = reply.body.as_slice();
        let address = ip(attribute(body.get(8..)?, 1)?)?;
        Some(Reach { net: IpNet::new(address, body[1]).ok()?, index: read_u32(body, 4) })
    };
    Ok(replies.iter().filter_map(parse).collect())
}

/// The unicast routes of the main table; default routes have prefix length 0.
pub(super) fn list_routes(socket: &mut Socket) -> Result<Vec<Reach>, Error> {
    const DESTINATION: u16 = 1;
    const OUTPUT: u16 = 4;
    const INET: u8 = 2;
    const CLONED: u32 = 0x200;
    const UNICAST: u8 = 1;

    let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
    let replies = socket.dump(&Message::route("list routes", DUMP, &request))?;
    let parse = |reply: &Reply| {
        let body = reply.body.as_slice();
        let rest = body.get(12..)?;
        let wanted =
            body[4] == RouteHeader::RT_TABLE_MAIN && body[7] == UNICAST && read_u32(body, 8) & CLONED == 0;
        let any = if body[0] == INET { &[0u8; 4][..] } else { &[0u8; 16] };
        let destination = ip(attribute(rest, DESTINATION).unwrap_or(any))?;
        wanted.then_some(Reach {
            net: IpNet::new(destination, body[1]).ok()?,
            index: attribute(rest, OUTPUT).and_then(number).unwrap_or(0),
        })
    };
    Ok(replies.iter().filter_map(parse).collect())
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(IpAddr::from(octets));
    }
    Some(IpAddr::from(<[u8; 16]>::try_from(value).ok()?))
}
