//! `sampan.v1`: what CRI has no word for, a file for each service.

pub mod build;
pub mod container;
pub mod event;
pub mod image;
mod merged;
pub mod metrics;
pub mod system;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

type Reply<T> = Result<Response<T>, Status>;
/// A stream fed by a task that ends when its client goes away.
type Feed<T> = ReceiverStream<Result<T, Status>>;

/// RFC 3339 with nanoseconds, as docker writes times.
pub(crate) fn time(nanoseconds: i64) -> String {
    let moment = jiff::Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default();
    format!("{moment:.9}")
}
