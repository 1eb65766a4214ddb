//! WebSocket, as Kubernetes uses it: every message begins with the number of the channel it belongs to.
//!
//! Messages are binary, or, in the `base64` protocols, text: a digit and base64. Version 5 has a message by which a
//! client ends its side of a channel; before there is none. The SPDY tunnel has no channels at all: messages
//! carry the bytes of a SPDY connection as they come.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, WriteHalf, duplex, split},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{
    command::{Command, Ends},
    pump::{Activity, Client, Credit, Duplex, PIECE, PIPE, Piece, QUEUE, pump},
    status::Format,
};
use crate::pods::Pods;

/// The protocols of commands, best first. A client that names none speaks the last but one.
pub(super) const PROTOCOLS: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
/// The protocols of port-forward, best first.
pub(super) const FORWARD_PROTOCOLS: [&str; 3] = [TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];
/// SPDY in WebSocket.
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Largest message of a client: some put all their input into one.
const MESSAGE_LIMIT: usize = 16 << 20;
/// What a socket may have in its buffer before it is written out.
const WRITE_BUFFER: usize = 64 << 10;
/// How long a client that has been told of the end may take to close.
const LINGER: Duration = Duration::from_secs(5);
/// The channel of version 5 on which a client ends its side of another.
const CLOSE: u8 = 255;

type Socket = WebSocketStream<Box<dyn Duplex>>;

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    /// The channel's number, then bytes.
    Binary {
        /// Whether a client can end its side of a channel.
        close: bool,
    },
    /// The channel's digit, then base64.
    Base64,
}

impl Codec {
    /// That of a protocol; clients that name none send binary messages.
    pub(super) fn of(protocol: Option<&str>) -> Codec {
        match protocol {
            Some(name) if name.contains("base64") => Codec::Base64,
            name => Codec::Binary { close: name == Some("v5.channel.k8s.io") },
        }
    }

    fn encode(self, channel: u8, bytes: &[u8]) -> Message {
        match self {
            Codec::Binary { .. } => {
                let mut message = BytesMut::with_capacity(bytes.len() + 1);
                message.put_u8(channel);
                message.extend_from_slice(bytes);
                Message::Binary(message.freeze())
            }
            Codec::Base64 => {
                let mut text = String::from(char::from(b'0'.wrapping_add(channel)));
                STANDARD.encode_string(bytes, &mut text);
                Message::text(text)
            }
        }
    }

    /// Channel and bytes; `None` for what is empty or is not base64.
    fn decode(self, message: Bytes) -> Option<(u8, Bytes)> {
        let (channel, rest) = (*message.first()?, message.slice(1..));
        match self {
            Codec::Binary { .. } => Some((channel, rest)),
            Codec::Base64 => {
                Some((channel.checked_sub(b'0')?, STANDARD.decode(rest.trim_ascii_end()).ok()?.into()))
            }
        }
    }
}

/// Which way a channel goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Nowhere: what comes on it is thrown away.
    None,
    /// From the client.
    Input,
    /// To the client.
    Output,
    /// Both ways.
    Both,
}

/// A channel's end and, for outputs, word of its having been sent.
type Channel = (DuplexStream, oneshot::Receiver<()>);

/// The channels of one connection. Dropping it cuts the connection off.
pub(super) struct Channels {
    channels: Vec<Option<Channel>>,
    queue: mpsc::Sender<Piece>,
    closed: watch::Receiver<bool>,
    task: JoinSet<()>,
}

impl Credit for () {
    /// TCP alone holds a WebSocket back.
    async fn take(&self, _: u32, wanted: usize) -> usize {
        wanted
    }
}

impl Channels {
    /// Begins to serve a client: channel numbers are indices into `directions`.
    pub(super) async fn open(client: Client, codec: Codec, directions: &[Direction]) -> Channels {
        let Client { io, gone, idle } = client;
        let socket = accept(io).await;
        let (queue, pieces) = mpsc::channel(QUEUE);
        let (mut channels, mut inputs, mut pumps) = (Vec::new(), Vec::new(), JoinSet::new());
        for (number, direction) in (0..).zip(directions) {
            let (near, far) = duplex(PIPE);
            let (output, input) = split(far);
            let (done, sent) = oneshot::channel();
            let (is_input, is_output) = match direction {
                Direction::None => (false, false),
                Direction::Input => (true, false),
                Direction::Output => (false, true),
                Direction::Both => (true, true),
            };
            if is_output {
                let queue = queue.clone();
                pumps.spawn(async move { pump(number, output, queue, &(), done).await });
            }
            inputs.push(is_input.then_some(input));
            channels.push((is_input || is_output).then_some((near, sent)));
        }
        let (closing, closed) = watch::channel(false);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let _pumps = pumps;
            let activity = Activity::new();
            let (sink, mut source) = socket.split();
            let reading = {
                let mut write = std::pin::pin!(write_loop(sink, codec, pieces, &activity));
                tokio::select! {
                    () = read_loop(&mut source, codec, inputs, &activity) => false,
                    written = &mut write => written.is_ok(),
                    () = gone => false,
                    () = activity.idle(idle) => false,
                }
            };
            if reading {
                // All is said, with a goodbye that the client answers. Closing before could destroy it on the way.
                let _ = timeout(LINGER, async { while let Some(Ok(_)) = source.next().await {} }).await;
            }
            let _ = closing.send(true);
        });
        Channels { channels, queue, closed, task }
    }

    /// A channel's end, once.
    pub(super) fn take(&mut self, number: usize) -> Option<Channel> {
        self.channels.get_mut(number)?.take()
    }

    /// Sends a first message of its own on a channel, which may be empty.
    pub(super) async fn greet(&self, number: u32, bytes: Bytes) {
        let _ = self.queue.send(Piece { stream: number | GREETING, bytes }).await;
    }

    /// Waits until the client is gone.
    pub(super) fn closed(&self) -> impl Future<Output = ()> + use<> {
        let mut closed = self.closed.clone();
        async move {
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }

    /// Sends what is left, says goodbye and closes. Every end must have been dropped.
    pub(super) async fn finish(mut self) {
        self.channels.clear();
        drop(self.queue);
        self.task.join_next().await;
    }
}

