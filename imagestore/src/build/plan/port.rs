//! Ports of EXPOSE: `80`, `53/udp`, `8000-8010`, and the mappings that Docker reads and ignores the half of.

use std::net::IpAddr;

/// What one word of EXPOSE means.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exposed {
    /// `80/tcp`, one for each port.
    pub(super) ports: Vec<String>,
    /// An address or a port of the host was in it.
    pub(super) mapped: bool,
    /// The protocol was not in lower case.
    pub(super) cased: bool,
}

/// Reads `[ip:][hostPort:]port[-port][/protocol]`. The error says what is wrong.
pub(super) fn expose(word: &str) -> Result<Exposed, String> {
    let (rest, port) = match word.rsplit_once(':') {
        Some((rest, port)) => (Some(rest), port),
        None => (None, word),
    };
    let (range, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let lower = if protocol.is_empty() { "tcp".to_owned() } else { protocol.to_ascii_lowercase() };
    if !matches!(lower.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("{word:?} has protocol {protocol:?}; there are tcp, udp and sctp"));
    }
    let wrong = || format!("{word:?} is no port; write 80, 53/udp or 8000-8010");
    let (first, last) = ports(range).ok_or_else(wrong)?;
    if let Some(rest) = rest {
        let (address, host) = match rest.rsplit_once(':') {
            Some((address, host)) if !rest.ends_with(']') => (address, host),
            _ => ("", rest),
        };
        let address = address.trim_start_matches('[').trim_end_matches(']');
        let host = ports(host).map(|(first, last)| last - first);
        let fits = host.is_none_or(|span| span == last - first || first == last);
        let known = address.is_empty() || address.parse::<IpAddr>().is_ok();
        if !known || !fits || (host.is_none() && !rest.ends_with(':')) {
            return Err(wrong());
        }
    }
    Ok(Exposed {
        ports: (first..=last).map(|port| format!("{port}/{lower}")).collect(),
        mapped: rest.is_some(),
        cased: protocol != lower && !protocol.is_empty(),
    })
}

fn ports(range: &str) -> Option<(u16, u16)> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| if text.starts_with('+') { None } else { text.parse::<u16>().ok() };
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_gives_ports_with_their_protocol() {
        for (word, ports) in [
            ("80", vec!["80/tcp"]),
            ("53/udp", vec!["53/udp"]),
            ("53/UDP", vec!["53/udp"]),
            ("7000-7002/sctp", vec!["7000/sctp", "7001/sctp", "7002/sctp"]),
            ("8080:80", vec!["80/tcp"]),
            ("127.0.0.1:8080:80/tcp", vec!["80/tcp"]),
            ("127.0.0.1::80", vec!["80/tcp"]),
            ("[::1]:8080:80", vec!["80/tcp"]),
        ] {
            assert_eq!(expose(word).unwrap().ports, ports, "{word}");
        }
        assert!(expose("8080:80").unwrap().mapped && expose("53/UDP").unwrap().cased);
        for word in ["", "http", "70000", "80/http", "90-80", "-1", "80-", "a:80", "1.2.3:80:80", "1-2:1-3"] {
            assert!(expose(word).is_err(), "{word}");
        }
    }
}
