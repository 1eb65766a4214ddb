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
         nginx -c date",
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
            volumes: vec![Volume { source: "/a".into(), destination: "/b".into(), read_only: true }],
            network: NetworkMode::None.into(),
            memory_bytes: 64 << 20,
            cpu_millis: 500,
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
    assert!(refusal("run --bogus img").contains("--bogus"));
    assert!(refusal("run").contains("IMAGE"));
}

#[test]
fn short_flags_do_not_clash() {
    Line::command().debug_assert();
}
