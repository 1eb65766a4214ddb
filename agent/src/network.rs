//! The pod network that is built in: a bridge, a pair of interfaces for each pod,
//! addresses, masquerading and published ports, over IPv4 and IPv6. Beside it
//! stands [`cni`], for nodes whose cluster brings a network of its own.
//!
//! ```text
//!   pod a          pod b                host
//!   eth0           eth0         nftables table BRIDGE
//!    │              │            masquerade, port maps
//!   spXXXXXXXXXXX  spXXXXXXXXXXX         │
//!    └──────────────┴────── BRIDGE ──────┴── the host's own interfaces
//!                        gateway address
//! ```
//!
//! Everything of the bridge goes over netlink, in this process; nothing is executed. An attach
//! is undone as a whole when a part of it fails, and a detach may be repeated.
//! Nothing is written to disk: what is in use is in memory, an `Attachment` is
//! kept by the caller, and after a restart `restore` puts both together. Networks
//! with different bridges and subnets do not touch each other.
//!
//! Calls wait for the kernel, so asynchronous callers make them on a thread that
//! may block, of the same network namespace as `open`. For one pod, calls come
//! one after the other.

mod address;
mod bridge;
pub mod cni;
mod conntrack;
mod error;
mod link;
mod multicast;
mod namespace;
mod netfilter;
mod netlink;
mod port;
mod ruleset;
mod state;
mod sysctl;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::{debug, info, warn};

use address::{Pool, gateway, link_address};
use bridge::Bridge;
use error::about;
use link::{Link, POD_INTERFACE, Pair};
use netfilter::Family;
use netlink::{Reply, Socket};
use port::Families;
use ruleset::{Element, Ruleset};
use state::State;

pub use error::{Error, Kind};
pub use link::InterfaceStats;
pub use port::{PortMapping, Protocol};

/// How long an attach waits for the bridge to pass packets of the new port.
const CARRIER_LIMIT: Duration = Duration::from_secs(2);

/// How long the kernel is given to take an interface away with the namespace of a pod that has ended. It does so for
/// many at once, within 20 to 100 ms.
pub const NAMESPACE_END: Duration = Duration::from_millis(200);

/// What a network is made of.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the bridge, and of its nftables table.
    pub bridge: String,
    /// Where pods get their addresses from: at most one subnet of each family.
    pub subnets: Vec<IpNet>,
    /// Size of the largest packet; by default that of the interface with the
    /// default route.
    pub mtu: Option<u32>,
}

/// A pod that is to be attached.
#[derive(Debug)]
pub struct AttachRequest<'a> {
    /// The pod.
    pub pod_id: &'a str,
    /// Its network namespace.
    pub netns: &'a OwnedFd,
    /// The ports to publish.
    pub ports: &'a [PortMapping],
    /// Where the procfs is by which kernel parameters of the namespace are set.
    pub procfs: &'a Path,
}

/// How a pod is attached: all that is needed to detach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The host's end of the pod's pair of interfaces.
    pub host_interface: String,
    /// The pod's addresses, IPv4 first.
    pub addresses: Vec<IpNet>,
    /// The link-layer address of the pod's end.
    pub mac: String,
    /// The published ports.
    pub ports: Vec<PortMapping>,
    /// The plugins that connect the pod; `None`: the built-in bridge does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugins: Option<cni::Binding>,
}

/// A bridge with the pods on it.
pub struct Network {
    /// As it was opened; the subnets may be others since.
    config: Config,
    ruleset: Ruleset,
    /// Is locked before `state` where both are.
    bridge: Mutex<Bridge>,
    state: Mutex<State>,
    /// Idle sockets for requests about interfaces. There are several because
    /// the removal of an interface waits long for the kernel, without a lock.
    route: Mutex<Vec<Socket>>,
    netfilter: Mutex<Socket>,
}

