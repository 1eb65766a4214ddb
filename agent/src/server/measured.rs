//! Measures every call on its way through the server.
//!
//! The code of a call that has one answer is in the answer's head when it failed, and is OK otherwise. A stream is
//! measured until it begins.

use std::{
    sync::Arc,
    task::{Context as Waker, Poll},
    time::Instant,
};

use futures_util::{TryFutureExt, future::MapOk};
use tonic::{Code, codegen::http};
use tower::{Layer, Service};

use crate::context::Context;

/// Puts [`Measured`] around a service.
#[derive(Debug, Clone)]
pub(super) struct Measure(pub(super) Arc<Context>);

impl<S> Layer<S> for Measure {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured { inner, context: self.0.clone() }
    }
}

/// A service whose calls are measured.
#[derive(Debug, Clone)]
pub(super) struct Measured<S> {
    inner: S,
    context: Arc<Context>,
}

type Note<B> = Box<dyn FnOnce(http::Response<B>) -> http::Response<B> + Send>;

impl<S, A, B> Service<http::Request<A>> for Measured<S>
where
    S: Service<http::Request<A>, Response = http::Response<B>>,
    S::Future: Send,
{
    type Response = http::Response<B>;
    type Error = S::Error;
    type Future = MapOk<S::Future, Note<B>>;

    fn poll_ready(&mut self, waker: &mut Waker<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(waker)
    }

    fn call(&mut self, request: http::Request<A>) -> Self::Future {
        let (start, path, context) = (Instant::now(), request.uri().path().to_owned(), self.context.clone());
        let note = move |response: http::Response<B>| {
            let code =
                response.headers().get("grpc-status").map(|status| Code::from_bytes(status.as_bytes()));
            context.measurements.rpc(&path, code.unwrap_or(Code::Ok), start);
            response
        };
        self.inner.call(request).map_ok(Box::new(note))
    }
}
