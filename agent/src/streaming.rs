//! The streaming server: where the URLs lead that Exec, Attach and PortForward answer.
//!
//! ```text
//! Exec, Attach, PortForward ─▶ ticket ─▶ URL ─▶ client ─▶ HTTP upgrade ─┬─ SPDY ──────┬─▶ command ─▶ pods::session
//!                              (one use, one minute)                    └─ WebSocket ─┴─▶ forward ─▶ pods::session
//! ```
//!
//! A URL is a secret that works once. The server listens on loopback unless it is told otherwise. Whatever a
//! client does, memory is bounded and no container waits for it: pipes of a few KiB lie between every two parts, and
//! a client that is gone takes its command with it.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    config,
    error::{Result, at},
    pods::Pods,
};

mod command;
mod forward;
mod http;
mod pump;
mod remote;
mod spdy;
mod status;
mod ticket;
mod tls;
mod websocket;

pub(crate) use command::Command;
use pump::Duplex;
use ticket::Tickets;

/// Connections that have not asked for anything yet, at one time. Every ticket may have its client.
const CONNECTIONS: usize = 2000;
/// How long a client may take for a TLS handshake, and for its request.
const REQUEST: Duration = Duration::from_secs(10);
/// A client's machine that is gone is noticed after a few of these.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What a ticket is for.
#[derive(Clone)]
pub(crate) enum Job {
    /// `exec` and `attach`.
    Command(Command),
    /// `portforward`.
    PortForward {
        /// The pod's id.
        pod: String,
        /// For clients that do not name ports themselves.
        ports: Vec<u16>,
    },
}

impl Job {
    /// The word in the URL.
    fn path(&self) -> &'static str {
        match self {
            Job::Command(Command { argv: Some(_), .. }) => "exec",
            Job::Command(_) => "attach",
            Job::PortForward { .. } => "portforward",
        }
    }
}

impl std::fmt::Debug for Job {
    /// For logs: a command's words may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let object = match self {
            Job::Command(command) => &command.container,
            Job::PortForward { pod, .. } => pod,
        };
        write!(f, "{} {object}", self.path())
    }
}

/// The server.
#[derive(Debug, Clone)]
pub struct Streaming {
    shared: Arc<Shared>,
    /// What URLs begin with.
    base: String,
}

/// What every connection sees.
#[derive(Debug)]
struct Shared {
    pods: Pods,
    tickets: Mutex<Tickets<Job>>,
}

impl Shared {
    fn redeem(&self, ticket: &str) -> Option<Job> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner).redeem(ticket, Instant::now())
    }
}

impl Streaming {
    /// Listens and serves from now on.
    ///
    /// # Errors
    /// An address that cannot be listened on, certificates that cannot be used.
    pub async fn start(config: &config::Streaming, pods: Pods) -> Result<Streaming> {
        let tls = match (&config.certificate, &config.key) {
            (Some(certificate), Some(key)) => Some(tls::acceptor(certificate, key)?),
            _ => None,
        };
        let failed = || at("listen on", config.address.to_string());
        let listener = TcpListener::bind(config.address).await.map_err(failed())?;
        let address = listener.local_addr().map_err(failed())?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let base = match &config.base_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("{scheme}://{address}"),
        };
        if !address.ip().is_loopback() && tls.is_none() {
            tracing::warn!(%address, "streams are served in the clear beyond this machine");
        }
        tracing::info!(%address, base, "streams are served");
        let shared = Arc::new(Shared { pods, tickets: Mutex::new(Tickets::new()) });
        tokio::spawn(accept(listener, tls, shared.clone()));
        Ok(Streaming { shared, base })
    }

    /// A URL that is good for one connection within the next minute.
    ///
    /// # Errors
    /// `ResourceExhausted` while a thousand others wait for their clients.
    pub(crate) fn url(&self, job: Job) -> Result<String> {
        let path = job.path();
        let mut tickets = self.shared.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = tickets.issue(job, Instant::now())?;
        Ok(format!("{}/{path}/{ticket}", self.base))
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely; others must end before there are some again.
                tracing::warn!(%error, "a streaming connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, shared) = (tls.clone(), shared.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(stream, tls, &shared).await {
                tracing::debug!(%peer, error = %crate::error::chain(&*error), "a streaming connection ends");
            }
            drop(permit);
        });
    }
}

/// Serves HTTP on a connection until it is upgraded or ends.
async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    shared: &Arc<Shared>,
) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let socket = Arc::new(prepare(&stream)?);
    let io: Box<dyn Duplex> = match tls {
        Some(acceptor) => Box::new(timeout(REQUEST, acceptor.accept(stream)).await??),
        None => Box::new(stream),
    };
    let service = service_fn(|request| {
        let answer = http::answer(shared, request, socket.clone());
        async move { Ok::<_, std::convert::Infallible>(answer) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades()
        .await?;
    Ok(())
}

/// Small pieces go out at once, and a machine that is gone is noticed. Gives a second descriptor of the socket.
fn prepare(stream: &TcpStream) -> std::io::Result<OwnedFd> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE / 4)?;
    stream.as_fd().try_clone_to_owned()
}
