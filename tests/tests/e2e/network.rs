//! The built-in bridge: addresses, gateway, published ports, both address families.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use sampan_tests::{Ctr, eventually, free_port, http_get, with_agent};

use super::{SOON, busybox, pulled};

const GREETING: &str = "Hello from nginx in a Sampan pod";

/// The first address of a pod's network: the bridge's own, an address of the host. (::1 cannot be translated: IPv6
/// has no `route_localnet`.)
fn first_of(pod: IpAddr) -> IpAddr {
    match pod {
        IpAddr::V4(address) => IpAddr::V4((u32::from(address) & !0xff | 1).into()),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64 | 1).into()),
    }
}

/// Whether the page of nginx is served there.
pub(super) async fn page(address: SocketAddr) -> Option<()> {
    let answer = tokio::task::spawn_blocking(move || http_get(address, "/")).await.unwrap();
    answer.ok().filter(|text| text.contains(GREETING)).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_is_reached_by_address_and_by_published_port_on_both_families() {
    with_agent(async |agent| {
        let image = pulled(agent, "nginx").await;
        let port = free_port();
        let (cri, pod) = (agent.cri(), agent.pod("web").port(port, 80));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config = Ctr::new("nginx", &image, &pod);
        cri.run(&pod_id, &config, &pod).await.unwrap();
        let network = cri.pod(&pod_id).await.unwrap().network.unwrap();
        let v4: IpAddr = network.ip.parse().unwrap();
        let v6: IpAddr = network.additional_ips[0].ip.parse().unwrap();
        for (what, address) in [
            ("the pod's IPv4 address", SocketAddr::new(v4, 80)),
            ("the pod's IPv6 address", SocketAddr::new(v6, 80)),
            ("the port on 127.0.0.1", SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)),
            ("the port on the host's IPv4 address", SocketAddr::new(first_of(v4), port)),
            ("the port on the host's IPv6 address", SocketAddr::new(first_of(v6), port)),
        ] {
            eventually(&format!("nginx answers on {what}, {address}"), SOON, async || page(address).await)
                .await;
        }
        let log = std::fs::read_to_string(pod.log_file(&config)).unwrap();
        assert!(log.contains("GET / HTTP/1.0"), "{log}");
        cri.stop_pod(&pod_id).await.unwrap();
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        assert!(page(address).await.is_none(), "closed with the pod");
        cri.remove_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_reach_the_gateway_and_each_other() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, one, two) = (agent.cri(), agent.pod("one"), agent.pod("two"));
        let first = cri.run_pod(&one).await.unwrap();
        let second = cri.run_pod(&two).await.unwrap();
        let id = cri.run(&first, &Ctr::sleeper("c", &image, &one).capability("NET_RAW"), &one).await.unwrap();
        let neighbour = cri.pod(&second).await.unwrap().network.unwrap();
        let gateway = cri.sh(&id, "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'").await;
        let gateway6 = cri.sh(&id, "ip -6 route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'").await;
        for target in [&gateway, &neighbour.ip] {
            cri.sh(&id, &format!("ping -c 1 -W 5 {target} >/dev/null")).await;
        }
        for target in [&gateway6, &neighbour.additional_ips[0].ip] {
            cri.sh(&id, &format!("ping6 -c 1 -W 5 {target} >/dev/null")).await;
        }
        assert_eq!(cri.sh(&id, "ls /sys/class/net").await, "eth0\nlo");
        cri.sh(&id, "ping -c 1 -W 5 127.0.0.1 >/dev/null").await;
        cri.clear_pod(&first).await.unwrap();
        cri.clear_pod(&second).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_reaches_the_host_and_its_own_published_port() {
    with_agent(async |agent| {
        let image = pulled(agent, "nginx").await;
        let busybox = busybox(agent).await;
        let port = free_port();
        let (cri, pod) = (agent.cri(), agent.pod("web").port(port, 80));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        cri.run(&pod_id, &Ctr::new("nginx", &image, &pod), &pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("c", &busybox, &pod), &pod).await.unwrap();
        let gateway = cri.sh(&id, "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'").await;
        // By way of the host and back to itself: hairpin.
        let command = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {gateway} {port}");
        eventually("the page by way of the host", SOON, async || {
            let answer = cri.exec(&id, &["sh", "-c", &command], 10).await.unwrap();
            String::from_utf8_lossy(&answer.stdout).contains(GREETING).then_some(())
        })
        .await;
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dns_and_sysctls_of_the_pod_are_set() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let cri = agent.cri();
        let mut pod = agent.pod("dns").sysctl("net.ipv4.ip_local_port_range", "20000 21000");
        pod.config.dns_config = Some(k8s_cri::v1::DnsConfig {
            servers: vec!["192.0.2.1".into()],
            searches: vec!["example.test".into()],
            options: vec!["ndots:3".into()],
        });
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
        let resolver = cri.sh(&id, "cat /etc/resolv.conf").await;
        for line in ["nameserver 192.0.2.1", "search example.test", "options ndots:3"] {
            assert!(resolver.lines().any(|other| other == line), "{resolver}");
        }
        let range = cri.sh(&id, "cat /proc/sys/net/ipv4/ip_local_port_range").await;
        assert_eq!(range.split_whitespace().collect::<Vec<_>>(), ["20000", "21000"]);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_need_no_capability() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("ping"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
        let groups = cri.sh(&id, "cat /proc/sys/net/ipv4/ping_group_range").await;
        assert_eq!(groups.split_whitespace().collect::<Vec<_>>(), ["0", "2147483647"]);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_come_back_when_pods_go() {
    with_agent(async |agent| {
        // The subnet is a /24: 300 pods only fit when addresses are given back.
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..30 {
            let lives: Vec<_> = (0..10)
                .map(|_| {
                    let (cri, pod) = (agent.cri(), agent.pod("short"));
                    tokio::spawn(async move {
                        let id = cri.run_pod(&pod).await?;
                        let ip = cri.pod(&id).await?.network.unwrap_or_default().ip;
                        cri.clear_pod(&id).await?;
                        Ok::<_, tonic::Status>(ip)
                    })
                })
                .collect();
            for life in lives {
                seen.insert(life.await.unwrap().unwrap_or_else(|status| panic!("round {round}: {status}")));
            }
        }
        assert!(seen.len() <= 254, "{}", seen.len());
    })
    .await;
}
