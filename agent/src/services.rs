//! `sampan.v1`: what CRI has no word for, a file for each service.

pub mod container;
pub mod event;
pub mod image;
pub mod metrics;
pub mod system;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

type Reply<T> = Result<Response<T>, Status>;
/// A stream fed by a task that ends when its client goes away.
type Feed<T> = ReceiverStream<Result<T, Status>>;
