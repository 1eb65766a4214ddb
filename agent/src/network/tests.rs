//! The network with real namespaces, bridges, rules and traffic. Needs root.

mod ports;
mod world;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;

use super::netlink::Socket;
use super::*;
use world::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Segments that TCP sent a second time in this namespace: the field `RetransSegs` of RFC 4022.
fn sent_again() -> u64 {
    let counters = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut tcp = counters.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (tcp.next().unwrap().split(' '), tcp.next().unwrap().split(' '));
    names.zip(values).find(|(name, _)| *name == "RetransSegs").unwrap().1.parse().unwrap()
}

/// Elements in the port maps of a network, as nft lists them: fewer than there
/// are while the kernel makes room in a map that has grown.
#[expect(clippy::disallowed_methods, reason = "an opinion other than that of the code under test")]
fn element_count(network: &Network) -> usize {
    let table = ["-j", "list", "table", "inet", &network.config.bridge];
    let listed = Command::new("nft").args(table).output().unwrap();
    if !listed.status.success() {
        let error = String::from_utf8_lossy(&listed.stderr);
        assert!(error.contains("No such file"), "{error}");
        return 0;
    }
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let objects = listed["nftables"].as_array().unwrap().iter();
    let elements = objects.filter_map(|object| object["map"]["elem"].as_array()).flatten();
    elements.map(|element| element.to_string()).collect::<HashSet<_>>().len()
}

/// The addresses that the administrator sees on the bridge, but for the kernel's own.
fn bridge_addresses(network: &Network) -> Vec<String> {
    let index = lock(&network.bridge).index;
    let reached = link::list_addresses(&mut Socket::route().unwrap()).unwrap();
    let own = reached.into_iter().filter(|reach| reach.index == index).map(|reach| reach.net);
    // It makes its link-local address of the link-layer address.
    let of_kernel = |net: &IpNet| net.to_string().starts_with("fe80::7070:");
    let mut nets: Vec<_> = own.filter(|net| !of_kernel(net)).collect();
    nets.sort();
    nets.iter().map(IpNet::to_string).collect()
}

fn attach<'a>(
    network: &Network,
    pod_id: &'a str,
    netns: &'a OwnedFd,
    ports: &'a [PortMapping],
) -> Result<Attachment, Error> {
    network.attach(&AttachRequest { pod_id, netns, ports, procfs: Path::new("/proc") })
}

#[test]
fn pods_host_and_gateway_reach_each_other() {
    on_a_host(|_| {
        let network = network();
        let a = Pod::attach(&network, "a", &[]);
        let b = Pod::attach(&network, "b", &[]);
        let _server = Server::start(Some(&a.netns), 80);
        let _host = Server::start(None, 7070);
        let gateways = gateways(&network);
        for (a, b_address, gateway) in [(a.v4(), b.v4(), gateways[0]), (a.v6(), b.v6(), gateways[1])] {
            assert_eq!(ask(Some(&b.netns), a, 80).unwrap(), b_address);
            assert_eq!(ask_udp(Some(&b.netns), a, 80).unwrap(), b_address);
            assert_eq!(ask(None, a, 80).unwrap(), gateway);
            assert_eq!(ask(Some(&b.netns), gateway, 7070).unwrap(), b_address);
            let localhost = if a.is_ipv4() { "127.0.0.1" } else { "::1" };
            assert!(ask(Some(&b.netns), ip(localhost), 7070).is_err());
        }
    });
}

#[test]
fn interface_of_a_pod_is_ready_at_once() {
    on_a_host(|_| {
        let network = network();
        let pod = Pod::attach(&network, "a", &[]);
        let _server = Server::start(Some(&pod.netns), 80);
        ask(None, pod.v4(), 80).unwrap();
        ask(None, pod.v6(), 80).unwrap();
        assert_eq!(sent_again(), 0, "a packet was lost");
        let inside = || Network::interfaces(&pod.netns).unwrap();
        let stats = inside();
        let eth0 = stats.iter().find(|stats| stats.name == "eth0").unwrap();
        assert!(eth0.rx_bytes > 0 && eth0.tx_packets > 0, "{eth0:?}");
        assert_eq!(stats.len(), 2, "{stats:?}");
        let traffic = || network.traffic().unwrap();
        assert_eq!(traffic().len(), 1);
        // Connections that end, and reports of groups, may still pass between two looks.
        let same = || inside().contains(&traffic()[&pod.attachment.host_interface]);
        assert!(eventually(Duration::from_secs(10), same), "{:?} {:?}", inside(), traffic());
    });
}

