//! A registry of a few lines over real sockets, which can be told to misbehave.
//!
//! It speaks as much HTTP/1.1 as a registry client needs, notes every request, and serves what was published.
//! A rule may answer in place of it, so that each test reads as what goes wrong.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use crate::images::{Blob, TestImage};

/// Where nobody listens, and where no other test comes to: it is none of the ports that the kernel gives.
pub(crate) const CLOSED: &str = "127.0.0.1:1";

/// What a client asked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
    /// As far as it is text.
    pub(crate) body: String,
    pub(crate) bytes: Vec<u8>,
    /// How many requests for the same path came before.
    pub(crate) earlier: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    /// The first byte asked for.
    pub(crate) fn from(&self) -> usize {
        let range = self.header("range").and_then(|text| text.strip_prefix("bytes=")?.strip_suffix('-'));
        range.map_or(0, |from| from.parse().unwrap())
    }
}

/// In place of a status: the connection breaks without an answer.
pub(crate) const NO_ANSWER: u16 = 0;

/// What is answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// In place of the body's own length.
    pub(crate) length: Option<usize>,
    /// Breaks the connection after so many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// Between pieces of 1 KiB.
    pub(crate) pace: Option<Duration>,
    /// Sends nothing after the cut instead of breaking the connection.
    pub(crate) hang: bool,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Reply {
        Reply { status: 200, body: body.into(), ..Reply::default() }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }

    /// What an honest server says to a request for `blob`, ranges included.
    pub(crate) fn blob(request: &Request, blob: &[u8]) -> Reply {
        match request.from() {
            0 => Reply::ok(blob),
            from => Reply { status: 206, ..Reply::ok(&blob[from..]) }
                .header("Content-Range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len())),
        }
    }

    pub(crate) fn cut(self, after: usize) -> Reply {
        Reply { cut: Some(after), ..self }
    }
}

type Rule = Box<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;

#[derive(Default)]
struct State {
    content: Mutex<HashMap<String, (String, Blob)>>,
    requests: Mutex<Vec<Request>>,
    rules: Mutex<Vec<Rule>>,
}

/// A running registry. It ends with the test.
#[derive(Clone)]
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

impl Registry {
    pub(crate) async fn start() -> Registry {
        Registry::start_with(None).await
    }

    /// Over TLS, if there is a configuration for it.
    pub(crate) async fn start_with(tls: Option<ServerConfig>) -> Registry {
        let acceptor = tls.map(|tls| TlsAcceptor::from(Arc::new(tls)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let serving = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, acceptor) = (serving.clone(), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => serve(stream, state).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, state).await;
                            }
                        }
                    }
                });
            }
        });
        Registry { address, state }
    }

    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn put(&self, path: String, content_type: &str, body: impl Into<Blob>) {
        self.state.content.lock().unwrap().insert(path, (content_type.to_owned(), body.into()));
    }

    /// What is there at this path.
    pub(crate) fn stored(&self, path: &str) -> Option<Vec<u8>> {
        self.state.content.lock().unwrap().get(path).map(|(_, body)| body.to_vec())
    }

    /// Makes an image available under `app:tag` and by its digest.
    pub(crate) fn publish(&self, repository: &str, tag: &str, image: &TestImage) {
        for blob in image.blobs() {
            self.put(format!("/v2/{repository}/blobs/{}", digest(&blob)), "application/octet-stream", blob);
        }
        for name in [tag, &digest(&image.manifest)] {
            let path = format!("/v2/{repository}/manifests/{name}");
            self.put(path, "application/vnd.oci.image.manifest.v1+json", image.manifest.clone());
        }
    }

    /// Answers in place of the registry whenever `rule` returns something.
    pub(crate) fn rule(&self, rule: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) {
        self.state.rules.lock().unwrap().push(Box::new(rule));
    }

    /// From now on it is an honest registry again.
    pub(crate) fn clear_rules(&self) {
        self.state.rules.lock().unwrap().clear();
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// How many requests there were whose path has `part` in it.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.requests().iter().filter(|request| request.path().contains(part)).count()
    }
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    sampan_imagestore::Digest::of(bytes).to_string()
}

/// What a connection is, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

async fn serve(stream: impl Stream, state: Arc<State>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = receive(&mut stream, &state).await {
        let rules = state.rules.lock().unwrap().iter().find_map(|rule| rule(&request));
        let reply = rules.unwrap_or_else(|| answer(&request, &state));
        if send(stream.get_mut(), reply, request.method == "HEAD").await.is_none() {
            return;
        }
    }
}

async fn receive(stream: &mut BufReader<impl Stream>, state: &State) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|&length| length > 0)?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut words = lines.first()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers: HashMap<String, String> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |text| text.parse().unwrap());
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.ok()?;
    let body = String::from_utf8(bytes.clone()).unwrap_or_default();
    let mut requests = state.requests.lock().unwrap();
    let mut request = Request { method, target, headers, body, bytes, earlier: 0 };
    request.earlier = requests.iter().filter(|other| other.path() == request.path()).count();
    requests.push(request.clone());
    Some(request)
}

fn answer(request: &Request, state: &State) -> Reply {
    match state.content.lock().unwrap().get(request.path()) {
        Some((content_type, body)) => Reply::blob(request, body).header("Content-Type", content_type.clone()),
        None => {
            Reply { status: 404, ..Reply::ok(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no"}]}"#) }
        }
    }
}

/// `None` when the connection is at its end.
async fn send(stream: &mut impl Stream, reply: Reply, head_only: bool) -> Option<()> {
    if reply.status == NO_ANSWER {
        return None;
    }
    let length = reply.length.unwrap_or(reply.body.len());
    let mut head = format!("HTTP/1.1 {} Status\r\nContent-Length: {length}\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes()).await.ok()?;
    let end = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
    // What asks for the head alone gets no body, whatever its length is said to be.
    let end = if head_only { 0 } else { end };
    for piece in reply.body[..end].chunks(if reply.pace.is_some() { 1 << 10 } else { 1 << 20 }) {
        stream.write_all(piece).await.ok()?;
        if let Some(pace) = reply.pace {
            tokio::time::sleep(pace).await;
        }
    }
    if reply.hang {
        std::future::pending::<()>().await;
    }
    if reply.cut.is_some() {
        // What was sent arrives; then the connection is gone in the middle.
        stream.shutdown().await.ok()?;
        return None;
    }
    Some(())
}
