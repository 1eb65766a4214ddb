//! What the flags of `run` ask the agent for.

use clap::{CommandFactory as _, Parser};
use sampan_proto::sampan::PublishedPort;

use super::*;

#[derive(Debug, Parser)]
#[command(name = "run")]
struct Line {
    #[command(flatten)]
    arguments: Arguments,
}

fn parse(line: &str) -> RunRequest {
    let line = Line::try_parse_from(line.split(' ')).expect("valid arguments");
    request(line.arguments).expect("a valid request")
}

fn refusal(line: &str) -> String {
    Line::try_parse_from(line.split(' ')).expect_err("invalid arguments").to_string()
}

#[test]
fn an_image_alone_asks_for_nothing_else() {
    assert_eq!(parse("run nginx"), RunRequest { image: "nginx".into(), ..Default::default() });
}

#[test]
fn every_flag_arrives() {
    let request = parse(
        "run -d --rm --name web -p 8080:80 -p 127.0.0.1:53:53/udp -e A=1 -v /a:/b:ro -w /srv -u 1:2 -m 64m \
         --cpus 0.5 --pids-limit 20 --network none --entrypoint /bin/sh -l a=b -h box --privileged --read-only \
         --memory-swap -1 -c 512 --cpuset-cpus 0-1 --cpuset-mems 0 --cap-add NET_ADMIN --cap-drop ALL --device /dev/fuse:rw \
         --sysctl net.core.somaxconn=9 --dns 1.1.1.1 --stop-signal USR1 --pid host -v /own \
         --security-opt no-new-privileges=false --security-opt seccomp=unconfined --security-opt apparmor:mine \
         --tmpfs /run:size=1m --ulimit nofile=5:6 nginx -c date",
    );
    let port = |host_ip: &str, host_port, container_port, protocol: &str| PublishedPort {
        host_ip: host_ip.into(),
        host_port,
        container_port,
        protocol: protocol.into(),
    };
    assert_eq!(
        request,
        RunRequest {
            image: "nginx".into(),
            name: "web".into(),
            entrypoint: vec!["/bin/sh".into()],
            args: vec!["-c".into(), "date".into()],
            env: vec!["A=1".into()],
            working_dir: "/srv".into(),
            user: "1:2".into(),
            ports: vec![port("", 8080, 80, "tcp"), port("127.0.0.1", 53, 53, "udp")],
            volumes: vec![
                Volume { source: "/a".into(), destination: "/b".into(), read_only: true },
                Volume { source: String::new(), destination: "/own".into(), read_only: false },
            ],
            network: NetworkMode::None.into(),
            memory_bytes: 64 << 20,
            memory_swap_bytes: -1,
            cpu_millis: 500,
            cpu_shares: 512,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            add_capabilities: vec!["NET_ADMIN".into()],
            drop_capabilities: vec!["ALL".into()],
            devices: vec![Device {
                source: "/dev/fuse".into(),
                destination: "/dev/fuse".into(),
                permissions: "rw".into(),
            }],
            sysctls: [("net.core.somaxconn".to_owned(), "9".to_owned())].into(),
            dns_servers: vec!["1.1.1.1".into()],
            stop_signal: "USR1".into(),
            host_pid: true,
            no_new_privileges: Some(false),
            seccomp: "unconfined".into(),
            apparmor: "mine".into(),
            tmpfs: vec![Tmpfs { destination: "/run".into(), options: vec!["size=1m".into()] }],
            ulimits: vec![Ulimit { name: "nofile".into(), soft: 5, hard: 6 }],
            pids_limit: 20,
            labels: [("a".to_owned(), "b".to_owned())].into(),
            hostname: "box".into(),
            auto_remove: true,
            privileged: true,
            read_only_rootfs: true,
            ..Default::default()
        }
    );
}

#[test]
fn flags_behind_the_image_are_the_containers() {
    let request = parse("run --name x img -d --name y --help -- -p");
    assert_eq!(request.name, "x");
    assert_eq!(request.args, ["-d", "--name", "y", "--help", "--", "-p"]);
}

#[test]
fn removal_in_the_foreground_is_not_the_agents() {
    assert!(!parse("run --rm img").auto_remove);
}

#[test]
fn a_bad_value_says_what_is_valid() {
    assert!(refusal("run -p 80 img").contains("8080:80"));
    assert!(refusal("run -m lots img").contains("64m"));
    assert!(refusal("run --cpus 0 img").contains("0.5"));
    assert!(refusal("run --network mesh img").contains("bridge"));
    assert!(refusal("run --pids-limit 0 img").contains("pids-limit"));
    assert!(refusal("run --memory-swap x img").contains("64m"));
    assert!(refusal("run --cpu-shares 1 img").contains("cpu-shares"));
    assert!(refusal("run --device fuse img").contains("absolute"));
    assert!(refusal("run --sysctl a img").contains("NAME=VALUE"));
    assert!(refusal("run --dns here img").contains("dns"));
    assert!(refusal("run --pid mine img").contains("host"));
    assert!(refusal("run --bogus img").contains("--bogus"));
    assert!(refusal("run").contains("IMAGE"));
}

#[test]
fn short_flags_do_not_clash() {
    Line::command().debug_assert();
}
