//! Published ports: what a pod asks for, and who holds what.
//!
//! A port of the host belongs to one pod at a time. A mapping for all addresses
//! overlaps one for a single address, as it does when sockets are bound.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt};
use serde::{Deserialize, Serialize};

use super::error::Error;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The number of the protocol in an IP header.
    pub(super) fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// A port of the host that leads to a port of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The host's address. `None` means every address of the host, `0.0.0.0`
    /// and `::` every one of that family.
    pub host_ip: Option<IpAddr>,
    /// The host's port; 0 means that the port is not published.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
}

impl PortMapping {
    fn overlaps(&self, other: &PortMapping) -> bool {
        let (Some(ours), Some(theirs)) = (self.host_ip, other.host_ip) else {
            return true;
        };
        ours.is_ipv4() == theirs.is_ipv4()
            && (ours.is_unspecified() || theirs.is_unspecified() || ours == theirs)
    }

    /// The addresses to which a process would bind for the same effect.
    fn bind_addresses(&self, families: Families) -> Vec<SocketAddr> {
        let all = [
            (families.v4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            (families.v6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        ];
        match self.host_ip {
            Some(address) => vec![SocketAddr::new(address, self.host_port)],
            None => all
                .into_iter()
                .filter(|(present, _)| *present)
                .map(|(_, address)| SocketAddr::new(address, self.host_port))
                .collect(),
        }
    }
}

/// Shown as people write it: `127.0.0.1:8080/tcp`.
impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            None => {}
        }
        write!(f, "{}/{}", self.host_port, self.protocol)
    }
}

/// Which families a network has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Families {
    pub(super) v4: bool,
    pub(super) v6: bool,
}

/// The ports of a request that are to be published, each once.
pub(super) fn published(ports: &[PortMapping], families: Families) -> Result<Vec<PortMapping>, Error> {
    let mut published = Vec::new();
    for port in ports.iter().filter(|port| port.host_port != 0) {
        let refuse = |reason| Err(Error::InvalidPort { port: *port, reason });
        if port.container_port == 0 {
            return refuse("the container port is 0");
        }
        match port.host_ip {
            Some(IpAddr::V4(_)) if !families.v4 => return refuse("pods have no IPv4 address"),
            Some(IpAddr::V6(_)) if !families.v6 => return refuse("pods have no IPv6 address"),
            Some(address) if address.is_multicast() => return refuse("a multicast address"),
            // The kernel does not route from ::1 to another interface.
            Some(IpAddr::V6(Ipv6Addr::LOCALHOST)) => return refuse("::1 cannot be published"),
            _ => {}
        }
        if !published.contains(port) {
            published.push(*port);
        }
    }
    Ok(published)
}

/// Which pod holds which ports.
#[derive(Debug, Default)]
pub(super) struct PortTable {
    held: HashMap<(Protocol, u16), Vec<(PortMapping, String)>>,
}

impl PortTable {
    /// Gives all the ports to the pod, or none.
    pub(super) fn take(&mut self, pod_id: &str, ports: &[PortMapping]) -> Result<(), Error> {
        for (index, port) in ports.iter().enumerate() {
            let twice = ports[..index].iter().find(|earlier| {
                (earlier.protocol, earlier.host_port) == (port.protocol, port.host_port)
                    && earlier.overlaps(port)
            });
            let holder = match twice {
                Some(_) => Some(pod_id),
                None => self.holder(port),
            };
            if let Some(holder) = holder {
                return Err(Error::PortInUse { port: *port, pod_id: holder.to_owned() });
            }
        }
        for port in ports {
            self.held.entry((port.protocol, port.host_port)).or_default().push((*port, pod_id.to_owned()));
        }
        Ok(())
    }

    /// The pod that holds a port, or one that overlaps it.
    pub(super) fn holder(&self, port: &PortMapping) -> Option<&str> {
        self.held
            .get(&(port.protocol, port.host_port))?
            .iter()
            .find(|(held, _)| held.overlaps(port))
            .map(|(_, pod_id)| pod_id.as_str())
    }

    /// Takes everything back from a pod.
    pub(super) fn give_back(&mut self, pod_id: &str, ports: &[PortMapping]) {
        for port in ports {
            let key = (port.protocol, port.host_port);
            if let Some(held) = self.held.get_mut(&key) {
                held.retain(|(_, holder)| holder != pod_id);
                if held.is_empty() {
                    self.held.remove(&key);
                }
            }
        }
    }
}

