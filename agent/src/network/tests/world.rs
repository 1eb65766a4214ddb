//! A host of its own for a test: network namespaces, made and joined here.
//!
//! The test runs on a thread whose namespace is the host. It has an interface to
//! a third namespace, the outside, which knows the way to the host alone and not
//! to its pods. Nothing leaves these namespaces; they go with their descriptors.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::thread::UnshareFlags;

use crate::network::address::gateway;
use crate::network::link::{self, Link};
use crate::network::netlink::{CREATE, EXCLUSIVE, Message, Socket};
use crate::network::{AttachRequest, Attachment, Config, Network, PortMapping, Protocol};
use crate::network::{namespace, sysctl};

pub(super) const HOST4: &str = "198.51.100.1";
pub(super) const HOST6: &str = "2001:db8:51::1";
pub(super) const OUTSIDE4: &str = "198.51.100.2";
pub(super) const OUTSIDE6: &str = "2001:db8:51::2";

const PATIENCE: Duration = Duration::from_secs(3);

/// The host of one test.
pub(super) struct World {
    pub(super) outside: OwnedFd,
}

/// Runs a test on a host of its own.
pub(super) fn on_a_host<T: Send>(test: impl FnOnce(&World) -> T + Send) -> T {
    thread::scope(|scope| {
        let host = scope.spawn(|| {
            unshare_network();
            let outside = new_namespace();
            let mut socket = Socket::route().unwrap();
            create_pair(&mut socket, "uplink", &outside, "uplink");
            give(&mut socket, "uplink", &[HOST4, HOST6]);
            namespace::enter(outside.as_fd(), || {
                let mut socket = Socket::route().unwrap();
                give(&mut socket, "uplink", &[OUTSIDE4, OUTSIDE6]);
            })
            .unwrap();
            link::wait_operational(&mut socket, &["uplink"], PATIENCE).unwrap();
            test(&World { outside })
        });
        host.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[expect(deprecated, reason = "unsafe only for descriptor tables, which stay shared here")]
fn unshare_network() {
    rustix::thread::unshare(UnshareFlags::NEWNET).unwrap();
}

pub(super) fn new_namespace() -> OwnedFd {
    thread::spawn(|| {
        unshare_network();
        File::open("/proc/thread-self/ns/net").unwrap().into()
    })
    .join()
    .unwrap()
}

/// A pair of interfaces that belongs to no network of ours.
pub(super) fn create_pair(socket: &mut Socket, name: &str, netns: &OwnedFd, peer: &str) {
    let mut inside = LinkMessage::default();
    inside.attributes = vec![LinkAttribute::IfName(peer.into()), LinkAttribute::NetNsFd(netns.as_raw_fd())];
    let mut here = LinkMessage::default();
    here.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inside))),
        ]),
    ];
    let request = RouteNetlinkMessage::NewLink(here);
    let message = Message::route("create pair", CREATE | EXCLUSIVE, &request);
    socket.transact(&[message]).unwrap();
}

/// Sets an interface up, and `lo`, and gives it addresses with room for a few others.
fn give(socket: &mut Socket, name: &str, addresses: &[&str]) {
    let index = link::find(socket, name).unwrap().unwrap().index;
    let mut messages = vec![link::set_up("lo"), link::set_up(name)];
    for address in addresses {
        let address: IpAddr = address.parse().unwrap();
        let length = if address.is_ipv4() { 24 } else { 64 };
        let net = ipnet::IpNet::new(address, length).unwrap();
        messages.push(link::add_address(index, net));
    }
    socket.transact(&messages).unwrap();
}

/// Takes the loopback address from the calling thread's namespace, so that it
/// sends packets for 127.0.0.1 out by `interface`.
pub(super) fn send_loopback_out(interface: &str) {
    let mut request = AddressMessage::default();
    request.header.family = AddressFamily::Inet;
    request.header.prefix_len = 8;
    request.header.index = 1;
    let localhost = Ipv4Addr::LOCALHOST.into();
    request.attributes = vec![AddressAttribute::Local(localhost)];
    let request = RouteNetlinkMessage::DelAddress(request);
    let message = Message::route("delete address", 0, &request);
    Socket::route().unwrap().transact(&[message]).unwrap();
    sysctl::set(&format!("ipv4/conf/{interface}/route_localnet"), "1").unwrap();
}

pub(super) fn config(bridge: &str, subnets: &[&str]) -> Config {
    Config {
        bridge: bridge.into(),
        subnets: subnets.iter().map(|net| net.parse().unwrap()).collect(),
        mtu: None,
    }
}

/// A network with both families, under a name that no other test has.
pub(super) fn network() -> Network {
    let number: u8 = rand::random();
    let bridge = format!("sptest{:08x}", rand::random::<u32>());
    let v4 = format!("10.201.{number}.0/24");
    let v6 = format!("fd73:{number:x}::/64");
    Network::open(config(&bridge, &[&v4, &v6])).unwrap()
}

