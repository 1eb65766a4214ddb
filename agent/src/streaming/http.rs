//! What the streaming server answers before a connection becomes something else: HTTP/1.1.
//!
//! Answers are those of kubelet's own server, whose clients this one has: 404 for a ticket that is unknown, used or too
//! old, 405 for anything but GET and POST, 400 for a request that does not ask for an upgrade, 403 when there
//! is no protocol both sides speak. `Origin` says nothing: whoever has the ticket was given it.

use std::{future::pending, io::ErrorKind, os::fd::OwnedFd, sync::Arc, time::Duration};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{
        ALLOW, CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use tokio::{io::Interest, net::TcpStream, time::timeout};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{Job, Shared, forward, pump::Client, remote, websocket};

const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY: &str = "SPDY/3.1";

/// How long nothing may come or go before a connection counts as dead.
const IDLE: Duration = Duration::from_secs(4 * 3600);
/// How long hyper may take to hand over a connection that it has answered.
const HANDOVER: Duration = Duration::from_secs(30);
/// A client that has closed its side gets this long until what it sent has been read.
const LAST_BYTES: Duration = Duration::from_secs(2);

type Answer = Response<String>;

/// Answers one request; the work after an upgrade goes on by itself.
pub(super) fn answer(shared: &Arc<Shared>, mut request: Request<Incoming>, socket: Arc<OwnedFd>) -> Answer {
    let upgrade = hyper::upgrade::on(&mut request);
    match agree(shared, &request) {
        Ok((answer, job, transport)) => {
            tokio::spawn(serve(shared.clone(), job, transport, upgrade, socket));
            answer
        }
        Err(refusal) => {
            tracing::debug!(status = %refusal.status(), reason = refusal.body().trim(), "a streaming request is refused");
            *refusal
        }
    }
}

/// What a client is spoken to with, and the protocol in it.
#[derive(Debug, PartialEq, Eq)]
enum Transport {
    Spdy(&'static str),
    WebSocket(Option<&'static str>),
}

fn agree(shared: &Shared, request: &Request<Incoming>) -> Result<(Answer, Job, Transport), Box<Answer>> {
    let not_found = || refuse(StatusCode::NOT_FOUND, "404 page not found");
    let (kind, ticket) =
        request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/')).ok_or_else(not_found)?;
    if !["exec", "attach", "portforward"].contains(&kind) {
        return Err(not_found());
    }
    if ![Method::GET, Method::POST].contains(request.method()) {
        let mut answer = refuse(StatusCode::METHOD_NOT_ALLOWED, "405: method not allowed");
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
        return Err(answer);
    }
    let job = shared.redeem(ticket).filter(|job| job.path() == kind).ok_or_else(not_found)?;
    let (answer, transport) = negotiate(&job, request.headers())?;
    Ok((answer, job, transport))
}

fn negotiate(job: &Job, headers: &HeaderMap) -> Result<(Answer, Transport), Box<Answer>> {
    let upgrades = words(headers, &CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade"));
    let to = |name: &str| upgrades && words(headers, &UPGRADE).any(|word| word.eq_ignore_ascii_case(name));
    let forwards = matches!(job, Job::PortForward { .. });
    if to("websocket") {
        let known: &[_] = if forwards { &websocket::FORWARD_PROTOCOLS } else { &websocket::PROTOCOLS };
        return negotiate_websocket(known, headers);
    }
    let known: &[_] = if forwards { &[forward::PROTOCOL] } else { &remote::PROTOCOLS };
    if words(headers, &PROTOCOL_VERSION).next().is_none() {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "unable to upgrade: X-Stream-Protocol-Version is required",
        ));
    }
    let Some(protocol) = first_known(headers, &PROTOCOL_VERSION, known) else {
        let mut answer = unknown_protocol(headers, &PROTOCOL_VERSION, known);
        for name in known {
            answer.headers_mut().append(ACCEPTED_VERSIONS, HeaderValue::from_static(name));
        }
        return Err(answer);
    };
    if !to(SPDY) {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "unable to upgrade: neither \"Upgrade: SPDY/3.1\" nor \"Upgrade: websocket\"",
        ));
    }
    let mut answer = switching(SPDY);
    answer.headers_mut().insert(PROTOCOL_VERSION, HeaderValue::from_static(protocol));
    Ok((answer, Transport::Spdy(protocol)))
}