/// Finds out, by binding for a moment, whether a process of the host has a port.
///
/// Rewriting would take the port's connections from that process without a word.
pub(super) fn check_unbound(ports: &[PortMapping], families: Families) -> Result<(), Error> {
    for port in ports {
        for address in port.bind_addresses(families) {
            try_bind(port.protocol, address).map_err(|source| Error::PortBusy { port: *port, source })?;
        }
    }
    Ok(())
}

fn try_bind(protocol: Protocol, address: SocketAddr) -> io::Result<()> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let socket = match socket_with(family, kind, SocketFlags::CLOEXEC, Some(number)) {
        Ok(socket) => socket,
        // Without the protocol in the kernel nobody can have the port.
        Err(Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::SOCKTNOSUPPORT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol != Protocol::Udp {
        // Connections that linger after a server has gone do not hold the port.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    if protocol != Protocol::Udp {
        // With SO_REUSEADDR a listener is only met when listening oneself.
        listen(&socket, 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    const BOTH: Families = Families { v4: true, v6: true };

    fn port(host_ip: Option<&str>, host_port: u16) -> PortMapping {
        PortMapping {
            protocol: Protocol::Tcp,
            host_ip: host_ip.map(|text| text.parse().unwrap()),
            host_port,
            container_port: 80,
        }
    }

    #[test]
    fn mappings_overlap_as_bound_sockets_do() {
        let cases = [
            (None, Some("127.0.0.1"), true),
            (None, None, true),
            (Some("0.0.0.0"), Some("127.0.0.1"), true),
            (Some("0.0.0.0"), Some("::"), false),
            (Some("::"), Some("127.0.0.1"), false),
            (Some("127.0.0.1"), Some("127.0.0.2"), false),
            (Some("127.0.0.1"), Some("127.0.0.1"), true),
        ];
        for (first, second, clash) in cases {
            let mut table = PortTable::default();
            table.take("a", &[port(first, 80)]).unwrap();
            let taken = table.take("b", &[port(second, 80)]);
            assert_eq!(taken.is_err(), clash, "{first:?} and {second:?}");
            assert!(table.take("c", &[port(second, 81)]).is_ok());
        }
    }

    #[test]
    fn clash_takes_none_of_the_ports_and_names_the_holder() {
        let mut table = PortTable::default();
        table.take("a", &[port(None, 81)]).unwrap();
        let error = table.take("b", &[port(None, 80), port(None, 81)]).unwrap_err();
        assert_eq!(error.to_string(), "port 81/tcp is in use by pod a");
        table.take("c", &[port(None, 80)]).unwrap();
        table.give_back("a", &[port(None, 81)]);
        table.take("b", &[port(None, 81)]).unwrap();
    }

    #[test]
    fn unpublished_and_repeated_ports_are_left_out() {
        let asked = [port(None, 0), port(None, 80), port(None, 80)];
        assert_eq!(published(&asked, BOTH).unwrap(), [port(None, 80)]);
    }

    #[test]
    fn ports_that_cannot_work_are_refused() {
        let v4 = Families { v4: true, v6: false };
        assert!(published(&[port(Some("::"), 80)], v4).is_err());
        assert!(published(&[port(Some("::1"), 80)], BOTH).is_err());
        assert!(published(&[port(Some("224.0.0.1"), 80)], BOTH).is_err());
        let mut zero = port(None, 80);
        zero.container_port = 0;
        assert!(published(&[zero], BOTH).is_err());
    }

    #[test]
    fn port_of_a_listening_process_is_busy() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = listener.local_addr().unwrap().port();
        for host_ip in [None, Some("127.0.0.1"), Some("0.0.0.0")] {
            let error = check_unbound(&[port(host_ip, number)], BOTH).unwrap_err();
            assert!(matches!(error, Error::PortBusy { .. }), "{error}");
        }
        check_unbound(&[port(Some("127.0.0.2"), number)], BOTH).unwrap();
        drop(listener);
        check_unbound(&[port(None, number)], BOTH).unwrap();

        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp = PortMapping { protocol: Protocol::Udp, ..port(None, socket.local_addr().unwrap().port()) };
        assert!(check_unbound(&[udp], BOTH).is_err());
    }
}
