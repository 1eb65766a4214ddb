//! WebSocket clients in Python: Kubernetes' own library, and the channel protocols by hand where that speaks only one.

use k8s_cri::v1::{ExecRequest, PortForwardRequest};
use sampan_tests::{eventually, with_agent};
use serde_json::{Value, json};

use super::api::Target;
use super::client::{python, run};
use super::{SLEEPER, SOON, target};

const EXEC: &str = r#"
import sys
from kubernetes import client
from kubernetes.stream import stream
configuration = client.Configuration()
configuration.host = sys.argv[1]
api = client.CoreV1Api(client.ApiClient(configuration))
session = stream(api.connect_get_namespaced_pod_exec, "target", "default", container="c", command=sys.argv[2:],
                 stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False)
session.write_stdin("hello\n")
session.run_forever(timeout=20)
sys.stdout.write(session.read_stdout())
sys.stderr.write(session.read_stderr())
sys.exit(session.returncode)
"#;

const FORWARD: &str = r#"
import sys
from kubernetes import client
from kubernetes.stream import portforward
configuration = client.Configuration()
configuration.host = sys.argv[1]
api = client.CoreV1Api(client.ApiClient(configuration))
forward = portforward(api.connect_get_namespaced_pod_portforward, "target", "default", ports="80,82")
socket = forward.socket(80)
socket.setblocking(True)
socket.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
answer = b""
while piece := socket.recv(65536):
    answer += piece
print(answer.decode().splitlines()[-1])
closed = forward.socket(82)
closed.setblocking(True)
assert closed.recv(100) == b""
print(forward.error(82))
"#;

/// Sends messages, given as JSON, and prints what comes until the server closes.
const RAW: &str = r#"
import json, sys, websocket
url, protocol, messages = sys.argv[1:4]
options = {"ca_certs": sys.argv[4]} if len(sys.argv) > 4 else None
ws = websocket.create_connection(url.replace("http", "ws", 1), timeout=30, sslopt=options,
                                 subprotocols=[protocol] if protocol else None)
for kind, data in json.loads(messages):
    ws.send(data.encode("latin-1"), websocket.ABNF.OPCODE_TEXT if kind == "text" else websocket.ABNF.OPCODE_BINARY)
seen = {"protocol": ws.getsubprotocol(), "messages": []}
while True:
    kind, data = ws.recv_data()
    if kind == websocket.ABNF.OPCODE_CLOSE:
        seen["close"] = int.from_bytes(data[:2], "big")
        break
    seen["messages"].append(["text" if kind == websocket.ABNF.OPCODE_TEXT else "binary", data.decode("latin-1")])
print(json.dumps(seen))
"#;

/// Speaks to a streaming URL by hand; a certificate is for TLS.
pub(super) async fn speak(url: &str, protocol: &str, messages: Value, certificate: Option<&str>) -> Value {
    let messages = messages.to_string();
    let mut words = vec![protocol, &messages];
    words.extend(certificate);
    let ended = run(python(url, RAW, &words), b"").await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    serde_json::from_slice(&ended.stdout).unwrap()
}

/// What came on a channel, put together; a base64 channel's digit counts too.
pub(super) fn channel(seen: &Value, number: u8) -> String {
    let messages = seen["messages"].as_array().unwrap().iter().map(|message| message[1].as_str().unwrap());
    messages.filter_map(|text| text.strip_prefix(char::from(number))).collect()
}