/// Marks a piece that becomes a message even if it is empty; others that are end a stream, and become none.
const GREETING: u32 = 1 << 31;

async fn accept(io: Box<dyn Duplex>) -> Socket {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_LIMIT))
        .max_frame_size(Some(MESSAGE_LIMIT))
        .read_buffer_size(PIECE)
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_BUFFER);
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

async fn read_loop(
    source: &mut SplitStream<Socket>,
    codec: Codec,
    mut inputs: Vec<Option<WriteHalf<DuplexStream>>>,
    activity: &Activity,
) {
    while let Some(Ok(message)) = source.next().await {
        activity.touch();
        let message = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            Message::Close(_) => return,
            _ => continue,
        };
        let Some((channel, bytes)) = codec.decode(message) else {
            tracing::debug!("a client's message is not readable");
            continue;
        };
        if channel == CLOSE && codec == (Codec::Binary { close: true }) {
            let ended = bytes.first().and_then(|channel| inputs.get_mut(usize::from(*channel)));
            if let Some(mut input) = ended.and_then(Option::take) {
                let _ = input.shutdown().await;
            }
            continue;
        }
        let Some(slot) = inputs.get_mut(usize::from(channel)) else { continue };
        // Who uses the channel may be gone and read no more: what comes is thrown away.
        if let Some(input) = slot
            && input.write_all(&bytes).await.is_err()
        {
            *slot = None;
        }
    }
}

async fn write_loop(
    mut sink: SplitSink<Socket, Message>,
    codec: Codec,
    mut pieces: mpsc::Receiver<Piece>,
    activity: &Activity,
) -> Result<(), tungstenite::Error> {
    while let Some(Piece { stream, bytes }) = pieces.recv().await {
        let greeting = stream & GREETING != 0;
        if bytes.is_empty() && !greeting {
            continue;
        }
        let channel = u8::try_from(stream & !GREETING).unwrap_or(CLOSE);
        sink.send(codec.encode(channel, &bytes)).await?;
        activity.touch();
    }
    sink.send(goodbye()).await
}

/// Serves a command's client: stdin, stdout, stderr, errors and sizes are channels 0 to 4.
pub(super) async fn serve(pods: &Pods, command: Command, protocol: Option<&str>, client: Client) {
    let direction = |wanted: bool, direction: Direction| if wanted { direction } else { Direction::None };
    let directions = [
        direction(command.stdin, Direction::Input),
        direction(command.stdout, Direction::Output),
        direction(command.stderr, Direction::Output),
        Direction::Output,
        Direction::Input,
    ];
    let mut channels = Channels::open(client, Codec::of(protocol), &directions).await;
    // Some clients wait for a first message before they believe in the connection.
    let first = if command.stdout {
        1
    } else if command.stderr {
        2
    } else {
        3
    };
    channels.greet(first, Bytes::new()).await;
    let mut sent = Vec::new();
    let [stdin, stdout, stderr, error, resize] = [0, 1, 2, 3, 4].map(|number| {
        let (end, done) = channels.take(number)?;
        if number == 1 || number == 2 {
            sent.push(done);
        }
        Some(end)
    });
    let Some(error) = error else { return };
    let versioned = protocol.is_some_and(|name| name.starts_with('v'));
    let format = if versioned { Format::Json } else { Format::Text };
    tokio::select! {
        () = command.run(pods, Ends { error, stdin, stdout, stderr, resize, sent, format }) => {}
        () = channels.closed() => return,
    }
    channels.finish().await;
}

/// Unwraps a SPDY connection: gives the client inside, and the work that must go on beside it.
pub(super) async fn tunnel(client: Client) -> (Client, impl Future<Output = ()> + Send) {
    let Client { io, gone, idle } = client;
    let (mut sink, mut source) = accept(io).await.split();
    let (near, far) = duplex(PIPE);
    let (mut from_inside, mut to_inside) = split(far);
    let up = async move {
        while let Some(Ok(message)) = source.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Close(_) => break,
                _ => continue,
            };
            if to_inside.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to_inside.shutdown().await;
        // Only the answer to our goodbye may still come.
        let _ = timeout(LINGER, async { while let Some(Ok(_)) = source.next().await {} }).await;
    };
    let down = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            match from_inside.read_buf(&mut buffer).await {
                Ok(1..) if sink.send(Message::Binary(buffer.split().freeze())).await.is_ok() => {}
                _ => break,
            }
        }
        let _ = sink.send(goodbye()).await;
    };
    let work = async move {
        let mut up = std::pin::pin!(up);
        tokio::select! {
            () = &mut up => {}
            () = down => drop(timeout(LINGER, up).await),
        }
    };
    (Client { io: Box::new(near), gone, idle }, work)
}