#[test]
fn pods_reach_the_outside_under_the_address_of_the_host() {
    on_a_host(|world| {
        let network = network();
        let pod = Pod::attach(&network, "a", &[]);
        let _server = Server::start(Some(&world.outside), 80);
        for (outside, host) in [(OUTSIDE4, HOST4), (OUTSIDE6, HOST6)] {
            assert_eq!(ask(Some(&pod.netns), ip(outside), 80).unwrap(), ip(host));
            assert_eq!(ask_udp(Some(&pod.netns), ip(outside), 80).unwrap(), ip(host));
        }
    });
}

#[test]
fn detach_leaves_nothing_and_may_be_repeated() {
    on_a_host(|_| {
        let network = network();
        let links_before = links().len();
        let ports = [publish(Protocol::Tcp, 8080, 80)];
        let pod = Pod::attach(&network, "a", &ports);
        assert_eq!(links().len(), links_before + 1);
        assert_eq!(element_count(&network), 2);
        let stranger = Attachment { host_interface: "sp00000000000".into(), ..pod.attachment.clone() };
        network.detach("never-attached", &stranger).unwrap();
        assert_eq!(element_count(&network), 2, "ports of another pod");

        network.detach(&pod.id, &pod.attachment).unwrap();
        assert_eq!(links().len(), links_before);
        assert_eq!(element_count(&network), 0);
        network.detach(&pod.id, &pod.attachment).unwrap();

        let again = attach(&network, "a", &pod.netns, &ports).unwrap();
        assert_ne!(again.addresses, pod.attachment.addresses, "no quick reuse");
        network.detach("a", &again).unwrap();
        // A namespace that went away takes the interface with it.
        let gone = Pod::attach(&network, "gone", &ports);
        let Pod { attachment, .. } = gone;
        network.detach("gone", &attachment).unwrap();
    });
}

#[test]
fn departed_pod_keeps_its_address_until_its_interface_is_gone() {
    on_a_host(|_| {
        let network = Network::open(config("sptestdeparted", &["10.99.0.0/30"])).unwrap();
        let links_before = links().len();
        let ports = [publish(Protocol::Tcp, 8080, 80)];
        let first = Pod::attach(&network, "a", &ports);
        network.depart(&first.id, &first.attachment).unwrap();
        assert_eq!(element_count(&network), 0, "ports are free at once");
        network.settle(Duration::from_secs(3600)).unwrap();
        assert_eq!(links().len(), links_before + 1, "its namespace is held");

        // The only address there is: it is taken from who has departed, and with it the interface.
        let second = Pod::attach(&network, "b", &ports);
        assert_eq!(second.attachment.addresses, first.attachment.addresses);
        assert_eq!(links().len(), links_before + 1, "the second's");

        let Pod { id, attachment, netns, .. } = second;
        network.depart(&id, &attachment).unwrap();
        drop(netns);
        assert!(eventually(Duration::from_secs(10), || links().len() == links_before));
        network.settle(Duration::ZERO).unwrap();
        network.detach(&id, &attachment).unwrap();
        let third = Pod::attach(&network, "b", &ports);
        assert_eq!(third.attachment.addresses, attachment.addresses);
    });
}

