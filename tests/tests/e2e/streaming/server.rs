//! The server itself: what it refuses, how long its URLs are good for, what aborted clients leave behind, TLS.

use std::time::Duration;

use k8s_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use sampan_tests::{Agent, Options, eventually, with_agent, with_agent_of};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tonic::Code;

use super::api::Target;
use super::client::tool;
use super::websocket::{channel, exec_url, speak};
use super::{SLEEPER, SOON, runs, target};

const SPDY: &str =
    "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";

const WEBSOCKET: &str =
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n";

/// Sends a request to a streaming URL with another path, and gives the connection and the answer's head.
async fn request(url: &str, path: &str, method: &str, headers: &str) -> (TcpStream, String) {
    let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    (stream, String::from_utf8(head).unwrap().to_lowercase())
}

async fn status(url: &str, path: &str, method: &str, headers: &str) -> u16 {
    let (_, head) = request(url, path, method, headers).await;
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

fn path(url: &str) -> String {
    format!("/{}", url.splitn(4, '/').nth(3).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_is_good_once_and_only_for_what_it_was_given() {
    with_agent(async |agent| {
        let (target, _api) = target(agent, SLEEPER).await;
        let url = exec_url(&target, &["true"], false).await;
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        assert_eq!(path(&url).len(), "/exec/".len() + 32, "128 bits in hexadecimal");
        let (_open, head) = request(&url, &path(&url), "POST", SPDY).await;
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        for line in ["connection: upgrade", "upgrade: spdy/3.1", "x-stream-protocol-version: v4.channel.k8s.io"] {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {head}");
        }
        assert_eq!(status(&url, &path(&url), "POST", SPDY).await, 404, "used");
        let fresh = async || exec_url(&target, &["true"], false).await;
        assert_eq!(status(&url, &path(&fresh().await).replace("exec", "attach"), "POST", SPDY).await, 404);
        for wrong in ["/", "/exec", "/exec/", "/exec/00000000000000000000000000000000", "/metrics", "/exec/../x"] {
            assert_eq!(status(&url, wrong, "POST", SPDY).await, 404, "{wrong}");
        }
        let good = fresh().await;
        assert_eq!(status(&url, &path(&good), "PUT", SPDY).await, 405);
        assert_eq!(status(&url, &path(&good), "GET", SPDY).await, 101, "a wrong method uses nothing up");
        for (headers, refusal) in [
            ("", 400),
            ("X-Stream-Protocol-Version: v4.channel.k8s.io\r\n", 400),
            ("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n", 400),
            ("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9.channel.k8s.io\r\n", 403),
            ("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n", 400),
            ("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 8\r\n", 400),
            (
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Protocol: v9.channel.k8s.io\r\n",
                403,
            ),
        ] {
            assert_eq!(status(&url, &path(&fresh().await), "POST", headers).await, refusal, "{headers}");
        }
        target.cri.clear_pod(&target.pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_can_never_work_are_refused_before_there_is_a_url() {
    with_agent(async |agent| {
        let (target, _api) = target(agent, SLEEPER).await;
        let mut runtime = target.cri.runtime.clone();
        let good = ExecRequest {
            container_id: target.container.clone(),
            cmd: vec!["true".into()],
            stdout: true,
            ..ExecRequest::default()
        };
        for (wrong, code) in [
            (ExecRequest { tty: true, stderr: true, ..good.clone() }, Code::InvalidArgument),
            (ExecRequest { stdout: false, ..good.clone() }, Code::InvalidArgument),
            (ExecRequest { cmd: vec![], ..good.clone() }, Code::InvalidArgument),
            (ExecRequest { container_id: "nobody".into(), ..good.clone() }, Code::NotFound),
        ] {
            assert_eq!(runtime.exec(wrong.clone()).await.unwrap_err().code(), code, "{wrong:?}");
        }
        let attach =
            AttachRequest { container_id: target.container.clone(), stdout: true, ..Default::default() };
        let wrong = AttachRequest { tty: true, stderr: true, ..attach.clone() };
        assert_eq!(runtime.attach(wrong).await.unwrap_err().code(), Code::InvalidArgument);
        for port in [0, -1, 65536] {
            let wrong = PortForwardRequest { pod_sandbox_id: target.pod.clone(), port: vec![port] };
            assert_eq!(
                runtime.port_forward(wrong).await.unwrap_err().code(),
                Code::InvalidArgument,
                "{port}"
            );
        }
        let wrong = PortForwardRequest { pod_sandbox_id: "nobody".into(), port: vec![] };
        assert_eq!(runtime.port_forward(wrong).await.unwrap_err().code(), Code::NotFound);
        target.cri.stop(&target.container, 0).await.unwrap();
        assert_eq!(runtime.exec(good).await.unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!(runtime.attach(attach).await.unwrap_err().code(), Code::FailedPrecondition);
        target.cri.stop_pod(&target.pod).await.unwrap();
        let late = PortForwardRequest { pod_sandbox_id: target.pod.clone(), port: vec![80] };
        assert_eq!(runtime.port_forward(late).await.unwrap_err().code(), Code::FailedPrecondition);
        target.cri.clear_pod(&target.pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_urls_may_wait() {
    with_agent(async |agent| {
        let (target, _api) = target(agent, SLEEPER).await;
        let mut urls = Vec::new();
        for _ in 0..1000 {
            urls.push(exec_url(&target, &["true"], false).await);
        }
        let request = ExecRequest {
            container_id: target.container.clone(),
            cmd: vec!["true".into()],
            stdout: true,
            ..ExecRequest::default()
        };
        let mut runtime = target.cri.runtime.clone();
        assert_eq!(runtime.exec(request.clone()).await.unwrap_err().code(), Code::ResourceExhausted);
        assert_eq!(status(&urls[0], &path(&urls[0]), "POST", SPDY).await, 101);
        runtime.exec(request).await.unwrap();
        urls.sort();
        urls.dedup();
        assert_eq!(urls.len(), 1000);
        target.cri.clear_pod(&target.pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_abort_leave_nothing() {
    with_agent(async |agent| {
        let (target, _api) = target(agent, SLEEPER).await;
        let before = descriptors(agent);
        let aborts: Vec<_> = (0..10).map(|_| tokio::spawn(abort_often(target.clone()))).collect();
        for abort in aborts {
            abort.await.unwrap();
        }
        eventually("all descriptors are closed", SOON, async || {
            (descriptors(agent) <= before + 2).then_some(())
        })
        .await;
        assert_eq!(
            target.cri.sh(&target.container, "ps -o args | grep -c '[s]leep 4815' || true").await,
            "0"
        );
        target.cri.clear_pod(&target.pod).await.unwrap();
    })
    .await;
}

/// Leaves at another point each time: before the request, in it, after the upgrade, after garbage, during the command.
async fn abort_often(target: Target) {
    for round in 0..30 {
        let url = exec_url(&target, &["sleep", "4815"], round % 2 == 0).await;
        let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
        match round % 5 {
            0 => drop(TcpStream::connect(address).await.unwrap()),
            1 => TcpStream::connect(address).await.unwrap().write_all(b"POST /exec/").await.unwrap(),
            2 => drop(request(&url, &path(&url), "POST", SPDY).await),
            3 => {
                let (mut stream, _) = request(&url, &path(&url), "POST", SPDY).await;
                stream.write_all(&[0x80, 3, 0, 1, 0, 0, 0, 1, 0xff]).await.unwrap();
            }
            _ => {
                let (mut stream, _) = request(&url, &path(&url), "GET", WEBSOCKET).await;
                // The greeting: the command is about to start.
                stream.read_u8().await.unwrap();
                tokio::time::sleep(Duration::from_millis(round)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_while_its_input_is_not_read_is_noticed() {
    with_agent(async |agent| {
        let (target, _api) = target(agent, SLEEPER).await;
        let command = "sleep 4816";
        let url = exec_url(&target, &["sleep", "4816"], true).await;
        let (mut stream, _) = request(&url, &path(&url), "GET", WEBSOCKET).await;
        eventually("it runs", SOON, async || {
            runs(&target.cri, &target.container, command).await.then_some(())
        })
        .await;
        // Binary messages of 8 KiB to channel 0, masked with zeros, until every pipe on the way is full.
        let mut message = vec![0x82, 0xfe, 0x20, 0, 0, 0, 0, 0];
        message.resize(8 + (8 << 10), 0);
        let full = Duration::from_millis(500);
        while tokio::time::timeout(full, stream.write_all(&message)).await.is_ok() {}
        assert!(runs(&target.cri, &target.container, command).await);
        drop(stream);
        eventually("it is gone", SOON, async || {
            (!runs(&target.cri, &target.container, command).await).then_some(())
        })
        .await;
        target.cri.clear_pod(&target.pod).await.unwrap();
    })
    .await;
}

fn descriptors(agent: &Agent) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", agent.scope().pid)).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_served_over_tls_where_it_is_configured() {
    let folder = tempfile::tempdir().unwrap();
    let [certificate, key] =
        ["certificate.pem", "key.pem"].map(|name| folder.path().join(name).display().to_string());
    tool(
        Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args([
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=node",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
                "-keyout",
                &key,
                "-out",
                &certificate,
            ]),
    )
    .await;
    let configuration = format!("[streaming]\ncertificate = {certificate:?}\nkey = {key:?}\n");
    with_agent_of(Options { configuration, ..Options::default() }, async |agent| {
        let (target, _api) = target(agent, SLEEPER).await;
        let url = exec_url(&target, &["cat"], true).await;
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        let large = "x".repeat(100_000);
        let messages = json!([["binary", format!("\0{large}")], ["binary", "\u{ff}\0"]]);
        let seen = speak(&url, "v5.channel.k8s.io", messages, Some(&certificate)).await;
        assert!(channel(&seen, 1) == large, "other bytes came back");
        target.cri.clear_pod(&target.pod).await.unwrap();
    })
    .await;
}
