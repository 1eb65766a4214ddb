//! What both transports share: pipes between a connection and those who use its streams, and the end of a
//! connection that nobody uses.
//!
//! A stream's user holds one end of a pipe of a few KiB; the connection reads and writes the other. So memory is bounded
//! whatever either side does, and a user that drops its end ends the stream.

use std::{
    io,
    pin::Pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream, ReadHalf},
    sync::{mpsc, oneshot},
    time::Instant,
};

/// What a pipe holds in each direction.
pub(super) const PIPE: usize = 32 << 10;
/// Most bytes sent in one piece.
pub(super) const PIECE: usize = 16 << 10;
/// Pieces that wait for the connection to take them.
pub(super) const QUEUE: usize = 4;

/// A byte stream in both directions.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection after its upgrade.
pub(super) struct Client {
    /// Its bytes.
    pub(super) io: Box<dyn Duplex>,
    /// Ready when the client is gone, even while nothing is read.
    pub(super) gone: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// How long nothing may come or go before the connection counts as dead.
    pub(super) idle: Duration,
}

/// Bytes of a stream on their way to the client.
#[derive(Debug)]
pub(super) struct Piece {
    /// Which stream, as the transport counts.
    pub(super) stream: u32,
    /// Empty: the stream ends here.
    pub(super) bytes: Bytes,
}

/// What a client lets through.
pub(super) trait Credit: Send + Sync {
    /// Waits until the stream may send, and gives how much of `wanted` it may.
    fn take(&self, stream: u32, wanted: usize) -> impl Future<Output = usize> + Send;
}

/// Sends what a stream's user writes, piece by piece, and its end.
pub(super) async fn pump(
    stream: u32,
    mut user: ReadHalf<DuplexStream>,
    queue: mpsc::Sender<Piece>,
    credit: &impl Credit,
    sent: oneshot::Sender<()>,
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE);
        match user.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        while !buffer.is_empty() {
            let length = credit.take(stream, buffer.len().min(PIECE)).await;
            let bytes = buffer.split_to(length).freeze();
            if queue.send(Piece { stream, bytes }).await.is_err() {
                return;
            }
        }
    }
    let _ = queue.send(Piece { stream, bytes: Bytes::new() }).await;
    let _ = sent.send(());
}

/// When something last came or went.
#[derive(Debug)]
pub(super) struct Activity(Mutex<Instant>);

impl Activity {
    pub(super) fn new() -> Activity {
        Activity(Mutex::new(Instant::now()))
    }

    pub(super) fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Ready once nothing came or went for so long.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if last.elapsed() >= limit {
                return;
            }
            tokio::time::sleep_until(last + limit).await;
        }
    }
}

/// Reads and forgets until the other side closes.
pub(super) async fn drain(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut buffer = [0; 4 << 10];
    while reader.read(&mut buffer).await? > 0 {}
    Ok(())
}