fn negotiate_websocket(
    known: &[&'static str],
    headers: &HeaderMap,
) -> Result<(Answer, Transport), Box<Answer>> {
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let mut answer = refuse(StatusCode::BAD_REQUEST, "WebSocket of another version than 13");
        answer.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(answer);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY);
    let key = key.ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing"))?;
    let protocol = first_known(headers, &SEC_WEBSOCKET_PROTOCOL, known);
    if protocol.is_none() && words(headers, &SEC_WEBSOCKET_PROTOCOL).next().is_some() {
        return Err(unknown_protocol(headers, &SEC_WEBSOCKET_PROTOCOL, known));
    }
    let mut answer = switching("websocket");
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|error| refuse(StatusCode::BAD_REQUEST, &error.to_string()))?;
    answer.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(protocol) = protocol {
        answer.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok((answer, Transport::WebSocket(protocol)))
}

/// The words of a list that may stand in several headers.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

/// The first of the client's protocols that is known: it names them in its own order.
fn first_known(headers: &HeaderMap, name: &HeaderName, known: &[&'static str]) -> Option<&'static str> {
    words(headers, name).find_map(|word| known.iter().find(|known| **known == word).copied())
}

fn unknown_protocol(headers: &HeaderMap, name: &HeaderName, known: &[&str]) -> Box<Answer> {
    let offered: Vec<_> = words(headers, name).collect();
    let text = format!(
        "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {known:?}"
    );
    refuse(StatusCode::FORBIDDEN, &text)
}

fn switching(to: &'static str) -> Answer {
    let mut answer = Response::new(String::new());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    answer
}

fn refuse(status: StatusCode, text: &str) -> Box<Answer> {
    let mut answer = Response::new(format!("{text}\n"));
    *answer.status_mut() = status;
    Box::new(answer)
}

/// Takes the connection over and does what its ticket was for.
async fn serve(
    shared: Arc<Shared>,
    job: Job,
    transport: Transport,
    upgrade: OnUpgrade,
    socket: Arc<OwnedFd>,
) {
    let upgraded = match timeout(HANDOVER, upgrade).await {
        Ok(Ok(upgraded)) => upgraded,
        Ok(Err(error)) => return tracing::debug!(%error, "a client left during the upgrade"),
        Err(_) => return tracing::debug!("a client did not take the upgrade's answer"),
    };
    tracing::debug!(?job, ?transport, "a streaming session begins");
    let client = Client { io: Box::new(TokioIo::new(upgraded)), gone: Box::pin(gone(socket)), idle: IDLE };
    let pods = &shared.pods;
    match (job, transport) {
        (Job::Command(command), Transport::Spdy(protocol)) => {
            remote::serve(pods, command, protocol, client).await;
        }
        (Job::Command(command), Transport::WebSocket(protocol)) => {
            websocket::serve(pods, command, protocol, client).await;
        }
        (Job::PortForward { pod, .. }, Transport::Spdy(_)) => forward::serve(pods, &pod, client).await,
        (Job::PortForward { pod, .. }, Transport::WebSocket(Some(websocket::TUNNEL))) => {
            let (inside, tunnel) = websocket::tunnel(client).await;
            tokio::join!(forward::serve(pods, &pod, inside), tunnel);
        }
        (Job::PortForward { pod, ports }, Transport::WebSocket(protocol)) => {
            let codec = websocket::Codec::of(protocol);
            forward::serve_channels(pods, &pod, &ports, codec, client).await;
        }
    }
}

/// Ready when the client has closed its side, which is seen even while what it sent before is not read, because whom
/// it is for does not take it.
async fn gone(socket: Arc<OwnedFd>) {
    let watched = socket.try_clone().and_then(|socket| TcpStream::from_std(socket.into()));
    drop(socket);
    if let Ok(socket) = watched {
        while let Ok(ready) = socket.ready(Interest::READABLE).await {
            if ready.is_read_closed() {
                return tokio::time::sleep(LAST_BYTES).await;
            }
            // Nothing is read here: the next look is for the next change.
            let _ = socket.try_io(Interest::READABLE, || Err::<(), _>(ErrorKind::WouldBlock.into()));
        }
    }
    pending().await
}