#[test]
fn attach_that_fails_in_the_namespace_is_undone() {
    on_a_host(|world| {
        let network = network();
        let netns = new_namespace();
        // The namespace has an eth0 already.
        let mut socket = Socket::route().unwrap();
        create_pair(&mut socket, "taken", &netns, "eth0");
        let before = links().len();
        let ports = [publish(Protocol::Tcp, 8080, 80)];
        let error = attach(&network, "a", &netns, &ports).unwrap_err();
        assert_eq!(error.kind(), Kind::Internal, "{error}");
        assert_eq!(links().len(), before);
        assert_eq!(element_count(&network), 0);

        // No namespace at all.
        let file = std::fs::File::open("/dev/null").unwrap().into();
        let error = attach(&network, "a", &file, &ports).unwrap_err();
        assert!(matches!(error, Error::Namespace(_)), "{error}");

        // A rule set that is gone: the failure comes after the interface.
        socket = Socket::netfilter().unwrap();
        socket.transact(&network.ruleset.remove()).unwrap();
        let error = attach(&network, "a", &world.outside, &ports).unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
        assert_eq!(links().len(), before, "{error}");
        socket.transact(&network.ruleset.install(&lock(&network.bridge).subnets)).unwrap();
        attach(&network, "a", &new_namespace(), &ports).unwrap();
    });
}

#[test]
fn interface_left_by_an_attach_that_was_cut_off_is_replaced() {
    on_a_host(|_| {
        let network = network();
        let (name, _) = names(&network.config.bridge, "a");
        let stale = new_namespace();
        create_pair(&mut Socket::route().unwrap(), &name, &stale, "eth0");
        let pod = Pod::attach(&network, "a", &[]);
        assert_eq!(pod.attachment.host_interface, name);
        assert_eq!(Network::interfaces(&stale).unwrap().len(), 1, "lo alone");
        let error = attach(&network, "a", &pod.netns, &[]).unwrap_err();
        assert_eq!(error.kind(), Kind::AlreadyExists);
    });
}

#[test]
fn restart_keeps_the_pods_it_is_told_of_and_drops_strangers() {
    on_a_host(|_| {
        let network = network();
        let config = network.config.clone();
        let kept = Pod::attach(&network, "kept", &[publish(Protocol::Tcp, 8080, 80)]);
        let lost = Pod::attach(&network, "lost", &[publish(Protocol::Tcp, 8081, 80)]);
        // Something of the administrator's on the same bridge.
        let _server = Server::start(Some(&kept.netns), 80);
        drop(network);

        let network = Network::open(config).unwrap();
        ask(None, ip("127.0.0.1"), 8080).unwrap();
        network.restore(&[(kept.id.clone(), kept.attachment.clone())]).unwrap();
        ask(None, ip("127.0.0.1"), 8080).unwrap();
        ask(None, ip(HOST6), 8080).unwrap();
        assert_eq!(element_count(&network), 2);
        let names: Vec<_> = links().into_iter().map(|link| link.name).collect();
        assert!(names.contains(&kept.attachment.host_interface));
        assert!(!names.contains(&lost.attachment.host_interface));

        let clash = attach(&network, "new", &lost.netns, &[publish(Protocol::Tcp, 8080, 80)]);
        assert_eq!(clash.unwrap_err().kind(), Kind::AlreadyExists);
        let new = attach(&network, "new", &lost.netns, &[publish(Protocol::Tcp, 8081, 80)]).unwrap();
        assert_ne!(new.addresses, kept.attachment.addresses);
        network.detach(&kept.id, &kept.attachment).unwrap();
        assert_eq!(element_count(&network), 2);
    });
}

