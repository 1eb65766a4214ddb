//! `Attach`, `Exec` and `PortForward`: a session's streams as messages of one call.
//!
//! Each call has a task that ends with its client or the agent. What a client sends waits in a small pipe, what it is
//! sent in a small queue; for the rest see `pods::session`.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll, ready},
};

use sampan_proto::sampan::{
    self, attach_request, attach_response, exec_request, exec_response, port_forward_request,
};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::PollSender, task::AbortOnDropHandle};
use tonic::{Status, Streaming};

use crate::{
    error::{Error, Result},
    pods::{
        Found, Pods,
        config::environment_variable,
        session::{self, Attachment, Command, Size, Streams},
    },
    services::Feed,
};

/// Bytes of a client that may wait for who reads them.
const INPUT: usize = 64 << 10;
/// Messages that may wait for a slow client, of at most 32 KiB each.
const QUEUE: usize = 16;

/// What a client may send once its session has begun.
enum Incoming {
    Data(Vec<u8>),
    Resize(Size),
    /// Nothing that makes sense now.
    Other,
}

pub(super) async fn attach(
    pods: &Pods,
    mut messages: Streaming<sampan::AttachRequest>,
) -> Result<Feed<sampan::AttachResponse>, Status> {
    use attach_request::Message;
    use attach_response::Message as Answer;
    let first = messages.message().await?.and_then(|request| request.message);
    let Some(Message::Start(start)) = first else { return Err(not_begun()) };
    let found = pods.find_container_by_name(&start.container)?;
    let incoming = |request: sampan::AttachRequest| match request.message {
        Some(Message::Stdin(data)) => Incoming::Data(data),
        Some(Message::Resize(size)) => Incoming::Resize(size_of(size)),
        Some(Message::Start(_)) | None => Incoming::Other,
    };
    let (stdin, resize, taking) = input(messages, start.size, incoming);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let message = |answer| sampan::AttachResponse { message: Some(answer) };
    let streams = Streams {
        stdin: start.stdin.then(|| Box::new(stdin) as _),
        stdout: Some(output(&sender, move |data| message(Answer::Stdout(data)))),
        stderr: Some(output(&sender, move |data| message(Answer::Stderr(data)))),
        resize,
    };
    let attachment = Attachment::new(pods.context(), &found.pod.record.id, &found.container).await?;
    let attached = sampan::Attached { tty: found.container.config.tty };
    let _ = sender.try_send(Ok(message(Answer::Attached(attached))));
    let context = pods.context().clone();
    tokio::spawn(async move {
        let carry = async {
            if let Err(error) = attachment.carry(streams).await {
                let _ = sender.send(Err(error.into())).await;
            }
        };
        context.feed(&sender, carry).await;
        drop(taking);
    });
    Ok(ReceiverStream::new(receiver))
}

pub(super) async fn exec(
    pods: &Pods,
    mut messages: Streaming<sampan::ExecRequest>,
) -> Result<Feed<sampan::ExecResponse>, Status> {
    use exec_request::Message;
    use exec_response::Message as Answer;
    let first = messages.message().await?.and_then(|request| request.message);
    let Some(Message::Start(start)) = first else { return Err(not_begun()) };
    let found = pods.find_container_by_name(&start.container)?;
    let incoming = |request: sampan::ExecRequest| match request.message {
        Some(Message::Stdin(data)) => Incoming::Data(data),
        Some(Message::Resize(size)) => Incoming::Resize(size_of(size)),
        Some(Message::Start(_)) | None => Incoming::Other,
    };
    let command = command(&start)?;
    let (stdin, resize, taking) = input(messages, start.size, incoming);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let message = |answer| sampan::ExecResponse { message: Some(answer) };
    let streams = Streams {
        stdin: start.stdin.then(|| Box::new(stdin) as _),
        stdout: Some(output(&sender, move |data| message(Answer::Stdout(data)))),
        stderr: (!start.tty).then(|| output(&sender, move |data| message(Answer::Stderr(data)))),
        resize,
    };
    let context = pods.context().clone();
    tokio::spawn(async move {
        let Found { pod, container } = found;
        let execute = async {
            let ended = session::exec(&context, &pod.record.id, &container, command, streams).await;
            let last = ended.map(|code| message(Answer::ExitCode(code))).map_err(Status::from);
            let _ = sender.send(last).await;
        };
        context.feed(&sender, execute).await;
        drop(taking);
    });
    Ok(ReceiverStream::new(receiver))
}

