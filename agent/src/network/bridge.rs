//! The bridge that the pods of one agent are on, and the host's part of it.
//!
//! Opening it twice gives the same bridge: one that exists is adopted with the
//! pods on it. A subnet that the host uses elsewhere is refused before anything
//! is changed.

use std::collections::BTreeSet;

use ipnet::IpNet;
use tracing::warn;

use super::address::{Pool, gateway, link_address};
use super::error::{Error, about};
use super::link::{self, Link, Reach};
use super::netlink::{self, Message, Socket};
use super::{Config, sysctl};

/// The least that IPv6 works with.
const MINIMUM_MTU6: u32 = 1280;
const MINIMUM_MTU: u32 = 68;
const MAXIMUM_MTU: u32 = 65535;

/// A bridge that is up.
#[derive(Debug, Clone)]
pub(super) struct Bridge {
    pub(super) index: u32,
    pub(super) mtu: u32,
    /// It was not there before.
    pub(super) created: bool,
    /// Where it has a gateway's address: the subnets of the pools, and those from before them.
    pub(super) subnets: BTreeSet<IpNet>,
}

/// A name that the kernel and nftables both take.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    let refuse = |reason| Err(Error::InvalidName { name: name.to_owned(), reason });
    if name.is_empty() || name.len() > 15 {
        return refuse("not 1 to 15 characters long");
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.chars().all(allowed) || name.starts_with(['.', '-']) {
        return refuse("letters, digits, '-', '_' and '.' are allowed");
    }
    Ok(())
}

/// Pools of the subnets that can be used here, IPv4 first.
pub(super) fn pools(config: &Config) -> Result<Vec<Pool>, Error> {
    let mut pools: Vec<Pool> = Vec::new();
    for &subnet in &config.subnets {
        let refuse = |reason| Err(Error::InvalidSubnet { subnet, reason });
        if matches!(subnet, IpNet::V6(_)) && !sysctl::has_ipv6() {
            warn!(%subnet, "the kernel has no IPv6: subnet left out");
            continue;
        }
        let network = subnet.network();
        if network.is_loopback() || network.is_multicast() || network.is_unspecified() {
            return refuse("not for hosts");
        }
        let Some(pool) = Pool::new(subnet) else {
            return refuse("too small for a gateway and a pod");
        };
        let is_v4 = |net: IpNet| matches!(net, IpNet::V4(_));
        if pools.iter().any(|other| is_v4(other.subnet()) == is_v4(subnet)) {
            return refuse("a second one of its family");
        }
        pools.push(pool);
    }
    pools.sort_by_key(|pool| matches!(pool.subnet(), IpNet::V6(_)));
    Ok(pools)
}

/// Brings the bridge up with the gateways' addresses, and lets the host forward.
pub(super) fn open(socket: &mut Socket, config: &Config, pools: &[Pool]) -> Result<Bridge, Error> {
    let name = config.bridge.as_str();
    let what = || about(format!("bridge {name}"));
    check_mtu(config, pools)?;
    let existing = link::find(socket, name).map_err(what())?;
    if existing.as_ref().is_some_and(|link| link.kind != "bridge") {
        return Err(Error::NotABridge { name: name.to_owned() });
    }
    let links = link::list(socket).map_err(what())?;
    let routes = link::list_routes(socket).map_err(what())?;
    let addresses = link::list_addresses(socket).map_err(what())?;
    let own_index = existing.as_ref().map(|link| link.index);
    for pool in pools {
        if let Some(clash) = clash(pool.subnet(), own_index, &addresses, &routes) {
            return Err(Error::SubnetInUse {
                subnet: pool.subnet(),
                existing: clash.net,
                interface: name_of(&links, clash.index),
            });
        }
    }
    let created = existing.is_none();
    let link = match existing {
        Some(link) => link,
        None => create(socket, config, pools)?,
    };
    let mtu = config.mtu.or_else(|| default_mtu(&routes, &links)).unwrap_or(link.mtu);
    match configure(socket, config, &link, mtu, pools) {
        Ok(()) => Ok(Bridge {
            index: link.index,
            mtu,
            created,
            subnets: pools.iter().map(Pool::subnet).chain(served(link.index, &addresses)).collect(),
        }),
        Err(failure) if created => Err(undo(socket, name, failure)),
        Err(failure) => Err(failure),
    }
}

