//! Published ports: `[IP:]HOST:CONTAINER[/PROTOCOL]` and back. Both sides may be ranges of one length.

use std::{net::IpAddr, ops::RangeInclusive};

use sampan_proto::sampan::PublishedPort;

/// What one `-p` asks for: a port, or each port of a range.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ports(pub(crate) Vec<PublishedPort>);

pub(crate) fn ports(text: &str) -> Result<Ports, String> {
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(format!("{protocol:?} is not a protocol; there are tcp, udp and sctp"));
    }
    let Some((host, container)) = numbers.rsplit_once(':') else {
        return Err(no_host_port(numbers));
    };
    let (host_ip, host) = match host.rsplit_once(':') {
        Some((address, host)) => (ip(address)?, host),
        None => (String::new(), host),
    };
    if host.is_empty() {
        return Err(no_host_port(container));
    }
    let (host, container) = (range(host)?, range(container)?);
    if host.clone().count() != container.clone().count() {
        return Err("the host's range and the container's must have the same length".to_owned());
    }
    let port = |(host_port, container_port): (u16, u16)| PublishedPort {
        host_ip: host_ip.clone(),
        host_port: host_port.into(),
        container_port: container_port.into(),
        protocol: protocol.clone(),
    };
    Ok(Ports(host.zip(container).map(port).collect()))
}

fn no_host_port(container: &str) -> String {
    format!("name the port of the host too: HOST:CONTAINER, such as 8080:{container}")
}

fn ip(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address: Result<IpAddr, _> = bare.unwrap_or(text).parse();
    match address {
        Ok(address) if address.is_ipv6() != bare.is_some() => {
            Err("an IPv6 address stands in brackets: [::1]:8080:80".to_owned())
        }
        Ok(address) => Ok(address.to_string()),
        Err(_) => Err(format!("{text:?} is not an IP address")),
    }
}

fn range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{text:?} is not a port; ports are 1 to 65535")),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if first > last { Err(format!("the range {text} ends before it starts")) } else { Ok(first..=last) }
}

/// As `ps` shows it: `0.0.0.0:8080->80/tcp, [::]:8080->80/tcp`.
pub(crate) fn publication(port: &PublishedPort) -> String {
    let PublishedPort { host_ip, host_port, container_port, protocol } = port;
    let protocol = if protocol.is_empty() { "tcp" } else { protocol };
    let hosts: &[&str] = match host_ip.as_str() {
        "" => &["0.0.0.0", "[::]"],
        address if address.contains(':') => &[&format!("[{address}]")],
        address => &[address],
    };
    let one = |host: &&str| format!("{host}:{host_port}->{container_port}/{protocol}");
    hosts.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: &str, host_port: u32, container_port: u32, protocol: &str) -> PublishedPort {
        PublishedPort { host_ip: host_ip.into(), host_port, container_port, protocol: protocol.into() }
    }

    #[test]
    fn a_port_has_an_address_and_a_protocol_if_wanted() {
        for (text, expected) in [
            ("8080:80", port("", 8080, 80, "tcp")),
            ("53:5353/UDP", port("", 53, 5353, "udp")),
            ("127.0.0.1:8080:80", port("127.0.0.1", 8080, 80, "tcp")),
            ("[::1]:8080:80/sctp", port("::1", 8080, 80, "sctp")),
        ] {
            assert_eq!(ports(text), Ok(Ports(vec![expected])), "{text}");
        }
    }

    #[test]
    fn ranges_of_one_length_are_paired() {
        assert_eq!(
            ports("8000-8001:80-81"),
            Ok(Ports(vec![port("", 8000, 80, "tcp"), port("", 8001, 81, "tcp")]))
        );
        assert!(ports("8000-8002:80-81").unwrap_err().contains("same length"));
        assert!(ports("8001-8000:80-81").unwrap_err().contains("ends before"));
    }

    #[test]
    fn what_is_no_port_says_what_would_be() {
        assert!(ports("80").unwrap_err().contains("8080:80"));
        assert!(ports("127.0.0.1::80").unwrap_err().contains("8080:80"));
        assert!(ports("0:80").unwrap_err().contains("1 to 65535"));
        assert!(ports("80:65536").unwrap_err().contains("1 to 65535"));
        assert!(ports("80:80/icmp").unwrap_err().contains("tcp, udp and sctp"));
        assert!(ports("::1:80:80").unwrap_err().contains("brackets"));
        assert!(ports("localhost:80:80").unwrap_err().contains("not an IP address"));
        assert!(ports("").is_err() && ports(":").is_err() && ports("a:b").is_err());
    }

    #[test]
    fn a_publication_on_all_addresses_names_both_families() {
        assert_eq!(publication(&port("", 8080, 80, "tcp")), "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp");
        assert_eq!(publication(&port("127.0.0.1", 53, 53, "udp")), "127.0.0.1:53->53/udp");
        assert_eq!(publication(&port("::1", 1, 2, "")), "[::1]:1->2/tcp");
    }
}