/// The addresses of the bridge, IPv4 first.
pub(super) fn gateways(network: &Network) -> Vec<IpAddr> {
    network.subnets().into_iter().map(|subnet| gateway(subnet).addr()).collect()
}

/// Interfaces of the calling thread's namespace.
pub(super) fn links() -> Vec<Link> {
    link::list(&mut Socket::route().unwrap()).unwrap()
}

/// A pod: a namespace and what the network gave it.
pub(super) struct Pod {
    pub(super) id: String,
    pub(super) netns: OwnedFd,
    pub(super) attachment: Attachment,
}

impl Pod {
    pub(super) fn attach(network: &Network, id: &str, ports: &[PortMapping]) -> Pod {
        let netns = new_namespace();
        let attachment = network
            .attach(&AttachRequest { pod_id: id, netns: &netns, ports, procfs: Path::new("/proc") })
            .unwrap();
        Pod { id: id.into(), netns, attachment }
    }

    pub(super) fn v4(&self) -> IpAddr {
        self.attachment.addresses[0].addr()
    }

    pub(super) fn v6(&self) -> IpAddr {
        self.attachment.addresses[1].addr()
    }
}

pub(super) fn publish(protocol: Protocol, host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol, host_ip: None, host_port, container_port }
}

/// Does something in a namespace, or in the host's own.
pub(super) fn within<T: Send>(netns: Option<&OwnedFd>, work: impl FnOnce() -> T + Send) -> T {
    match netns {
        Some(netns) => namespace::enter(netns.as_fd(), work).unwrap(),
        None => work(),
    }
}

/// Answers everybody with the address they come from.
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves TCP and UDP of a port, on all addresses of both families.
    pub(super) fn start(netns: Option<&OwnedFd>, port: u16) -> Server {
        Server::on(netns, SocketAddr::new("::".parse().unwrap(), port))
    }

    pub(super) fn on(netns: Option<&OwnedFd>, address: SocketAddr) -> Server {
        let (tcp, udp) =
            within(netns, || (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap()));
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let tcp = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((mut stream, peer)) => {
                        let _ = stream.write_all(seen(peer).as_bytes());
                    }
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        let stopped = stop.clone();
        let udp = thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(seen(peer).as_bytes(), peer);
                }
            }
        });
        Server { stop, threads: vec![tcp, udp] }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn seen(peer: SocketAddr) -> String {
    peer.ip().to_canonical().to_string()
}

/// Asks a server over TCP which address it sees.
pub(super) fn ask(netns: Option<&OwnedFd>, address: IpAddr, port: u16) -> io::Result<IpAddr> {
    ask_within(netns, address, port, PATIENCE)
}

/// Asks where no answer is expected.
pub(super) fn is_reachable(netns: Option<&OwnedFd>, address: IpAddr, port: u16) -> bool {
    ask_within(netns, address, port, Duration::from_millis(400)).is_ok()
}

fn ask_within(netns: Option<&OwnedFd>, address: IpAddr, port: u16, limit: Duration) -> io::Result<IpAddr> {
    within(netns, || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), limit)?;
        stream.set_read_timeout(Some(limit))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        answer.parse().map_err(io::Error::other)
    })
}

/// Asks a server over UDP which address it sees, from a socket of the caller's.
pub(super) fn ask_from(socket: &UdpSocket, address: IpAddr, port: u16) -> io::Result<IpAddr> {
    let mut buffer = [0; 64];
    socket.send_to(b"?", SocketAddr::new(address, port))?;
    let (length, _) = socket.recv_from(&mut buffer)?;
    let answer = std::str::from_utf8(&buffer[..length]).map_err(io::Error::other)?;
    answer.parse().map_err(io::Error::other)
}

pub(super) fn udp_socket(netns: Option<&OwnedFd>, v6: bool) -> UdpSocket {
    let any: IpAddr = if v6 { "::" } else { "0.0.0.0" }.parse().unwrap();
    let socket = within(netns, || UdpSocket::bind((any, 0)).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket
}

pub(super) fn ask_udp(netns: Option<&OwnedFd>, address: IpAddr, port: u16) -> io::Result<IpAddr> {
    ask_from(&udp_socket(netns, address.is_ipv6()), address, port)
}

/// Whether bridged packets pass netfilter in this namespace.
pub(super) fn filter_bridged_packets(yes: bool) {
    let value = if yes { "1" } else { "0" };
    sysctl::set("bridge/bridge-nf-call-iptables", value).unwrap();
    sysctl::set("bridge/bridge-nf-call-ip6tables", value).unwrap();
}

/// Waits until a condition holds.
pub(super) fn eventually(limit: Duration, condition: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit {
        if condition() {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    condition()
}
