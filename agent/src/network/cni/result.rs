//! What plugins answer: the pod's addresses, in the forms of 0.1.0 to 1.1.0 (CNI 1.1, section "ADD Success").

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::{INTERFACE, error::Error};

/// How a pod is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The pod's addresses, IPv4 first.
    pub addresses: Vec<IpNet>,
    /// The link-layer address of the pod's interface; empty: not told.
    pub mac: String,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Address>,
    ip4: Option<Old>,
    ip6: Option<Old>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Address {
    interface: Option<usize>,
    address: IpNet,
}

/// Before 0.3.0 there was one address of each family at most.
#[derive(Deserialize)]
struct Old {
    ip: IpNet,
}

pub(super) fn read(result: Option<&Value>, network: &str) -> Result<Outcome, Error> {
    let malformed = |problem: String| Error::Malformed { plugin: network.to_owned(), problem };
    let result = result.ok_or_else(|| malformed("no plugin told a result".to_owned()))?;
    let answer = Answer::deserialize(result).map_err(|error| malformed(error.to_string()))?;
    let in_pod = |index: usize| answer.interfaces.get(index).is_none_or(|found| !found.sandbox.is_empty());
    let of_pod = answer.ips.iter().filter(|ip| ip.interface.is_none_or(in_pod)).map(|ip| ip.address);
    let mut addresses: Vec<IpNet> =
        of_pod.chain([answer.ip4, answer.ip6].into_iter().flatten().map(|old| old.ip)).collect();
    // Stable, so the plugins' order counts within a family.
    addresses.sort_by_key(|address| address.addr().is_ipv6());
    if addresses.is_empty() {
        return Err(malformed("the pod got no address".to_owned()));
    }
    let own =
        answer.interfaces.into_iter().find(|found| !found.sandbox.is_empty() && found.name == INTERFACE);
    Ok(Outcome { addresses, mac: own.map(|found| found.mac).unwrap_or_default() })
}
