//! Published ports: every way to them, what is kept from them, and who may have them.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use super::super::*;
use super::world::*;
use super::{attach, element_count, ip};

/// Every way to a published port, with and without netfilter for bridged packets.
#[test]
fn published_ports_are_reached_from_everywhere() {
    for bridged in [true, false] {
        on_a_host(|world| {
            filter_bridged_packets(bridged);
            let network = network();
            let ports = [publish(Protocol::Tcp, 8080, 80), publish(Protocol::Udp, 8080, 80)];
            let pod = Pod::attach(&network, "a", &ports);
            let other = Pod::attach(&network, "b", &[]);
            let _server = Server::start(Some(&pod.netns), 80);
            let gateways = gateways(&network);
            let ways = [
                (None, ip("127.0.0.1"), "host by loopback"),
                (None, ip("127.1.2.3"), "host by another loopback address"),
                (None, ip(HOST4), "host by its own address"),
                (None, ip(HOST6), "host by its own address"),
                (Some(&world.outside), ip(HOST4), "outside"),
                (Some(&world.outside), ip(HOST6), "outside"),
                (Some(&other.netns), ip(HOST4), "another pod"),
                (Some(&other.netns), ip(HOST6), "another pod"),
                (Some(&other.netns), gateways[0], "another pod by gateway"),
                (Some(&other.netns), gateways[1], "another pod by gateway"),
                (Some(&pod.netns), ip(HOST4), "the pod itself"),
                (Some(&pod.netns), ip(HOST6), "the pod itself"),
                (Some(&pod.netns), gateways[0], "the pod itself by gateway"),
                (Some(&pod.netns), gateways[1], "the pod itself by gateway"),
            ];
            for (from, to, way) in ways {
                let tcp = ask(from, to, 8080);
                assert!(tcp.is_ok(), "tcp, {way} to {to}, {bridged}: {tcp:?}");
                let udp = ask_udp(from, to, 8080);
                assert!(udp.is_ok(), "udp, {way} to {to}, {bridged}: {udp:?}");
            }
            let outside = ask(Some(&world.outside), ip(HOST4), 8080).unwrap();
            assert_eq!(outside, ip(OUTSIDE4), "the pod sees who asks");
            // Refused at once, so that clients go on to 127.0.0.1.
            let refused = ask(None, ip("::1"), 8080).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{refused}");
        });
    }
}

#[test]
fn port_of_one_host_address_is_published_there_alone() {
    on_a_host(|world| {
        let network = network();
        let at = |host_ip, host_port| PortMapping {
            host_ip: Some(ip(host_ip)),
            ..publish(Protocol::Tcp, host_port, 80)
        };
        let ports = [at("127.0.0.1", 8081), at(HOST4, 8082), at(HOST6, 8083)];
        let pod = Pod::attach(&network, "a", &ports);
        let _server = Server::start(Some(&pod.netns), 80);
        let outside = Some(&world.outside);

        ask(None, ip("127.0.0.1"), 8081).unwrap();
        ask(None, ip(HOST4), 8082).unwrap();
        ask(outside, ip(HOST4), 8082).unwrap();
        ask(Some(&pod.netns), ip(HOST4), 8082).unwrap();
        ask(outside, ip(HOST6), 8083).unwrap();
        assert!(!is_reachable(None, ip(HOST4), 8081));
        assert!(!is_reachable(outside, ip(HOST4), 8081));
        assert!(!is_reachable(None, ip("127.0.0.1"), 8082));
        assert!(!is_reachable(outside, ip(HOST4), 8083));
        assert_eq!(element_count(&network), 3);
    });
}

#[test]
fn pods_cannot_reach_services_on_the_loopback_address_of_the_host() {
    on_a_host(|_| {
        let network = network();
        let pod = Pod::attach(&network, "a", &[]);
        let _server = Server::on(None, SocketAddr::new(ip("127.0.0.1"), 7071));
        // Without its own loopback the pod sends 127.0.0.1 to its gateway.
        within(Some(&pod.netns), || send_loopback_out("eth0"));
        assert!(!is_reachable(Some(&pod.netns), ip("127.0.0.1"), 7071));
        // It is our rule that keeps it from it.
        Socket::netfilter().unwrap().transact(&network.ruleset.remove()).unwrap();
        assert!(is_reachable(Some(&pod.netns), ip("127.0.0.1"), 7071));
    });
}

#[test]
fn loopback_ports_are_closed_to_packets_from_outside() {
    on_a_host(|world| {
        let network = network();
        let at = PortMapping { host_ip: Some(ip("127.0.0.1")), ..publish(Protocol::Tcp, 8081, 80) };
        let pod = Pod::attach(&network, "a", &[at, publish(Protocol::Tcp, 8082, 80)]);
        let _server = Server::start(Some(&pod.netns), 80);
        // A neighbour that sends packets for 127.0.0.1 to this host.
        within(Some(&world.outside), || {
            send_loopback_out("uplink");
            let mut socket = Socket::route().unwrap();
            let uplink = link::find(&mut socket, "uplink").unwrap().unwrap();
            let route = link::add_default_route(uplink.index, ip(HOST4));
            socket.transact(&[route]).unwrap();
        });
        let outside = Some(&world.outside);
        assert!(!is_reachable(outside, ip("127.0.0.1"), 8081));
        assert!(!is_reachable(outside, ip("127.0.0.1"), 8082));
        ask(None, ip("127.0.0.1"), 8081).unwrap();
    });
}

