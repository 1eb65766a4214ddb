//! As much of an API server as kubectl and the Kubernetes client libraries need to stream with one pod.
//!
//! It answers what the pod is, and does for exec, attach and port-forward what kubelet does: asks CRI for a URL,
//! passes the client's upgrade request on to it, and carries bytes from then on. What clients asked to be spoken to with
//! is kept for the tests.

use std::sync::{Arc, Mutex};

use k8s_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use sampan_tests::Cri;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The pod that clients see, and what it is to CRI.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) cri: Cri,
    pub(super) pod: String,
    pub(super) container: String,
}

#[derive(Debug)]
pub(super) struct Api {
    /// `http://127.0.0.1:PORT`.
    pub(super) url: String,
    /// Upgrade and protocol of every streaming request so far.
    seen: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Api {
    pub(super) async fn start(target: Target) -> Api {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (target, log) = (target.clone(), log.clone());
                // A client may leave whenever it likes.
                tokio::spawn(async move { drop(serve(client, target, log).await) });
            }
        });
        Api { url, seen, task }
    }

    /// What the streaming requests asked for since the last call: `UPGRADE PROTOCOLS`.
    pub(super) fn seen(&self) -> Vec<String> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

struct Request {
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
}

impl Request {
    fn header(&self, name: &str) -> String {
        let values = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        values.map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn values(&self, name: &str) -> Vec<String> {
        self.query.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    }

    fn is_true(&self, name: &str) -> bool {
        self.values(name).iter().any(|value| value.eq_ignore_ascii_case("true") || value == "1")
    }
}

async fn serve(mut client: TcpStream, target: Target, seen: Arc<Mutex<Vec<String>>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let request = parse(&head);
    let Some(action) = ["exec", "attach", "portforward"]
        .into_iter()
        .find(|action| request.path == format!("/api/v1/namespaces/default/pods/target/{action}"))
    else {
        return answer(&mut client, &resource(&request.path)).await;
    };
    let protocols = ["X-Stream-Protocol-Version", "Sec-WebSocket-Protocol"].map(|name| request.header(name));
    seen.lock().unwrap().push(format!("{} {}", request.header("Upgrade"), protocols.concat()));
    let url = match stream_url(&target, action, &request).await {
        Ok(url) => url,
        Err(status) => {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": status.message(), "code": 500,
            });
            return answer(&mut client, &Some(status)).await;
        }
    };
    let (address, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).unwrap();
    let mut backend = TcpStream::connect(address).await?;
    let rest = head.split_once("\r\n").unwrap().1;
    backend.write_all(format!("POST /{path} HTTP/1.1\r\n{rest}").as_bytes()).await?;
    tokio::io::copy_bidirectional(&mut client, &mut backend).await?;
    Ok(())
}

async fn stream_url(target: &Target, action: &str, request: &Request) -> Result<String, tonic::Status> {
    let mut runtime = target.cri.runtime.clone();
    let container_id = target.container.clone();
    let [stdin, stdout, stderr, tty] = ["stdin", "stdout", "stderr", "tty"].map(|name| request.is_true(name));
    Ok(match action {
        "exec" => {
            let cmd = request.values("command");
            let asked = ExecRequest { container_id, cmd, tty, stdin, stdout, stderr };
            runtime.exec(asked).await?.into_inner().url
        }
        "attach" => {
            let asked = AttachRequest { container_id, tty, stdin, stdout, stderr };
            runtime.attach(asked).await?.into_inner().url
        }
        _ => {
            let lists = request.values("ports").join(",");
            let port = lists.split(',').filter_map(|port| port.parse().ok());
            let asked = PortForwardRequest { pod_sandbox_id: target.pod.clone(), port: port.collect() };
            runtime.port_forward(asked).await?.into_inner().url
        }
    })
}

fn resource(path: &str) -> Option<Value> {
    Some(match path {
        "/version" => json!({ "major": "1", "minor": "32", "gitVersion": "v1.32.0" }),
        "/api" => json!({ "kind": "APIVersions", "versions": ["v1"] }),
        "/apis" => json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] }),
        "/api/v1" => json!({
            "kind": "APIResourceList", "groupVersion": "v1",
            "resources": [{ "name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get"] }],
        }),
        "/api/v1/namespaces/default/pods/target" => json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": { "name": "target", "namespace": "default", "uid": "1" },
            "spec": { "containers": [{ "name": "c", "image": "i", "stdin": true, "tty": true }] },
            "status": { "phase": "Running", "containerStatuses": [{ "name": "c", "ready": true, "restartCount": 0,
                "image": "i", "imageID": "i", "state": { "running": {} } }] },
        }),
        _ => return None,
    })
}

async fn answer(client: &mut TcpStream, body: &Option<Value>) -> std::io::Result<()> {
    let (status, body) = match body {
        Some(body) if body["status"] == "Failure" => ("500 Internal Server Error", body.to_string()),
        Some(body) => ("200 OK", body.to_string()),
        None => ("404 Not Found", String::new()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    client.write_all(format!("{head}{body}").as_bytes()).await?;
    client.shutdown().await
}

fn parse(head: &str) -> Request {
    let mut lines = head.split("\r\n");
    let target = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let headers = lines.filter_map(|line| line.split_once(": "));
    Request {
        path: path.to_owned(),
        query: pairs.map(|(key, value)| (decode(key), decode(value))).collect(),
        headers: headers.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
    }
}

/// Percent-decoding of a query.
fn decode(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match (first, code.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