/// Leaves the bridge a gateway's address in these subnets, and in no other of those it has served.
pub(super) fn serve(
    socket: &mut Socket,
    bridge: &Bridge,
    subnets: &BTreeSet<IpNet>,
) -> Result<(), netlink::Error> {
    for former in bridge.subnets.difference(subnets) {
        link::delete_address(socket, bridge.index, gateway(*former))?;
    }
    // One that two subnets of different size had in common went with the first.
    let add = |subnet: &IpNet| link::add_address(bridge.index, gateway(*subnet));
    socket.transact(&subnets.iter().map(add).collect::<Vec<_>>()).map(drop)
}

/// Removes a bridge that was made for nothing, and gives the failure back.
pub(super) fn undo(socket: &mut Socket, name: &str, failure: Error) -> Error {
    match link::delete(socket, name).map_err(about(format!("bridge {name}"))) {
        Ok(()) => failure,
        Err(undo) => Error::Undo { failure: failure.into(), undo: undo.into() },
    }
}

fn check_mtu(config: &Config, pools: &[Pool]) -> Result<(), Error> {
    let ipv6 = pools.iter().any(|pool| matches!(pool.subnet(), IpNet::V6(_)));
    let minimum = if ipv6 { MINIMUM_MTU6 } else { MINIMUM_MTU };
    match config.mtu {
        Some(mtu) if !(minimum..=MAXIMUM_MTU).contains(&mtu) => Err(Error::InvalidMtu { mtu }),
        _ => Ok(()),
    }
}

fn create(socket: &mut Socket, config: &Config, pools: &[Pool]) -> Result<Link, Error> {
    let name = config.bridge.as_str();
    let what = || about(format!("bridge {name}"));
    let gateways: Vec<_> = pools.iter().map(Pool::gateway).collect();
    let request = link::create_bridge(name, link_address(&gateways));
    socket.transact(&[request]).map_err(what())?;
    link::find(socket, name).map_err(what())?.ok_or_else(|| Error::NotABridge { name: name.to_owned() })
}