#[test]
fn pods_of_a_former_subnet_work_as_before_until_they_are_gone() {
    on_a_host(|world| {
        let network = Network::open(config("former", &["10.202.0.0/24", "fd72::/64"])).unwrap();
        let pod = Pod::attach(&network, "old", &[publish(Protocol::Tcp, 8080, 80)]);
        let _servers = [Server::start(Some(&pod.netns), 80), Server::start(Some(&world.outside), 80)];
        drop(network);
        let network = Network::open(config("former", &["10.203.0.0/24", "fd73::/64"])).unwrap();
        let works = || {
            for (outside, host) in [(OUTSIDE4, HOST4), (OUTSIDE6, HOST6)] {
                assert_eq!(ask(Some(&pod.netns), ip(outside), 80).unwrap(), ip(host));
                ask(Some(&pod.netns), ip(host), 8080).unwrap();
            }
        };
        works();
        network.restore(&[(pod.id.clone(), pod.attachment.clone())]).unwrap();
        works();
        let new = Pod::attach(&network, "new", &[]);
        assert_eq!(ask(Some(&new.netns), ip(OUTSIDE4), 80).unwrap(), ip(HOST4));
        assert_eq!(lock(&network.bridge).subnets.len(), 4);
        assert_eq!(bridge_addresses(&network).len(), 4);
        network.detach(&pod.id, &pod.attachment).unwrap();
        assert_eq!(lock(&network.bridge).subnets.len(), 2);
        assert_eq!(bridge_addresses(&network), ["10.203.0.1/24", "fd73::1/64"]);
        assert_eq!(ask(Some(&new.netns), ip(OUTSIDE6), 80).unwrap(), ip(HOST6));
    });
}

#[test]
fn moving_to_other_subnets_disturbs_no_pod_in_whatever_state() {
    on_a_host(|world| {
        let network = Network::open(config("moved", &["10.202.0.0/24", "fd72::/64"])).unwrap();
        let port = |number| [publish(Protocol::Tcp, number, 80)];
        let there = Pod::attach(&network, "there", &port(8080));
        let gone = Pod::attach(&network, "gone", &port(8081));
        network.depart(&gone.id, &gone.attachment).unwrap();
        // One whose attach has begun.
        let coming = network.reserve("coming", port(8082).to_vec()).unwrap();
        let request = AttachRequest {
            pod_id: "coming",
            netns: &new_namespace(),
            ports: &coming.ports,
            procfs: Path::new("/proc"),
        };
        network.create_pair(&request, &coming).unwrap();
        network.publish("coming", &coming).unwrap();

        network.move_to(vec!["10.203.0.0/24".parse().unwrap(), "fd72::/64".parse().unwrap()]).unwrap();
        let names: Vec<_> = links().into_iter().map(|link| link.name).collect();
        assert!(names.contains(&coming.host_interface), "{names:?}");
        assert_eq!(element_count(&network), 4);
        network.connect(&request, &coming).unwrap();
        let _servers = [
            Server::start(Some(&there.netns), 80),
            Server::start(Some(request.netns), 80),
            Server::start(Some(&world.outside), 80),
        ];
        for (netns, port) in [(&there.netns, 8080), (request.netns, 8082)] {
            ask(Some(&world.outside), ip(HOST4), port).unwrap();
            ask(Some(netns), ip(HOST4), port).unwrap();
            ask(Some(netns), ip(HOST6), port).unwrap();
            assert_eq!(ask(Some(netns), ip(OUTSIDE4), 80).unwrap(), ip(HOST4));
        }

        // The port of who is gone is free, its address of the subnet that stays is not.
        let new = Pod::attach(&network, "new", &port(8081));
        assert_eq!(new.v4(), ip("10.203.0.2"));
        assert_eq!(new.v6(), ip("fd72::5"));
        network.settle(Duration::ZERO).unwrap();
        network.detach("coming", &coming).unwrap();
        network.detach(&there.id, &there.attachment).unwrap();
        assert_eq!(element_count(&network), 2);
        assert_eq!(lock(&network.bridge).subnets.len(), 2);
        ask(Some(&new.netns), ip(OUTSIDE6), 80).unwrap();
    });
}

