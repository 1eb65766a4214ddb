//! One SPDY connection: opens streams as the peer asks, carries their bytes both ways, ends in order.
//!
//! ```text
//! peer ─ read loop ─▶ pipe ─▶ user of a stream ─▶ pipe ─▶ pump (window) ─▶ queue ─ write loop ─▶ peer
//!           └──────── replies, window updates: a queue of their own ───────────────▲
//! ```
//!
//! Everything is bounded: pipes, queues, streams. When a user does not read, its pipe fills, and the connection is
//! not read either: that is all there is to hold back peers that know no windows (see `window.rs`). The read
//! loop never waits for the write loop but to answer a new stream, so a peer that reads nothing can still be heard.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, WriteHalf, duplex, split},
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use super::{
    super::pump::{Activity, Client, PIECE, PIPE, Piece, QUEUE, drain, pump},
    frame::{Control, Decoder, Encoder, Error, Frame, goaway, reset},
    header::Headers,
    window::Windows,
};

/// Replies, resets and window updates that wait for the connection to take them.
const CONTROL_QUEUE: usize = 64;
/// Received bytes are given back to the peer's window in portions of this size.
const PORTION: u32 = 16 << 10;
/// How long a peer that has been told of the end may take to close.
const LINGER: Duration = Duration::from_secs(5);

/// What a peer may open.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Limits {
    /// Streams at one time.
    pub(in super::super) streams: usize,
}

/// A stream that the peer opened.
#[derive(Debug)]
pub(in super::super) struct Stream {
    /// Odd; later streams have larger ones.
    pub(in super::super) id: u32,
    /// What it is for.
    pub(in super::super) headers: Headers,
    /// Its bytes; end of file is the peer's half-close, dropping it is ours.
    pub(in super::super) io: DuplexStream,
    /// Ready when all that was written, and the end, is in the connection's queue.
    pub(in super::super) sent: oneshot::Receiver<()>,
}

/// A connection. Dropping it cuts it off.
#[derive(Debug)]
pub(in super::super) struct Connection {
    streams: mpsc::Receiver<Stream>,
    queue: mpsc::Sender<Piece>,
    closed: watch::Receiver<bool>,
    task: JoinSet<()>,
}

impl Connection {
    /// Begins to serve a client.
    pub(in super::super) fn new(client: Client, limits: Limits) -> Connection {
        let (queue, pieces) = mpsc::channel(QUEUE);
        let (accepted, streams) = mpsc::channel(limits.streams.max(1));
        let (closing, closed) = watch::channel(false);
        let mut task = JoinSet::new();
        let weak = queue.downgrade();
        task.spawn(async move {
            serve(client, limits, weak, pieces, accepted).await;
            let _ = closing.send(true);
        });
        Connection { streams, queue, closed, task }
    }

