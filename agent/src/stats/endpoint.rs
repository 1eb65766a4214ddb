//! The endpoint that Prometheus scrapes: `GET /metrics` over HTTP/1.1, and nothing else.
//!
//! It tells the metrics of all pods and the agent's own, in OpenMetrics' text. Connections are few, and each has
//! deadlines: a scraper that stalls holds nobody up.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tracing::{debug, warn};

use super::{Collector, exposition};
use crate::{
    context::{Context, blocking},
    error::{Result, at},
};

/// Scrapers at once.
const CONNECTIONS: usize = 16;
/// Until the head of a request is there.
const HEAD: Duration = Duration::from_secs(10);
/// A connection's whole life; scrapers open another one.
const CONNECTION: Duration = Duration::from_secs(600);
/// After an accept that failed for want of something.
const PAUSE: Duration = Duration::from_millis(100);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Takes the address.
///
/// # Errors
/// One that is in use, or not this machine's.
pub async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(at("listen on", address.to_string()))
}

/// Serves for ever.
pub async fn serve(listener: TcpListener, context: Arc<Context>, collector: Collector) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(seat) = seats.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a connection for metrics could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (context, collector) = (context.clone(), collector.clone());
        let service = service_fn(move |request| {
            let (context, collector) = (context.clone(), collector.clone());
            async move { Ok::<_, Infallible>(answer(request, &context, &collector).await) }
        });
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = timeout(CONNECTION, connection).await {
                debug!(%error, "a connection for metrics broke");
            }
            drop(seat);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    context: &Arc<Context>,
    collector: &Collector,
) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "only /metrics is here\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is understood\n");
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let (figures, context) = (collector.figures().await, context.clone());
    match blocking(move || exposition::text(figures, context.measurements.registry())).await {
        Ok(text) => respond(StatusCode::OK, OPEN_METRICS, text.into()),
        Err(error) => {
            warn!(error = %io::Error::other(error), "metrics could not be written");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "metrics could not be written\n")
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