#[test]
fn subnets_that_cannot_be_moved_to_change_nothing() {
    on_a_host(|_| {
        let network = Network::open(config("stays", &["10.202.0.0/24"])).unwrap();
        let move_to = |subnets: &[&str]| {
            network.move_to(subnets.iter().map(|subnet| subnet.parse().unwrap()).collect())
        };
        assert_eq!(move_to(&["10.203.0.0/31"]).unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(move_to(&["198.51.100.0/25"]).unwrap_err().kind(), Kind::FailedPrecondition);
        assert_eq!(network.subnets(), ["10.202.0.0/24".parse().unwrap()]);
        assert_eq!(bridge_addresses(&network), ["10.202.0.1/24"]);
        assert_eq!(Pod::attach(&network, "a", &[]).v4(), ip("10.202.0.2"));
    });
}

#[test]
fn bridge_has_no_address_that_no_pod_needs() {
    on_a_host(|_| {
        drop(Network::open(config("needs", &["10.202.0.0/24", "fd72::/64"])).unwrap());
        let network = Network::open(config("needs", &["10.203.0.0/24", "fd72::/48"])).unwrap();
        let index = lock(&network.bridge).index;
        let add = |net: &str| link::add_address(index, net.parse().unwrap());
        Socket::route().unwrap().transact(&[add("10.209.0.7/24"), add("fe80::1/64")]).unwrap();
        network.restore(&[]).unwrap();
        let of_others = ["10.209.0.7/24", "fe80::1/64"];
        let ours = |network: &Network| {
            let mut addresses = bridge_addresses(network);
            addresses.retain(|address| !of_others.contains(&address.as_str()));
            addresses
        };
        assert_eq!(ours(&network), ["10.203.0.1/24", "fd72::1/48"]);
        let pod = Pod::attach(&network, "a", &[]);
        network.move_to(vec!["10.204.0.0/24".parse().unwrap()]).unwrap();
        assert_eq!(ours(&network), ["10.203.0.1/24", "10.204.0.1/24", "fd72::1/48"]);
        network.depart(&pod.id, &pod.attachment).unwrap();
        assert_eq!(ours(&network).len(), 3, "its interface may be there");
        network.settle(Duration::ZERO).unwrap();
        assert_eq!(ours(&network), ["10.204.0.1/24"]);
        assert_eq!(bridge_addresses(&network).len(), 3, "others' stay");
        let route = |net: &str| {
            let routes = link::list_routes(&mut Socket::route().unwrap()).unwrap();
            routes.iter().any(|route| route.net == net.parse().unwrap())
        };
        assert!(route("10.204.0.0/24") && !route("10.203.0.0/24") && !route("fd72::/48"));
    });
}

#[test]
fn detach_after_a_restart_without_restore_removes_what_the_pod_had() {
    on_a_host(|_| {
        let network = network();
        let config = network.config.clone();
        let pod = Pod::attach(&network, "a", &[publish(Protocol::Tcp, 8080, 80)]);
        drop(network);
        let network = Network::open(config).unwrap();
        assert_eq!(element_count(&network), 2);
        network.detach(&pod.id, &pod.attachment).unwrap();
        assert_eq!(element_count(&network), 0);
    });
}

#[test]
fn networks_side_by_side_do_not_disturb_each_other() {
    on_a_host(|world| {
        let one = Network::open(config("one", &["10.202.0.0/24", "fd72::/64"])).unwrap();
        let two = Network::open(config("two", &["10.202.1.0/24", "fd72:0:0:1::/64"])).unwrap();
        let a = Pod::attach(&one, "pod", &[publish(Protocol::Tcp, 8080, 80)]);
        let b = Pod::attach(&two, "pod", &[publish(Protocol::Tcp, 8081, 80)]);
        let _servers = [Server::start(Some(&a.netns), 80), Server::start(Some(&b.netns), 80)];
        for port in [8080, 8081] {
            for to in [HOST4, HOST6] {
                ask(Some(&world.outside), ip(to), port).unwrap();
                ask(Some(&a.netns), ip(to), port).unwrap();
                ask(Some(&b.netns), ip(to), port).unwrap();
            }
            ask(None, ip("127.0.0.1"), port).unwrap();
        }
        one.restore(&[]).unwrap();
        one.destroy().unwrap();
        one.destroy().unwrap();
        ask(None, ip("127.0.0.1"), 8081).unwrap();
        assert!(!is_reachable(None, ip("127.0.0.1"), 8080));
        two.destroy().unwrap();
        let names: Vec<_> = links().into_iter().map(|link| link.name).collect();
        assert_eq!(names.iter().filter(|name| *name != "lo").count(), 1);
    });
}

#[test]
fn subnet_or_name_that_the_host_uses_is_refused() {
    on_a_host(|_| {
        let refused = |bridge: &str, subnets: &[&str]| {
            let before = links().len();
            let error = Network::open(config(bridge, subnets)).err().unwrap();
            assert_eq!(links().len(), before);
            error
        };
        let _network = Network::open(config("first", &["10.202.0.0/24", "fd72::/64"])).unwrap();
        let error = refused("second", &["10.202.0.0/16"]);
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert_eq!(error.to_string(), "subnet 10.202.0.0/16 overlaps 10.202.0.1/24 of interface first");
        refused("second", &["fd72::/48"]);
        refused("second", &["198.51.100.0/25"]);
        let error = refused("uplink", &["10.203.0.0/24"]);
        assert!(matches!(error, Error::NotABridge { .. }), "{error}");
        let error = refused("no/slash", &["10.203.0.0/24"]);
        assert_eq!(error.kind(), Kind::InvalidArgument);
        let mut small = config("second", &["fd73::/64"]);
        small.mtu = Some(1000);
        assert!(Network::open(small).is_err());
    });
}

#[test]
fn bridge_whose_rules_are_refused_is_removed() {
    on_a_host(|_| {
        // A table of that name, with a chain of another kind where ours would be.
        let foreign = Ruleset::new("foreign");
        Socket::netfilter().unwrap().transact(&foreign.install_filter_chain("output")).unwrap();
        let before = links().len();
        let error = Network::open(config("foreign", &["10.202.0.0/24"])).err().unwrap();
        assert_eq!(error.kind(), Kind::Internal, "{error}");
        assert_eq!(links().len(), before);
    });
}

#[test]
fn opening_again_adopts_the_bridge() {
    on_a_host(|_| {
        let config = config("again", &["10.202.0.0/24", "fd72::/64"]);
        let first = Network::open(config.clone()).unwrap();
        let second = Network::open(config.clone()).unwrap();
        assert_eq!(lock(&first.bridge).index, lock(&second.bridge).index);
        let pod = Pod::attach(&second, "a", &[]);
        let _server = Server::start(Some(&pod.netns), 80);
        ask(None, pod.v6(), 80).unwrap();
        drop(first);
        let mut smaller = config.clone();
        smaller.mtu = Some(1300);
        let third = Network::open(smaller).unwrap();
        let bridge = links().into_iter().find(|link| link.name == "again");
        assert_eq!(bridge.unwrap().mtu, 1300);
        third.destroy().unwrap();
        Network::open(config).unwrap();
    });
}

#[test]
fn pods_of_one_family_and_a_chosen_mtu() {
    on_a_host(|world| {
        for (bridge, subnet, host) in [("only4", "10.202.0.0/24", HOST4), ("only6", "fd72::/64", HOST6)] {
            let mut config = config(bridge, &[subnet]);
            config.mtu = Some(1400);
            let network = Network::open(config).unwrap();
            let pod = Pod::attach(&network, "a", &[publish(Protocol::Tcp, 8080, 80)]);
            assert_eq!(pod.attachment.addresses.len(), 1);
            let _server = Server::start(Some(&pod.netns), 80);
            ask(Some(&world.outside), ip(host), 8080).unwrap();
            assert_eq!(element_count(&network), 1);
            let inside = within(Some(&pod.netns), links);
            let eth0 = inside.iter().find(|link| link.name == "eth0").unwrap();
            assert_eq!(eth0.mtu, 1400);
            network.detach(&pod.id, &pod.attachment).unwrap();
        }
    });
}

#[test]
fn bridge_keeps_its_mtu_without_pods_and_after_a_restart() {
    on_a_host(|_| {
        let mut socket = Socket::route().unwrap();
        let uplink = link::find(&mut socket, "uplink").unwrap().unwrap();
        let lead_out = [link::set_mtu("uplink", 8000), link::add_default_route(uplink.index, ip(OUTSIDE4))];
        socket.transact(&lead_out).unwrap();
        let config = config("packets", &["10.202.0.0/24"]);
        let mtu = || links().into_iter().find(|link| link.name == "packets").unwrap().mtu;
        let network = Network::open(config.clone()).unwrap();
        let pod = Pod::attach(&network, "a", &[]);
        network.detach(&pod.id, &pod.attachment).unwrap();
        assert_eq!(mtu(), 8000);
        drop(network);
        // As an earlier agent's bridge is after the last pod.
        socket.transact(&[link::set_mtu("packets", 1500)]).unwrap();
        let network = Network::open(config).unwrap();
        assert_eq!(mtu(), 8000);
        let pod = Pod::attach(&network, "a", &[]);
        let inside = within(Some(&pod.netns), links);
        assert_eq!(inside.iter().find(|link| link.name == "eth0").unwrap().mtu, 8000);
    });
}

#[test]
fn bridge_keeps_its_mtu_where_nothing_leads_out_of_the_host() {
    on_a_host(|_| {
        let config = config("packets", &["10.202.0.0/24"]);
        drop(Network::open(Config { mtu: Some(1400), ..config.clone() }).unwrap());
        drop(Network::open(config).unwrap());
        assert_eq!(links().into_iter().find(|link| link.name == "packets").unwrap().mtu, 1400);
    });
}

#[test]
fn exhausted_subnet_is_an_error_until_a_pod_goes() {
    on_a_host(|_| {
        let network = Network::open(config("tiny", &["10.202.0.0/29", "fd72::/64"])).unwrap();
        let pods: Vec<_> =
            (0..5).map(|number| Pod::attach(&network, &format!("pod-{number}"), &[])).collect();
        let netns = new_namespace();
        let error = attach(&network, "late", &netns, &[]).unwrap_err();
        assert_eq!(error.kind(), Kind::ResourceExhausted);
        assert_eq!(error.to_string(), "every address of 10.202.0.0/29 is in use");
        network.detach(&pods[2].id, &pods[2].attachment).unwrap();
        let late = attach(&network, "late", &netns, &[]).unwrap();
        assert_eq!(late.addresses[0], pods[2].attachment.addresses[0]);
    });
}

#[test]
fn many_pods_come_and_go_at_once() {
    const PODS: u16 = 64;
    on_a_host(|_| {
        let network = network();
        let links_before = links().len();
        let pods: Vec<Pod> = std::thread::scope(|scope| {
            let attaching: Vec<_> = (0..PODS)
                .map(|number| {
                    let network = &network;
                    scope.spawn(move || {
                        let ports = [publish(Protocol::Tcp, 9000 + number, 80)];
                        Pod::attach(network, &format!("pod-{number}"), &ports)
                    })
                })
                .collect();
            attaching.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let addresses: HashSet<_> = pods.iter().flat_map(|pod| [pod.v4(), pod.v6()]).collect();
        assert_eq!(addresses.len(), usize::from(PODS) * 2);
        assert_eq!(element_count(&network), usize::from(PODS) * 2);
        let _server = Server::start(Some(&pods[7].netns), 80);
        let ours: u16 = pods[7].attachment.ports[0].host_port;
        ask(None, ip("127.0.0.1"), ours).unwrap();
        std::thread::scope(|scope| {
            for pod in &pods {
                scope.spawn(|| network.detach(&pod.id, &pod.attachment).unwrap());
            }
        });
        assert_eq!(links().len(), links_before);
        assert_eq!(element_count(&network), 0);
    });
}

#[test]
fn pods_cannot_make_the_host_accept_router_advertisements() {
    on_a_host(|_| {
        sysctl::set("ipv6/conf/default/accept_ra", "1").unwrap();
        sysctl::set("ipv6/conf/uplink/accept_ra", "1").unwrap();
        let _network = Network::open(config("only4", &["10.202.0.0/24"])).unwrap();
        let value = |name: &str| sysctl::get(&format!("ipv6/conf/{name}")).unwrap();
        assert_eq!(value("only4/accept_ra"), "0");
        assert_eq!(value("uplink/accept_ra"), "1");
        assert_eq!(value("all/forwarding"), "0");
        let network = Network::open(config("both", &["10.203.0.0/24", "fd72::/64"])).unwrap();
        assert_eq!(value("both/accept_ra"), "0");
        // The host goes on listening where it did, though it forwards now.
        assert_eq!(value("uplink/accept_ra"), "2");
        assert_eq!(value("all/forwarding"), "1");
        let pod = Pod::attach(&network, "a", &[]);
        let inside = within(Some(&pod.netns), || value("eth0/accept_ra"));
        assert_eq!(inside, "0");
    });
}

#[test]
fn pods_do_not_hear_of_each_others_multicast_groups() {
    on_a_host(|_| {
        let network = network();
        let first = Pod::attach(&network, "a", &[]);
        // Reports go to all routers that can do version 2, which this one claims to be.
        let _listener = within(Some(&first.netns), || {
            let socket = std::net::UdpSocket::bind("[::]:0").unwrap();
            let interface = link::find(&mut Socket::route().unwrap(), "eth0").unwrap().unwrap();
            socket.join_multicast_v6(&"ff02::16".parse().unwrap(), interface.index).unwrap();
            socket
        });
        let count = |pod: Option<&Pod>, name: &str| {
            let read = || std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
            let table = pod.map_or_else(read, |pod| within(Some(&pod.netns), read));
            let line = table.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
            line.map_or(0, |number| number.parse::<u64>().unwrap())
        };
        let sent = |pod: Option<&Pod>| count(pod, "Icmp6OutType143");
        // It hears its own, and those of the host, which are the bridge's.
        let known = || sent(Some(&first)) + sent(None);
        let heard = || count(Some(&first), "Icmp6InType143");
        let (known_before, heard_before) = (known(), heard());
        let second = Pod::attach(&network, "b", &[]);
        assert!(eventually(Duration::from_secs(10), || sent(Some(&second)) >= 2), "it reports its groups");
        let heard = heard() - heard_before;
        let known = known() - known_before;
        assert!(heard <= known, "{heard} heard, {known} of them not from the other pod");
        // The groups work without: to find an address is to ask one.
        let _server = Server::start(Some(&second.netns), 80);
        ask(Some(&first.netns), second.v6(), 80).unwrap();
        network.destroy().unwrap();
        let table = multicast::remove(&network.config.bridge);
        let gone = Socket::netfilter().unwrap().transact(&table).unwrap_err();
        assert_eq!(gone.errno(), Some(Errno::NOENT));
    });
}

#[test]
fn pod_without_a_network_has_its_loopback() {
    on_a_host(|_| {
        let netns = new_namespace();
        Network::loopback(&netns).unwrap();
        let _server = Server::start(Some(&netns), 80);
        ask(Some(&netns), ip("127.0.0.1"), 80).unwrap();
        ask(Some(&netns), ip("::1"), 80).unwrap();
        assert_eq!(Network::interfaces(&netns).unwrap().len(), 1);
    });
}

#[test]
fn interface_goes_with_the_namespace() {
    on_a_host(|_| {
        let network = network();
        let pod = Pod::attach(&network, "a", &[]);
        let before = links().len();
        drop(pod.netns);
        assert!(eventually(Duration::from_secs(10), || links().len() < before));
        network.detach("a", &pod.attachment).unwrap();
        let missing = link::find(&mut Socket::route().unwrap(), &pod.attachment.host_interface);
        assert!(missing.unwrap().is_none());
    });
}

#[test]
fn refusal_of_the_kernel_is_told_with_its_cause() {
    on_a_host(|_| {
        let mut socket = Socket::route().unwrap();
        let error =
            socket.transact(&[link::add_address(4321, "10.202.0.1/24".parse().unwrap())]).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NODEV));
        assert!(error.to_string().starts_with("add address"), "{error}");
    });
}