pub(super) async fn port_forward(
    pods: &Pods,
    mut messages: Streaming<sampan::PortForwardRequest>,
) -> Result<Feed<sampan::PortForwardResponse>, Status> {
    use port_forward_request::Message;
    let first = messages.message().await?.and_then(|request| request.message);
    let Some(Message::Start(start)) = first else { return Err(not_begun()) };
    let port = u16::try_from(start.port).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| Error::Invalid(format!("port {} is not 1 to 65535", start.port)))?;
    let found = pods.find_container_by_name(&start.container)?;
    let connection = session::connect(&found.pod.record, port).await?;
    let incoming = |request: sampan::PortForwardRequest| match request.message {
        Some(Message::Data(data)) => Incoming::Data(data),
        Some(Message::Start(_)) | None => Incoming::Other,
    };
    let (mut from_client, _, taking) = input(messages, None, incoming);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let mut to_client = output(&sender, |data| sampan::PortForwardResponse { data });
    let context = pods.context().clone();
    tokio::spawn(async move {
        let (mut reader, mut writer) = connection.into_split();
        // Either may end first; the other goes on until its own end.
        let forth = AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = tokio::io::copy(&mut from_client, &mut writer).await;
            let _ = writer.shutdown().await;
        }));
        let back = async { drop(tokio::io::copy(&mut reader, &mut to_client).await) };
        context.feed(&sender, back).await;
        if !sender.is_closed() {
            // Our half of the call ends with the last who could write to it.
            drop((sender, to_client));
            let _ = context.ending.run_until_cancelled(forth).await;
        }
        drop(taking);
    });
    Ok(ReceiverStream::new(receiver))
}

fn not_begun() -> Status {
    Status::invalid_argument("the first message must be start")
}

fn command(start: &sampan::ExecStart) -> Result<Command> {
    Ok(Command {
        argv: start.command.clone(),
        tty: start.tty,
        env: start.env.iter().map(|pair| environment_variable(pair)).collect::<Result<_>>()?,
        working_dir: start.working_dir.clone(),
        user: start.user.clone(),
    })
}

fn size_of(size: sampan::TerminalSize) -> Size {
    let fitting = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    Size { columns: fitting(size.columns), rows: fitting(size.rows) }
}

/// Takes a client's messages apart: its input, which ends with them, and the sizes of its terminal. Nothing more is taken
/// once the handle is dropped.
fn input<T: Send + 'static>(
    mut messages: Streaming<T>,
    first: Option<sampan::TerminalSize>,
    incoming: impl Fn(T) -> Incoming + Send + 'static,
) -> (DuplexStream, mpsc::Receiver<Size>, AbortOnDropHandle<()>) {
    let (mut writer, reader) = duplex(INPUT);
    let (resize, sizes) = mpsc::channel(1);
    let taking = tokio::spawn(async move {
        if let Some(size) = first {
            let _ = resize.send(size_of(size)).await;
        }
        let mut writing = true;
        while let Ok(Some(message)) = messages.message().await {
            match incoming(message) {
                // Once nobody reads it, the rest of the input is passed over.
                Incoming::Data(data) if writing => writing = writer.write_all(&data).await.is_ok(),
                Incoming::Resize(size) => {
                    let _ = resize.send(size).await;
                }
                Incoming::Data(_) | Incoming::Other => {}
            }
            if !writing && resize.is_closed() {
                return;
            }
        }
    });
    (reader, sizes, AbortOnDropHandle::new(taking))
}

fn output<M: Send + 'static>(
    sender: &mpsc::Sender<Result<M, Status>>,
    message: impl Fn(Vec<u8>) -> M + Send + Sync + 'static,
) -> Box<dyn AsyncWrite + Send + Unpin> {
    Box::new(Output { sender: PollSender::new(sender.clone()), message: Arc::new(message) })
}

/// Bytes on their way to a client, a message each time some are written.
struct Output<M> {
    sender: PollSender<Result<M, Status>>,
    message: Arc<dyn Fn(Vec<u8>) -> M + Send + Sync>,
}

impl<M: Send + 'static> AsyncWrite for Output<M> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.sender.poll_reserve(context)).map_err(gone)?;
        let message = (self.message)(data.to_vec());
        self.sender.send_item(Ok(message)).map_err(gone)?;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
