//! Port-forward: connections to a pod's ports, each a stream of bytes and a stream of errors.
//!
//! Over SPDY the client opens both for every connection and names the port and the request they belong to. Over
//! WebSocket the ports are known from the start, and each has two channels and one connection.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, copy, split},
    sync::oneshot,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    pump::{Client, drain},
    remote::CREATION,
    spdy::{Connection, Limits, Stream},
    websocket::{Channels, Codec, Direction},
};
use crate::{
    error::Result,
    pods::{Pods, session},
};

/// The protocol of port-forward over SPDY, also over SPDY in WebSocket.
pub(super) const PROTOCOL: &str = "portforward.k8s.io";
/// Two streams for each connection.
const LIMITS: Limits = Limits { streams: 512 };
/// How long the pod's side may go on after the client's has ended. kubectl says nothing more of a local connection that
/// is gone, reads on, and throws away what comes: nobody can tell that from one that listens. Others give a second.
const AFTER_CLIENT: Duration = Duration::from_secs(60);

/// Serves a client that speaks SPDY.
pub(super) async fn serve(pods: &Pods, pod: &str, client: Client) {
    let mut connection = Connection::new(client, LIMITS);
    let mut waiting: HashMap<String, Half> = HashMap::new();
    let mut forwards = JoinSet::new();
    loop {
        let oldest = waiting.values().map(|half| half.since).min();
        let expired = async {
            match oldest {
                Some(since) => tokio::time::sleep_until(since + CREATION).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            stream = connection.accept() => {
                let Some(stream) = stream else { return };
                if let Some(pair) = pair(&mut waiting, stream) {
                    let (pods, pod) = (pods.clone(), pod.to_owned());
                    forwards.spawn(async move { pair.forward(&pods, &pod).await });
                }
            }
            Some(_) = forwards.join_next() => {}
            () = expired => {
                for (request, half) in waiting.extract_if(|_, half| half.since.elapsed() >= CREATION) {
                    forwards.spawn(half.time_out(request));
                }
            }
        }
    }
}

/// A stream that waits for the other of its pair.
struct Half {
    stream: Stream,
    kind: Kind,
    since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

/// Finds the pair of a stream, or keeps it until the other comes. One that makes no sense is dropped, which ends it.
fn pair(waiting: &mut HashMap<String, Half>, stream: Stream) -> Option<Pair> {
    let kind = match stream.headers.get("streamtype") {
        Some("data") => Kind::Data,
        Some("error") => Kind::Error,
        other => {
            tracing::debug!(kind = ?other, "a client opened a stream that port-forward does not know");
            return None;
        }
    };
    let request = match stream.headers.get("requestid") {
        Some(id) => id.to_owned(),
        // The first clients named none: they opened the error stream, and the data stream right after it.
        None => match kind {
            Kind::Error => stream.id.to_string(),
            Kind::Data => stream.id.saturating_sub(2).to_string(),
        },
    };
    match waiting.remove(&request) {
        None => {
            waiting.insert(request, Half { stream, kind, since: Instant::now() });
            None
        }
        Some(half) if half.kind != kind => {
            let (data, error) =
                if kind == Kind::Data { (stream, half.stream) } else { (half.stream, stream) };
            let port = data.headers.get("port").or(error.headers.get("port")).unwrap_or_default().to_owned();
            Some(Pair { port, data: data.io, reset: data.sent, error: error.io })
        }
        Some(half) => {
            tracing::debug!(request, "a client opened a stream twice");
            waiting.insert(request, half);
            None
        }
    }
}

impl Half {
    async fn time_out(self, request: String) {
        tracing::debug!(request, "a client opened only one of two streams");
        if self.kind == Kind::Error {
            let mut error = self.stream.io;
            let _ = error.write_all(b"timed out waiting for the data stream").await;
        }
    }
}

/// Both streams of one connection.
struct Pair {
    port: String,
    data: DuplexStream,
    /// Fails when the client gives the data stream up.
    reset: oneshot::Receiver<()>,
    error: DuplexStream,
}

impl Pair {
    async fn forward(mut self, pods: &Pods, pod: &str) {
        let port = match self.port.parse() {
            Ok(port) if port > 0 => port,
            _ => {
                let text = format!("{:?} is not a port: 1 to 65535", self.port);
                let _ = self.error.write_all(text.as_bytes()).await;
                return;
            }
        };
        tokio::select! {
            () = forward(pods, pod, port, self.data, self.error, Ends::Each(AFTER_CLIENT)) => {}
            Err(_) = self.reset => {}
        }
    }
}

/// When a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// When both sides have ended, or the pod's goes on for so long after the client's.
    Each(Duration),
    /// With the pod's side: there is no way in which the client could end its own.
    WithThePod,
}

/// Connects, and carries bytes both ways until the connection is over.
async fn forward(pods: &Pods, pod: &str, port: u16, data: DuplexStream, mut error: DuplexStream, ends: Ends) {
    let socket = match connect(pods, pod, port).await {
        Ok(socket) => socket,
        Err(reason) => {
            tracing::debug!(sandbox.id = pod, port, error = %reason.chain(), "a port is not forwarded");
            let text = format!("error forwarding port {port} to pod {pod}: {}", reason.chain());
            let _ = error.write_all(text.as_bytes()).await;
            return;
        }
    };
    let (from_pod, to_pod) = socket.into_split();
    carry(from_pod, to_pod, data, error, ends).await;
}

async fn carry(
    mut from_pod: impl AsyncRead + Unpin,
    mut to_pod: impl AsyncWrite + Unpin,
    data: DuplexStream,
    error: DuplexStream,
    ends: Ends,
) {
    let (mut from_client, mut to_client) = split(data);
    let down = async {
        let _ = copy(&mut from_pod, &mut to_client).await;
        let _ = to_client.shutdown().await;
        // Clients wait for its end before they close the local connection, which ends the way up.
        drop(error);
    };
    let up = async {
        let _ = copy(&mut from_client, &mut to_pod).await;
        let _ = to_pod.shutdown().await;
        // What the pod does not take must not hold up the client's other connections.
        let _ = drain(&mut from_client).await;
    };
    let (mut down, mut up) = (std::pin::pin!(down), std::pin::pin!(up));
    tokio::select! {
        () = &mut down => match ends {
            Ends::Each(_) => up.await,
            Ends::WithThePod => {}
        },
        () = &mut up => match ends {
            Ends::Each(limit) => drop(timeout(limit, down).await),
            Ends::WithThePod => down.await,
        },
    }
}

async fn connect(pods: &Pods, pod: &str, port: u16) -> Result<tokio::net::TcpStream> {
    let view = pods.find(pod)?;
    session::connect(&view.record, port).await
}

/// Serves a client that has two channels for each port: data and errors. Each begins with the port's number.
pub(super) async fn serve_channels(pods: &Pods, pod: &str, ports: &[u16], codec: Codec, client: Client) {
    let directions: Vec<_> = ports.iter().flat_map(|_| [Direction::Both, Direction::Output]).collect();
    let mut channels = Channels::open(client, codec, &directions).await;
    let mut forwards = JoinSet::new();
    // Clients take a number only from a message that has nothing else.
    for (number, port) in (0..).zip(ports.iter().flat_map(|port| [port, port])) {
        channels.greet(number, Bytes::copy_from_slice(&port.to_le_bytes())).await;
    }
    for (index, port) in ports.iter().copied().enumerate() {
        let (data, error) = (channels.take(index * 2), channels.take(index * 2 + 1));
        if let (Some((data, _)), Some((error, _))) = (data, error) {
            let (pods, pod) = (pods.clone(), pod.to_owned());
            forwards.spawn(async move { forward(&pods, &pod, port, data, error, Ends::WithThePod).await });
        }
    }
    let all = async { while forwards.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        () = channels.closed() => return,
    }
    // A client that wants another connection opens another WebSocket.
    channels.finish().await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, duplex};

    use super::{super::spdy::tests::Peer, *};

    /// The ports of the pairs that these streams make, and how many are left alone.
    async fn pairs(streams: &[&[(&str, &str)]]) -> (Vec<String>, usize) {
        let (mut peer, mut connection) = Peer::connect(16);
        let (mut waiting, mut ports) = (HashMap::new(), Vec::new());
        for (number, headers) in (0..).zip(streams) {
            peer.open_with(number * 2 + 1, headers).await;
            let stream = connection.accept().await.unwrap();
            ports.extend(pair(&mut waiting, stream).map(|pair| pair.port));
        }
        (ports, waiting.len())
    }

    const fn stream<'a>(kind: &'a str, port: &'a str, request: &'a str) -> [(&'a str, &'a str); 3] {
        [("streamtype", kind), ("port", port), ("requestid", request)]
    }

    /// A connection that is carried: the pod's end of it, and the client's two.
    fn carried(limit: Duration) -> (DuplexStream, DuplexStream, DuplexStream, tokio::task::JoinHandle<()>) {
        let ((pod, socket), (client, data), (errors, error)) = (duplex(1024), duplex(1024), duplex(16));
        let (from_pod, to_pod) = split(socket);
        let carrying = tokio::spawn(carry(from_pod, to_pod, data, error, Ends::Each(limit)));
        (pod, client, errors, carrying)
    }

    #[tokio::test]
    async fn a_pod_that_never_ends_is_left_some_time_after_its_client() {
        let (mut pod, mut client, mut errors, carrying) = carried(Duration::from_millis(50));
        tokio::spawn(async move { while pod.write_all(b"more ").await.is_ok() {} });
        client.shutdown().await.unwrap();
        timeout(AFTER_CLIENT, drain(&mut client)).await.expect("an end").unwrap();
        assert_eq!(errors.read(&mut [0]).await.unwrap(), 0, "no error, and an end");
        carrying.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_has_said_all_gets_its_answer() {
        let (mut pod, mut client, mut errors, carrying) = carried(AFTER_CLIENT);
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        pod.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        pod.write_all(b"answer").await.unwrap();
        drop(pod);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        assert_eq!(errors.read(&mut [0]).await.unwrap(), 0);
        carrying.await.unwrap();
    }

    #[tokio::test]
    async fn streams_of_one_request_find_each_other_in_any_order() {
        let streams = [
            stream("error", "80", "0"),
            stream("data", "81", "1"),
            stream("data", "80", "0"),
            stream("error", "81", "1"),
            stream("error", "82", "2"),
        ];
        let streams: Vec<&[_]> = streams.iter().map(<[_; 3]>::as_slice).collect();
        assert_eq!(pairs(&streams).await, (vec!["80".into(), "81".into()], 1));
    }

    #[tokio::test]
    async fn the_first_clients_named_no_request() {
        let error: &[_] = &[("streamtype", "error"), ("port", "80")];
        let data: &[_] = &[("streamtype", "data"), ("port", "80")];
        assert_eq!(pairs(&[error, data]).await, (vec!["80".into()], 0));
        assert_eq!(pairs(&[error, error, data, data]).await, (vec!["80".into()], 2));
    }

    #[tokio::test]
    async fn streams_that_make_no_sense_make_no_pair() {
        let double = stream("data", "80", "0");
        let other = stream("stdout", "80", "0");
        assert_eq!(pairs(&[&double, &double, &other, &[]]).await, (vec![], 1));
    }
}