fn configure(
    socket: &mut Socket,
    config: &Config,
    link: &Link,
    mtu: u32,
    pools: &[Pool],
) -> Result<(), Error> {
    let name = config.bridge.as_str();
    let has = |v6| {
        let mut subnets = pools.iter().map(Pool::subnet);
        subnets.any(|subnet| matches!(subnet, IpNet::V6(_)) == v6)
    };
    if has(false) {
        // So that answers to connections from 127.0.0.1 find their way back.
        sysctl::set(&format!("ipv4/conf/{name}/route_localnet"), "1")?;
    }
    if sysctl::has_ipv6() {
        // A pod is no router, whatever it says; also where pods have no IPv6.
        sysctl::set(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        sysctl::set(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
    }
    if has(true) {
        sysctl::set(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
    }
    let mut requests: Vec<Message> = vec![link::set_up(name)];
    // Only one that was set by itself stays when the last pod goes; one given with the creation does not.
    if mtu != link.mtu {
        requests.push(link::set_mtu(name, mtu));
    }
    let add = |pool: &Pool| link::add_address(link.index, pool.gateway());
    requests.extend(pools.iter().map(add));
    socket.transact(&requests).map_err(about(format!("bridge {name}")))?;
    for pool in pools {
        sysctl::forward(matches!(pool.subnet(), IpNet::V6(_)))?;
    }
    Ok(())
}

/// The subnets that an interface has a gateway's address in.
fn served(index: u32, addresses: &[Reach]) -> impl Iterator<Item = IpNet> {
    let own = addresses.iter().filter(move |reach| reach.index == index).map(|reach| reach.net);
    // Link-local ones are the kernel's or the administrator's.
    let link_local = |net: &IpNet| matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local());
    own.filter(move |net| *net == gateway(*net) && !link_local(net)).map(|net| net.trunc())
}

/// An address of another interface in the subnet, or a route into it.
///
/// A route to a larger net is no clash: ours is the more specific one.
fn clash(subnet: IpNet, own_index: Option<u32>, addresses: &[Reach], routes: &[Reach]) -> Option<Reach> {
    let foreign = |reach: &&Reach| Some(reach.index) != own_index;
    let overlaps = |reach: &&Reach| {
        let net = reach.net.trunc();
        subnet.contains(&net) || net.contains(&subnet)
    };
    let into = |reach: &&Reach| subnet.contains(&reach.net.trunc());
    let address = addresses.iter().filter(foreign).find(overlaps);
    address.or_else(|| routes.iter().filter(foreign).find(into)).copied()
}

fn name_of(links: &[Link], index: u32) -> String {
    links
        .iter()
        .find(|link| link.index == index)
        .map_or_else(|| format!("number {index}"), |link| link.name.clone())
}

/// What fits the interface, or the smallest of those, that leads out of the host; `None`: none does.
fn default_mtu(routes: &[Reach], links: &[Link]) -> Option<u32> {
    routes
        .iter()
        .filter(|route| route.net.prefix_len() == 0)
        .filter_map(|route| links.iter().find(|link| link.index == route.index))
        .map(|link| link.mtu)
        .filter(|mtu| *mtu >= MINIMUM_MTU6)
        .min()
        .map(|mtu| mtu.min(MAXIMUM_MTU))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(net: &str, index: u32) -> Reach {
        Reach { net: net.parse().unwrap(), index }
    }

    #[test]
    fn subnets_used_elsewhere_clash() {
        let subnet: IpNet = "10.89.0.0/16".parse().unwrap();
        let of_address = |net| clash(subnet, Some(7), &[reach(net, 2)], &[]);
        assert!(of_address("10.89.3.1/24").is_some(), "inside");
        assert!(of_address("10.1.2.3/8").is_some(), "around");
        assert!(of_address("10.88.0.1/16").is_none(), "beside");
        let of_route = |net, index| clash(subnet, Some(7), &[], &[reach(net, index)]);
        assert!(of_route("10.89.1.0/24", 2).is_some(), "steals packets");
        assert!(of_route("10.0.0.0/8", 2).is_none(), "less specific");
        assert!(of_route("0.0.0.0/0", 2).is_none(), "the default route");
        assert!(of_route("10.89.0.0/16", 7).is_none(), "our own");
        assert!(clash(subnet, None, &[reach("10.89.0.1/16", 2)], &[]).is_some());
    }

    #[test]
    fn names_that_the_kernel_or_nft_cannot_take_are_refused() {
        for name in ["sampan0", "br-1.2_x", "a", "123456789012345"] {
            check_name(name).unwrap();
        }
        for name in ["", "1234567890123456", "a/b", "..", "a b", "-x", "ä"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn pools_are_one_a_family_ipv4_first() {
        let config = |subnets: &[&str]| Config {
            bridge: "x".into(),
            subnets: subnets.iter().map(|net| net.parse().unwrap()).collect(),
            mtu: None,
        };
        let both = pools(&config(&["fd00::/64", "10.0.0.0/24"])).unwrap();
        assert_eq!(both[0].subnet().to_string(), "10.0.0.0/24");
        assert_eq!(both.len(), 2);
        assert!(pools(&config(&["10.0.0.0/24", "10.1.0.0/24"])).is_err());
        assert!(pools(&config(&["127.1.0.0/16"])).is_err());
        assert!(pools(&config(&["10.0.0.0/31"])).is_err());
        assert!(pools(&config(&[])).unwrap().is_empty());
    }
}