#[test]
fn port_of_another_pod_or_process_is_refused_and_nothing_stays() {
    on_a_host(|_| {
        let network = network();
        let ports = [publish(Protocol::Tcp, 8080, 80)];
        let _first = Pod::attach(&network, "first", &ports);
        let before = links().len();
        let netns = new_namespace();

        let error = attach(&network, "second", &netns, &ports).unwrap_err();
        assert_eq!(error.kind(), Kind::AlreadyExists);
        assert_eq!(error.to_string(), "port 8080/tcp is in use by pod first");

        let _listener = TcpListener::bind("0.0.0.0:8081").unwrap();
        let busy = [publish(Protocol::Tcp, 8081, 80)];
        let error = attach(&network, "second", &netns, &busy).unwrap_err();
        assert_eq!(error.kind(), Kind::AlreadyExists);
        assert_eq!(error.to_string(), "publish port 8081/tcp");

        let absent = [PortMapping { host_ip: Some(ip("203.0.113.9")), ..ports[0] }];
        let error = attach(&network, "second", &netns, &absent).unwrap_err();
        assert_eq!(error.kind(), Kind::AlreadyExists, "overlaps all addresses");
        let absent = [PortMapping { host_port: 9, ..absent[0] }];
        let error = attach(&network, "second", &netns, &absent).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "not our address");

        assert_eq!(links().len(), before);
        assert_eq!(element_count(&network), 2);
        attach(&network, "second", &netns, &[]).unwrap();
    });
}

#[test]
fn thousands_of_ports_are_published_and_restored() {
    on_a_host(|_| {
        let network = network();
        let ports: Vec<_> = (0..3000).map(|number| publish(Protocol::Tcp, 20000 + number, 80)).collect();
        let pod = Pod::attach(&network, "a", &ports);
        assert!(
            eventually(Duration::from_secs(5), || element_count(&network) == 6000),
            "{}",
            element_count(&network)
        );
        let config = network.config.clone();
        drop(network);
        let network = Network::open(config).unwrap();
        network.restore(&[(pod.id.clone(), pod.attachment.clone())]).unwrap();
        let _server = Server::start(Some(&pod.netns), 80);
        ask(None, ip("127.0.0.1"), 22999).unwrap();
        // Some are gone already.
        let some = Element::of(&ports[7], &pod.attachment.addresses);
        Socket::netfilter().unwrap().transact(&network.ruleset.withdraw(&some)).unwrap();
        network.detach(&pod.id, &pod.attachment).unwrap();
        assert_eq!(element_count(&network), 0);
    });
}

#[test]
fn only_connections_that_fit_are_forgotten_where_the_kernel_lists_all() {
    on_a_host(|world| {
        let network = network();
        let ports = [publish(Protocol::Udp, 8053, 53), publish(Protocol::Udp, 8054, 53)];
        let pod = Pod::attach(&network, "a", &ports);
        let other = Pod::attach(&network, "b", &[publish(Protocol::Udp, 8055, 53)]);
        let _servers = [&pod, &other].map(|pod| Server::start(Some(&pod.netns), 53));
        let ask_all = || {
            for (host, port) in
                [HOST4, HOST6].iter().flat_map(|host| [8053, 8054, 8055].map(|port| (host, port)))
            {
                ask_udp(Some(&world.outside), ip(host), port).unwrap();
            }
        };
        // As kernels before 5.8, which know no filter.
        let all = |filter: &conntrack::Filter| {
            let mut request = conntrack::list(filter);
            request.body.truncate(4);
            Socket::netfilter().unwrap().dump(&request).unwrap()
        };
        let known = |filter: &conntrack::Filter| {
            all(filter).iter().filter(|listed| conntrack::forget(listed, filter).is_some()).count()
        };
        for (family, address) in [(Family::V4, pod.v4()), (Family::V6, pod.v6())] {
            let protocol = Protocol::Udp.number();
            let [first, second, third] =
                [8053, 8054, 8055].map(|port| conntrack::Filter::ToPort { family, protocol, port });
            let answered = conntrack::Filter::AnsweredBy { address, protocol };
            for (forgotten, left) in [(first, [0, 1, 1]), (answered, [0, 0, 1])] {
                for filter in [first, second, third] {
                    network.forget([filter]);
                }
                ask_all();
                assert_eq!([first, second, third].map(|filter| known(&filter)), [1, 1, 1]);
                network.forget_listed(&all(&forgotten), &forgotten).unwrap();
                assert_eq!([first, second, third].map(|filter| known(&filter)), left, "{forgotten:?}");
            }
        }
    });
}

#[test]
fn datagrams_of_one_client_follow_the_port_to_the_next_pod() {
    on_a_host(|world| {
        let network = network();
        let ports = [publish(Protocol::Udp, 8053, 53)];
        let client = udp_socket(Some(&world.outside), false);
        let host = ip(HOST4);
        assert!(ask_from(&client, host, 8053).is_err(), "nobody there yet");

        let first = Pod::attach(&network, "first", &ports);
        let server = Server::start(Some(&first.netns), 53);
        ask_from(&client, host, 8053).unwrap();
        network.detach(&first.id, &first.attachment).unwrap();
        drop(server);
        assert!(ask_from(&client, host, 8053).is_err(), "nobody there now");

        let second = Pod::attach(&network, "second", &ports);
        let _server = Server::start(Some(&second.netns), 53);
        ask_from(&client, host, 8053).unwrap();
    });
}