/// A lock is held over no code that leaves things half done when it panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Network {
    /// Brings the network up in the calling thread's namespace. One that exists
    /// is adopted, with its pods and ports: call `restore` next.
    pub fn open(config: Config) -> Result<Network, Error> {
        bridge::check_name(&config.bridge)?;
        let pools = bridge::pools(&config)?;
        let what = || about(format!("network {}", config.bridge));
        let mut route = Socket::route().map_err(what())?;
        let mut netfilter = Socket::netfilter().map_err(what())?;
        let ruleset = Ruleset::new(&config.bridge);
        let bridge = bring_up(&mut route, &mut netfilter, &ruleset, &config, &pools)?;
        Ok(Network {
            ruleset,
            bridge: Mutex::new(bridge),
            state: Mutex::new(State::new(pools)),
            route: Mutex::new(vec![route]),
            netfilter: Mutex::new(netfilter),
            config,
        })
    }

    /// Where pods get their addresses from, IPv4 first.
    pub fn subnets(&self) -> Vec<IpNet> {
        lock(&self.state).pools().iter().map(Pool::subnet).collect()
    }

    /// Has pods get their addresses from other subnets from now on. Pods that
    /// have theirs keep them, also while they come or go; on failure all is as
    /// before.
    pub fn move_to(&self, subnets: Vec<IpNet>) -> Result<(), Error> {
        let config = Config { subnets, ..self.config.clone() };
        let pools = bridge::pools(&config)?;
        let mut bridge = lock(&self.bridge);
        let mut route = Socket::route().map_err(about(format!("network {}", config.bridge)))?;
        let brought = bring_up(&mut route, &mut lock(&self.netfilter), &self.ruleset, &config, &pools);
        let moved = match brought {
            Ok(moved) => moved,
            Err(failure) => return Err(self.stay(&mut bridge, &pools, failure)),
        };
        *bridge = moved;
        lock(&self.state).move_to(pools);
        drop(bridge);
        self.follow_pods();
        Ok(())
    }

    /// After a move that failed: as much of it as is there goes, and the failure is given back.
    fn stay(&self, bridge: &mut Bridge, pools: &[Pool], failure: Error) -> Error {
        bridge.subnets.extend(pools.iter().map(Pool::subnet));
        match self.serve_subnets(bridge) {
            Ok(()) => failure,
            Err(undo) => Error::Undo { failure: failure.into(), undo: undo.into() },
        }
    }

    /// Gives a pod its interface, addresses, routes and published ports; on
    /// failure nothing of it stays.
    pub fn attach(&self, request: &AttachRequest<'_>) -> Result<Attachment, Error> {
        let families = self.families();
        let ports = port::published(request.ports, families)?;
        let attachment = self.reserve(request.pod_id, ports)?;
        let connected = port::check_unbound(&attachment.ports, families)
            .and_then(|()| self.connect(request, &attachment));
        match connected {
            Ok(()) => {
                debug!(pod.id = %request.pod_id, interface = %attachment.host_interface, "pod attached");
                Ok(attachment)
            }
            Err(failure) => match self.detach(request.pod_id, &attachment) {
                Ok(()) => Err(failure),
                Err(undo) => Err(Error::Undo { failure: failure.into(), undo: undo.into() }),
            },
        }
    }

    /// Takes away what `attach` gave; what is gone already is no error. What
    /// could not be taken away stays reserved, and the call may be repeated.
    pub fn detach(&self, pod_id: &str, attachment: &Attachment) -> Result<(), Error> {
        let mut errors = Vec::new();
        // After a restart without `restore` nobody holds the ports; those that
        // another pod holds by now are not touched.
        let ports = lock(&self.state).own_or_free(pod_id, &attachment.ports);
        errors.extend(self.withdraw(&ports, &attachment.addresses).err());
        if is_pod_interface(&attachment.host_interface) {
            errors.extend(self.delete_interface(&attachment.host_interface).err());
        }
        if errors.is_empty() {
            lock(&self.state).release(pod_id);
            self.follow_pods();
        }
        Error::several(errors)
    }

    /// As `detach`, of a pod whose namespace is ending with its last process: its
    /// ports are free at once, and its interface goes with the namespace. Who
    /// deletes an interface waits 20 ms and more for the kernel (`rcu_barrier`).
    /// `settle` gives back the addresses, `NAMESPACE_END` later.
    pub fn depart(&self, pod_id: &str, attachment: &Attachment) -> Result<(), Error> {
        let ports = lock(&self.state).own_or_free(pod_id, &attachment.ports);
        self.withdraw(&ports, &attachment.addresses)?;
        lock(&self.state).depart(pod_id, attachment);
        Ok(())
    }

    /// Gives back the addresses of pods that departed at least `age` ago. An
    /// interface that is still there, as somebody holds its namespace, is deleted.
    /// What fails stays reserved, and the call may be repeated.
    pub fn settle(&self, age: Duration) -> Result<(), Error> {
        let departed = lock(&self.state).departed(age);
        let settled = departed.iter().map(|(pod_id, attachment)| {
            // Most are gone. Where the kernel can't tell, deleting shows it.
            let interface = &attachment.host_interface;
            if is_pod_interface(interface) && link::exists(interface).unwrap_or(true) {
                self.delete_interface(interface)?;
            }
            lock(&self.state).settle(pod_id);
            Ok(())
        });
        let errors = settled.filter_map(Result::err).collect();
        self.follow_pods();
        Error::several(errors)
    }

    /// After a restart of the agent: the addresses and ports of these pods are
    /// in use; interfaces on our bridge and ports of any other pod are removed.
    pub fn restore(&self, pods: &[(String, Attachment)]) -> Result<(), Error> {
        let elements: Vec<_> = {
            let mut state = lock(&self.state);
            for (pod_id, attachment) in pods {
                state.adopt(pod_id, attachment);
            }
            state.attachments().flat_map(elements).collect()
        };
        let ours: HashSet<&str> =
            pods.iter().map(|(_, attachment)| attachment.host_interface.as_str()).collect();
        let mut errors = Vec::new();
        let replaced = lock(&self.netfilter).transact(&self.ruleset.replace(&elements));
        if let Err(source) = replaced {
            errors.push(about(format!("ports of network {}", self.config.bridge))(source));
        }
        match self.pod_interfaces() {
            Ok(interfaces) => {
                let strangers = interfaces.iter().filter(|name| !ours.contains(name.as_str()));
                for interface in strangers {
                    info!(%interface, "removing interface of a pod that is gone");
                    errors.extend(self.delete_interface(interface).err());
                }
            }
            Err(error) => errors.push(error),
        }
        self.follow_pods();
        Error::several(errors)
    }

    /// For a pod without a network: only its loopback interface is set up.
    pub fn loopback(netns: &OwnedFd) -> Result<(), Error> {
        namespace::enter(netns.as_fd(), || Socket::route()?.transact(&[link::set_up("lo")]))?
            .map_err(about("loopback interface of the pod"))?;
        Ok(())
    }

    /// Connects to a port on the loopback of a namespace, IPv4 before IPv6.
    pub fn dial(netns: &OwnedFd, port: u16, limit: Duration) -> io::Result<TcpStream> {
        let connect = || {
            let four = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), limit);
            four.or_else(|error| {
                TcpStream::connect_timeout(&(Ipv6Addr::LOCALHOST, port).into(), limit).map_err(|_| error)
            })
        };
        namespace::enter(netns.as_fd(), connect).map_err(io::Error::other)?
    }

    /// Traffic of the interfaces in a namespace.
    pub fn interfaces(netns: &OwnedFd) -> Result<Vec<InterfaceStats>, Error> {
        let links = namespace::enter(netns.as_fd(), || link::list(&mut Socket::route()?))?
            .map_err(about("interfaces of the pod"))?;
        Ok(links.into_iter().map(|link| link.stats).collect())
    }

    /// Traffic of every pod on the bridge, by its host interface and as the pod
    /// sees it, in one request: for many pods far cheaper than `interfaces`.
    pub fn traffic(&self) -> Result<HashMap<String, InterfaceStats>, Error> {
        let links = self.ports_of_bridge()?;
        Ok(links.into_iter().map(|link| (link.name, link.stats.seen_from_peer(POD_INTERFACE))).collect())
    }

    /// Removes the bridge, the interfaces of pods on it and the nftables table.
    pub fn destroy(&self) -> Result<(), Error> {
        let mut errors = Vec::new();
        match self.pod_interfaces() {
            Ok(interfaces) => {
                let deleted = interfaces.iter().map(|name| self.delete_interface(name));
                errors.extend(deleted.filter_map(Result::err));
            }
            Err(error) => errors.push(error),
        }
        errors.extend(self.delete_interface(&self.config.bridge).err());
        for table in [self.ruleset.remove(), multicast::remove(&self.config.bridge)] {
            match lock(&self.netfilter).transact(&table) {
                // Of a kernel that has no such tables.
                Err(source) if !matches!(source.errno(), Some(Errno::NOENT | Errno::OPNOTSUPP)) => {
                    errors.push(about(format!("network {}", self.config.bridge))(source));
                }
                _ => {}
            }
        }
        Error::several(errors)
    }

    /// Which families pods have addresses of.
    fn families(&self) -> Families {
        let subnets = self.subnets();
        Families { v4: subnets.iter().any(is_v4), v6: !subnets.iter().all(is_v4) }
    }

    fn reserve(&self, pod_id: &str, ports: Vec<PortMapping>) -> Result<Attachment, Error> {
        let (host_interface, _) = names(&self.config.bridge, pod_id);
        let reserved = lock(&self.state).reserve(pod_id, host_interface.clone(), ports.clone());
        if reserved.is_ok() || lock(&self.state).departed(Duration::ZERO).is_empty() {
            return reserved;
        }
        // What those hold who have just gone may be what is missing.
        self.settle(Duration::ZERO)?;
        lock(&self.state).reserve(pod_id, host_interface, ports)
    }

    /// Has bridge and rules serve the subnets that pods get addresses from or
    /// have theirs from, and no other.
    fn serve_subnets(&self, bridge: &mut Bridge) -> Result<(), Error> {
        let needed = lock(&self.state).subnets();
        if bridge.subnets != needed {
            let what = || about(format!("network {}", self.config.bridge));
            lock(&self.netfilter).transact(&self.ruleset.install(&needed)).map_err(what())?;
            self.with_route(|socket| bridge::serve(socket, bridge, &needed)).map_err(what())?;
            bridge.subnets = needed;
        }
        Ok(())
    }

    /// After pods were adopted, or one has gone, which may have been the last of
    /// a former subnet. It is tried again when the next one goes.
    fn follow_pods(&self) {
        if let Err(error) = self.serve_subnets(&mut lock(&self.bridge)) {
            warn!(error = crate::error::chain(&error), "not just the subnets of pods are served");
        }
    }

    /// The kernel's part of an attach.
    fn connect(&self, request: &AttachRequest<'_>, attachment: &Attachment) -> Result<(), Error> {
        let mut inside = self.prepare_namespace(request, attachment)?;
        self.create_pair(request, attachment)?;
        self.configure_pod(&mut inside, request.pod_id, attachment)?;
        self.publish(request.pod_id, attachment)?;
        let waited_for = [attachment.host_interface.as_str(), &self.config.bridge];
        let operational = self
            .with_route(|socket| link::wait_operational(socket, &waited_for, CARRIER_LIMIT))
            .map_err(about(format!("interface of pod {}", request.pod_id)))?;
        if !operational {
            warn!(pod.id = %request.pod_id, "bridge port of the pod is slow to come up");
        }
        Ok(())
    }

    /// Opens a socket in the pod's namespace, and sets what its interfaces start
    /// out with: no addresses or routes by advertisement (any pod could send
    /// one), no wait for addresses to prove unique.
    fn prepare_namespace(
        &self,
        request: &AttachRequest<'_>,
        attachment: &Attachment,
    ) -> Result<Socket, Error> {
        let (has_ipv6, ipv6) = (sysctl::has_ipv6(), !attachment.addresses.iter().all(is_v4));
        namespace::enter(request.netns.as_fd(), || {
            let set = |name: &str| sysctl::set_by(request.procfs, &format!("ipv6/conf/default/{name}"), "0");
            if has_ipv6 {
                set("accept_ra")?;
                set("accept_dad")?;
            }
            if ipv6 {
                set("disable_ipv6")?;
            }
            Socket::route().map_err(about(format!("pod {}", request.pod_id)))
        })?
    }

    fn create_pair(&self, request: &AttachRequest<'_>, attachment: &Attachment) -> Result<(), Error> {
        let (host_name, host_address) = names(&self.config.bridge, request.pod_id);
        let Bridge { index, mtu, .. } = *lock(&self.bridge);
        let messages = link::create_pair(&Pair {
            host_name: &host_name,
            host_address,
            bridge: index,
            pod: request.netns.as_fd(),
            pod_address: link_address(&attachment.addresses),
            mtu,
            ipv6: sysctl::has_ipv6(),
        });
        self.with_route(|socket| match socket.transact(&messages) {
            // The name is this pod's alone, so this is what an attach that was
            // cut off left behind; or the namespace has such an interface.
            Err(error) if error.errno() == Some(Errno::EXIST) => {
                link::delete(socket, &host_name)?;
                socket.transact(&messages)
            }
            result => result,
        })
        .map_err(about(format!("interface {host_name} of pod {}", request.pod_id)))?;
        Ok(())
    }

    fn configure_pod(&self, inside: &mut Socket, pod_id: &str, attachment: &Attachment) -> Result<(), Error> {
        let what = || about(format!("interface {POD_INTERFACE} of pod {pod_id}"));
        let index = link::find(inside, POD_INTERFACE).map_err(what())?.map_or(0, |link| link.index);
        let mut messages = vec![link::set_up("lo"), link::set_up(POD_INTERFACE)];
        let add = |net: &IpNet| link::add_address(index, *net);
        messages.extend(attachment.addresses.iter().map(add));
        // Those of its own subnets, which new pods may have others than.
        let route = |net: &IpNet| link::add_default_route(index, gateway(*net).addr());
        messages.extend(attachment.addresses.iter().map(route));
        inside.transact(&messages).map_err(what())?;
        Ok(())
    }

    fn publish(&self, pod_id: &str, attachment: &Attachment) -> Result<(), Error> {
        if attachment.ports.is_empty() {
            return Ok(());
        }
        let request = self.ruleset.publish(&elements(attachment));
        lock(&self.netfilter).transact(&request).map_err(about(format!("ports of pod {pod_id}")))?;
        // A client that keeps sending from one port is one connection, which
        // goes on as it began: to the host, when it began before the pod.
        let stale = attachment.ports.iter().filter(|port| port.protocol != Protocol::Tcp).flat_map(|port| {
            let (protocol, port) = (port.protocol.number(), port.host_port);
            [Family::V4, Family::V6].map(|family| conntrack::Filter::ToPort { family, protocol, port })
        });
        self.forget(stale);
        Ok(())
    }

    fn withdraw(&self, ports: &[PortMapping], addresses: &[IpNet]) -> Result<(), Error> {
        let elements: Vec<_> = ports.iter().flat_map(|port| Element::of(port, addresses)).collect();
        if elements.is_empty() {
            return Ok(());
        }
        let result = self.withdraw_elements(&elements);
        self.forget(stale_answers(ports, addresses));
        result.map_err(about(format!("ports of network {}", self.config.bridge)))
    }

    fn withdraw_elements(&self, elements: &[Element]) -> Result<(), netlink::Error> {
        let gone = |error: &netlink::Error| error.errno() == Some(Errno::NOENT);
        let mut netfilter = lock(&self.netfilter);
        match netfilter.transact(&self.ruleset.withdraw(elements)) {
            Err(error) if gone(&error) => {}
            result => return result.map(drop),
        }
        // Some or all are gone already, and so nothing was withdrawn. Which ones
        // the kernel can't be asked: what it lists of a map that grows has holes.
        for element in elements {
            match netfilter.transact(&self.ruleset.withdraw(std::slice::from_ref(element))) {
                Err(error) if !gone(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Has the kernel forget tracked connections. Without it some datagrams go
    /// astray until the connection ages, so failing is not worth a failure.
    fn forget(&self, filters: impl IntoIterator<Item = conntrack::Filter>) {
        for filter in filters {
            let listed = lock(&self.netfilter).dump(&conntrack::list(&filter));
            if let Err(error) = listed.and_then(|listed| self.forget_listed(&listed, &filter)) {
                debug!(%error, "tracked connections stay");
            }
        }
    }

    fn forget_listed(&self, listed: &[Reply], filter: &conntrack::Filter) -> Result<(), netlink::Error> {
        for request in listed.iter().filter_map(|reply| conntrack::forget(reply, filter)) {
            match lock(&self.netfilter).transact(&[request]) {
                Err(error) if error.errno() != Some(Errno::NOENT) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn delete_interface(&self, interface: &str) -> Result<(), Error> {
        self.with_route(|socket| link::delete(socket, interface))
            .map_err(about(format!("interface {interface}")))
    }

    /// Does `work` with a socket that nobody else uses meanwhile.
    fn with_route<T>(
        &self,
        work: impl FnOnce(&mut Socket) -> Result<T, netlink::Error>,
    ) -> Result<T, netlink::Error> {
        const IDLE: usize = 8;
        let idle = lock(&self.route).pop();
        let mut socket = match idle {
            Some(socket) => socket,
            None => Socket::route()?,
        };
        let result = work(&mut socket);
        let mut idle = lock(&self.route);
        if idle.len() < IDLE {
            idle.push(socket);
        }
        result
    }

    fn ports_of_bridge(&self) -> Result<Vec<Link>, Error> {
        let index = lock(&self.bridge).index;
        let mut links = self
            .with_route(|socket| link::list_ports(socket, index))
            .map_err(about(format!("bridge {}", self.config.bridge)))?;
        links.retain(|link| link.kind == "veth" && is_pod_interface(&link.name));
        Ok(links)
    }

    /// The host's ends of pods on our bridge.
    fn pod_interfaces(&self) -> Result<Vec<String>, Error> {
        let index = lock(&self.bridge).index;
        let links = self.with_route(link::list).map_err(about(format!("bridge {}", self.config.bridge)))?;
        Ok(links
            .into_iter()
            .filter(|link| link.master == Some(index) && link.kind == "veth")
            .map(|link| link.name)
            .filter(|name| is_pod_interface(name))
            .collect())
    }
}

/// Brings up the bridge with its rules, for pods of these pools and of the subnets that it has served before.
fn bring_up(
    route: &mut Socket,
    netfilter: &mut Socket,
    ruleset: &Ruleset,
    config: &Config,
    pools: &[Pool],
) -> Result<Bridge, Error> {
    let bridge = bridge::open(route, config, pools)?;
    let installed = netfilter.transact(&ruleset.install(&bridge.subnets));
    match installed.map_err(about(format!("network {}", config.bridge))) {
        Err(failure) if bridge.created => return Err(bridge::undo(route, &config.bridge, failure)),
        result => result?,
    };
    if !bridge.subnets.iter().all(is_v4)
        && let Err(error) = netfilter.transact(&multicast::install(&config.bridge))
    {
        debug!(%error, "pods hear of each other's multicast groups");
    }
    let subnets: Vec<_> = pools.iter().map(Pool::subnet).collect();
    info!(bridge = %config.bridge, ?subnets, mtu = bridge.mtu, "pod network is up");
    Ok(bridge)
}

fn is_v4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}

/// The elements of the port maps that publish a pod's ports.
fn elements(attachment: &Attachment) -> Vec<Element> {
    attachment.ports.iter().flat_map(|port| Element::of(port, &attachment.addresses)).collect()
}

/// The connections that a pod answers on published ports without connections of
/// their own.
fn stale_answers(ports: &[PortMapping], addresses: &[IpNet]) -> Vec<conntrack::Filter> {
    let protocols: HashSet<_> =
        ports.iter().map(|port| port.protocol).filter(|protocol| *protocol != Protocol::Tcp).collect();
    let of_address = |address| {
        let answered =
            |protocol: &Protocol| conntrack::Filter::AnsweredBy { address, protocol: protocol.number() };
        protocols.iter().map(answered).collect::<Vec<_>>()
    };
    addresses.iter().map(IpNet::addr).flat_map(of_address).collect()
}

/// Name and link-layer address of the host's end for a pod: always the same for
/// the same pod on the same bridge.
fn names(bridge: &str, pod_id: &str) -> (String, [u8; 6]) {
    let hash = Sha256::new().chain_update(bridge).chain_update([0]).chain_update(pod_id).finalize();
    let name = format!("sp{}", &hex::encode(&hash[..6])[..11]);
    let address = [0x72, 0x71, hash[6], hash[7], hash[8], hash[9]];
    (name, address)
}

fn is_pod_interface(name: &str) -> bool {
    name.strip_prefix("sp")
        .is_some_and(|rest| rest.len() == 11 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}