    /// The next stream that the peer opens; `None` when the connection is gone.
    pub(in super::super) async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// Waits until the peer is gone.
    pub(in super::super) fn closed(&self) -> impl Future<Output = ()> + use<> {
        let mut closed = self.closed.clone();
        async move {
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }

    /// Sends what users that are gone left behind, says goodbye and closes. Every stream must have been dropped.
    pub(in super::super) async fn finish(mut self) {
        self.streams.close();
        while self.streams.try_recv().is_ok() {}
        drop(self.queue);
        self.task.join_next().await;
    }
}

async fn serve(
    client: Client,
    limits: Limits,
    queue: mpsc::WeakSender<Piece>,
    pieces: mpsc::Receiver<Piece>,
    accepted: mpsc::Sender<Stream>,
) {
    let (mut reader, writer) = split(client.io);
    let (control, controls) = mpsc::channel(CONTROL_QUEUE);
    let windows = Arc::new(Windows::new());
    let activity = Arc::new(Activity::new());
    let mut session = Session {
        limits,
        queue,
        control: control.clone(),
        accepted,
        windows,
        activity: activity.clone(),
        open: HashMap::new(),
        pumps: JoinSet::new(),
        last: 0,
        unreturned: 0,
    };
    let mut write = std::pin::pin!(write_loop(writer, controls, pieces, &activity));
    let ended = tokio::select! {
        read = session.read_loop(&mut reader) => read,
        written = &mut write => {
            // All is said. Closing before the peer has read it could destroy it on the way.
            if written.is_ok() {
                let _ = timeout(LINGER, drain(&mut reader)).await;
            }
            return;
        }
        () = client.gone => Ok(()),
        () = activity.idle(client.idle) => {
            tracing::debug!("a streaming connection was idle for too long");
            Ok(())
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %crate::error::chain(&error), "a SPDY connection ends");
        let goodbye = Control::GoAway { last: session.last, status: goaway::PROTOCOL_ERROR };
        if !matches!(error, Error::Read(_)) && control.try_send(goodbye).is_ok() {
            // Nothing else ends the write loop now; a moment is enough for what is queued.
            let _ = timeout(Duration::from_millis(100), write).await;
        }
    }
}

async fn write_loop(
    mut writer: impl AsyncWrite + Unpin,
    mut controls: mpsc::Receiver<Control>,
    mut pieces: mpsc::Receiver<Piece>,
    activity: &Activity,
) -> std::io::Result<()> {
    let mut encoder = Encoder::new();
    let mut buffer = Vec::with_capacity(PIECE + 8);
    let mut last = 0;
    loop {
        buffer.clear();
        tokio::select! {
            biased;
            Some(frame) = controls.recv() => {
                if let Control::SynReply { stream } = frame {
                    last = last.max(stream);
                }
                encoder.control(&frame, &mut buffer);
            }
            piece = pieces.recv() => match piece {
                Some(piece) => Encoder::data(piece.stream, piece.bytes.is_empty(), &piece.bytes, &mut buffer),
                None => break,
            },
        }
        writer.write_all(&buffer).await?;
        writer.flush().await?;
        activity.touch();
    }
    encoder.control(&Control::GoAway { last, status: goaway::OK }, &mut buffer);
    writer.write_all(&buffer).await?;
    writer.shutdown().await
}

/// What the read loop knows.
struct Session {
    limits: Limits,
    queue: mpsc::WeakSender<Piece>,
    control: mpsc::Sender<Control>,
    accepted: mpsc::Sender<Stream>,
    windows: Arc<Windows>,
    activity: Arc<Activity>,
    open: HashMap<u32, Open>,
    pumps: JoinSet<()>,
    /// The largest stream id so far.
    last: u32,
    /// Bytes received that the connection's window has not been given back.
    unreturned: u32,
}

/// A stream that has not ended on both sides.
struct Open {
    /// Until the peer's end, or its reset.
    input: Option<WriteHalf<DuplexStream>>,
    pump: AbortHandle,
    unreturned: u32,
}

impl Session {
    async fn read_loop(&mut self, reader: &mut (impl AsyncRead + Unpin)) -> Result<(), Error> {
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; PIECE];
        while let Some(frame) = decoder.read(reader).await? {
            self.activity.touch();
            match frame {
                Frame::SynStream { stream, headers, fin } => self.open(stream, headers, fin).await,
                Frame::Data { stream, fin, length } => {
                    self.data(reader, stream, length, &mut buffer).await?;
                    if fin {
                        self.end(stream).await;
                    }
                }
                Frame::Reset { stream } => self.close(stream),
                Frame::Settings { initial_window: Some(size) } => self.windows.set_initial(size),
                Frame::WindowUpdate { stream, delta } => self.windows.add(stream, delta),
                // Ours would be even; we send none. One that finds the queue full is not answered.
                Frame::Ping { id } if id % 2 == 1 => drop(self.control.try_send(Control::Ping { id })),
                Frame::Other { fin: Some(stream) } => self.end(stream).await,
                Frame::Settings { .. } | Frame::Ping { .. } | Frame::GoAway | Frame::Other { .. } => {}
            }
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, headers: Headers, fin: bool) {
        while self.pumps.try_join_next().is_some() {}
        self.open.retain(|_, stream| stream.input.is_some() || !stream.pump.is_finished());
        let refused = if id.is_multiple_of(2) {
            Some(reset::PROTOCOL_ERROR)
        } else if id <= self.last {
            Some(reset::STREAM_IN_USE)
        } else if self.open.len() >= self.limits.streams {
            Some(reset::REFUSED_STREAM)
        } else {
            None
        };
        self.last = self.last.max(id);
        let (Some(queue), None) = (self.queue.upgrade(), refused) else {
            let status = refused.unwrap_or(reset::REFUSED_STREAM);
            let _ = self.control.send(Control::Reset { stream: id, status }).await;
            return;
        };
        if self.control.send(Control::SynReply { stream: id }).await.is_err() {
            return;
        }
        let (near, far) = duplex(PIPE);
        let (output, input) = split(far);
        let (done, sent) = oneshot::channel();
        self.windows.open(id);
        let windows = self.windows.clone();
        let pump = self.pumps.spawn(async move {
            pump(id, output, queue, &*windows, done).await;
            windows.close(id);
        });
        self.open.insert(id, Open { input: Some(input), pump, unreturned: 0 });
        if fin {
            self.end(id).await;
        }
        // There is room for as many as may be open; one that nobody waits for ends here.
        let _ = self.accepted.try_send(Stream { id, headers, io: near, sent });
    }

    /// Takes a data frame's payload in pieces, whatever its length claims to be.
    async fn data(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        stream: u32,
        length: u32,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        let mut left = length;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let read = reader.read(&mut buffer[..most]).await?;
            if read == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
            let count = u32::try_from(read).unwrap_or(u32::MAX);
            left -= count;
            self.activity.touch();
            if let Some(open) = self.open.get_mut(&stream) {
                // A user that is gone reads no more: what comes for it is thrown away.
                if let Some(input) = &mut open.input
                    && input.write_all(&buffer[..read]).await.is_err()
                {
                    open.input = None;
                }
                give_back(&self.control, stream, &mut open.unreturned, count);
            }
            give_back(&self.control, 0, &mut self.unreturned, count);
        }
        Ok(())
    }

    /// The peer will send no more on this stream.
    async fn end(&mut self, stream: u32) {
        if let Some(mut input) = self.open.get_mut(&stream).and_then(|open| open.input.take()) {
            let _ = input.shutdown().await;
        }
    }

    /// The peer has given the stream up.
    fn close(&mut self, stream: u32) {
        if let Some(open) = self.open.remove(&stream) {
            open.pump.abort();
            self.windows.close(stream);
        }
    }
}

/// Opens the peer's window again once a portion has been passed on. With the queue full, a later portion says it.
fn give_back(control: &mpsc::Sender<Control>, stream: u32, unreturned: &mut u32, count: u32) {
    *unreturned = unreturned.saturating_add(count);
    if *unreturned >= PORTION
        && control.try_send(Control::WindowUpdate { stream, delta: *unreturned }).is_ok()
    {
        *unreturned = 0;
    }
}