pub(super) async fn exec_url(target: &Target, words: &[&str], stdin: bool) -> String {
    let request = ExecRequest {
        container_id: target.container.clone(),
        cmd: words.iter().map(|word| (*word).to_owned()).collect(),
        stdin,
        stdout: true,
        stderr: true,
        tty: false,
    };
    target.cri.runtime.clone().exec(request).await.unwrap().into_inner().url
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_library_runs_commands() {
    with_agent(async |agent| {
        let (target, api) = target(agent, SLEEPER).await;
        let words = ["sh", "-c", "read word; echo got $word; echo err >&2; exit 4"];
        let ended = run(python(&api.url, EXEC, &words), b"").await;
        assert_eq!((ended.code, ended.text().as_str()), (Some(4), "got hello\n"), "{}", ended.stderr);
        assert_eq!(ended.stderr, "err\n");
        assert_eq!(api.seen(), ["websocket v4.channel.k8s.io"]);
        target.cri.clear_pod(&target.pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_library_forwards_ports() {
    with_agent(async |agent| {
        let (target, api) = target(agent, "echo hello > /tmp/index.html; exec httpd -f -p 80 -h /tmp").await;
        eventually("the server listens", SOON, async || {
            let listening = "netstat -ltn | grep -q ':80 ' && echo yes || echo no";
            (target.cri.sh(&target.container, listening).await == "yes").then_some(())
        })
        .await;
        let ended = run(python(&api.url, FORWARD, &[]), b"").await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let text = ended.text();
        let (page, error) = text.trim_end().split_once('\n').unwrap();
        assert_eq!(page, "hello");
        assert!(error.contains("port 82") && error.contains("refused"), "{error}");
        assert_eq!(api.seen(), ["websocket v4.channel.k8s.io"]);
        target.cri.clear_pod(&target.pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_of_the_channel_protocol_is_spoken() {
    with_agent(async |agent| {
        let (target, _api) = target(agent, SLEEPER).await;
        let words = ["sh", "-c", "read word; echo got $word; echo err >&2; exit 3"];
        for (protocol, versioned) in [("v4.channel.k8s.io", true), ("channel.k8s.io", false), ("", false)] {
            let url = exec_url(&target, &words, true).await;
            let seen = speak(&url, protocol, json!([["binary", "\0hello\n"]]), None).await;
            assert_eq!(seen["protocol"].as_str().unwrap_or_default(), protocol);
            assert_eq!(seen["messages"][0], json!(["binary", "\u{1}"]), "a first message says that it works");
            assert_eq!((channel(&seen, 1), channel(&seen, 2)), ("got hello\n".into(), "err\n".into()));
            let status = channel(&seen, 3);
            assert_eq!(status.starts_with('{'), versioned, "{status}");
            assert!(status.contains('3'), "{status}");
            assert_eq!(seen["close"], 1000);
        }
        for protocol in ["v4.base64.channel.k8s.io", "base64.channel.k8s.io"] {
            let url = exec_url(&target, &words, true).await;
            let seen = speak(&url, protocol, json!([["text", "0aGVsbG8K"]]), None).await;
            assert_eq!(seen["messages"][0], json!(["text", "1"]), "{seen}");
            assert_eq!(
                (channel(&seen, b'1'), channel(&seen, b'2')),
                ("Z290IGhlbGxvCg==".into(), "ZXJyCg==".into())
            );
        }
        // From version 5 on a client can end its input.
        let url = exec_url(&target, &["cat"], true).await;
        let messages = json!([["binary", "\0some"], ["binary", "\0 words"], ["binary", "\u{ff}\0"]]);
        let seen = speak(&url, "v5.channel.k8s.io", messages, None).await;
        assert_eq!(channel(&seen, 1), "some words");
        assert_eq!(serde_json::from_str::<Value>(&channel(&seen, 3)).unwrap()["status"], "Success");
        target.cri.clear_pod(&target.pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_make_no_sense_are_passed_over() {
    with_agent(async |agent| {
        let (target, _api) = target(agent, SLEEPER).await;
        let url = exec_url(&target, &["cat"], true).await;
        let nonsense = json!([
            ["binary", ""],
            ["binary", "\u{9}x"],
            ["binary", "\u{ff}"],
            ["binary", "\u{ff}\u{63}"],
            ["binary", "\u{4}{not a size"],
            ["binary", "\u{1}to stdout"],
            ["binary", "\0fine"],
            ["binary", "\u{ff}\0"],
        ]);
        let seen = speak(&url, "v5.channel.k8s.io", nonsense, None).await;
        assert_eq!(channel(&seen, 1), "fine");
        let url = exec_url(&target, &["head", "-c", "4"], true).await;
        let nonsense = json!([["text", "0***"], ["text", "/"], ["text", "0ZmluZQ=="]]);
        let seen = speak(&url, "v4.base64.channel.k8s.io", nonsense, None).await;
        assert_eq!(channel(&seen, b'1'), "ZmluZQ==");
        target.cri.clear_pod(&target.pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_port_has_two_channels_that_begin_with_its_number() {
    with_agent(async |agent| {
        let (target, _api) = target(agent, SLEEPER).await;
        let request = PortForwardRequest { pod_sandbox_id: target.pod.clone(), port: vec![258, 9] };
        let url = target.cri.runtime.clone().port_forward(request).await.unwrap().into_inner().url;
        let seen = speak(&url, "v4.channel.k8s.io", json!([]), None).await;
        for (number, port) in [(0, "\u{2}\u{1}"), (2, "\u{9}\0")] {
            let first = |number: u8| {
                let messages: Vec<_> =
                    seen["messages"].as_array().unwrap().iter().map(|m| m[1].as_str().unwrap()).collect();
                messages.into_iter().find_map(|text| text.strip_prefix(char::from(number))).map(str::to_owned)
            };
            assert_eq!((first(number).as_deref(), first(number + 1).as_deref()), (Some(port), Some(port)));
            assert_eq!(channel(&seen, number), port);
            let error = channel(&seen, number + 1);
            assert!(error.starts_with(port) && error.contains("refused"), "{error}");
        }
        target.cri.clear_pod(&target.pod).await.unwrap();
    })
    .await;
}
