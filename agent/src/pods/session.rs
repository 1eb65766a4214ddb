//! Commands and containers with somebody at the other end: their streams, carried between the monitor's pipes and
//! whatever transport the client came by.
//!
//! A container never waits for its watchers: what an attached client does not take is lost to it. A command waits for
//! its client, whose it is. Dropping one of these futures ends the command, or the attachment.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use rustix::{pipe::PipeFlags, termios::Winsize};
use sampan_runtime::{console, shim::protocol::Request};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, unix::pipe},
    sync::{mpsc, watch},
};

use super::{
    exec,
    id::{ContainerId, PodId},
    monitor::Connection,
    record::{ContainerPhase, ContainerRecord, PodPhase, PodRecord},
};
use crate::{
    context::{Context, blocking},
    error::{Error, Result, at},
    network::Network,
};

/// Bytes that a client of an attachment may be behind before it loses some: the most that the kernel lets a pipe have.
const ATTACH_PIPE: usize = 1 << 20;

/// Bytes moved at a time.
const BUFFER: usize = 32 << 10;

/// Longest wait for a port of a pod to take a connection.
const CONNECT: Duration = Duration::from_secs(30);

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) columns: u16,
    pub(crate) rows: u16,
}

/// The far ends of a command's streams, as a transport gives them.
pub(crate) struct Streams {
    /// Its end is the end of the command's input.
    pub(crate) stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub(crate) stdout: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// A terminal has none.
    pub(crate) stderr: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Sizes of the client's terminal; of no meaning without one.
    pub(crate) resize: mpsc::Receiver<Size>,
}

/// A command to run in a container, and how it differs from the container's own process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Command {
    pub(crate) argv: Vec<String>,
    /// Gives it a terminal.
    pub(crate) tty: bool,
    /// Over the container's own.
    pub(crate) env: Vec<(String, String)>,
    /// Empty: the container's.
    pub(crate) working_dir: String,
    /// `USER[:GROUP]`, names or numbers; empty: the container's.
    pub(crate) user: String,
}

impl Command {
    /// One that differs in its words alone.
    pub(crate) fn new(argv: Vec<String>, tty: bool) -> Command {
        Command { argv, tty, ..Command::default() }
    }
}

/// Runs a command in a container; gives its exit code once its output is written. Dropping the future kills all its
/// processes.
///
/// # Errors
/// `FailedPrecondition` when the container does not run, `InvalidArgument` when there is no such program.
pub(crate) async fn exec(
    context: &Arc<Context>,
    pod: &PodId,
    container: &ContainerRecord,
    command: Command,
    streams: Streams,
) -> Result<i32> {
    let null = exec::null()?;
    if command.tty {
        return exec_on_terminal(context, pod, container, command, streams, null.as_fd()).await;
    }
    // Whoever takes no sizes must not be waited for.
    drop(streams.resize);
    let (stdin, stdin_end) = optional_pipe(streams.stdin.is_some())?;
    let (stdout_end, stdout) = optional_pipe(streams.stdout.is_some())?;
    let (stderr_end, stderr) = optional_pipe(streams.stderr.is_some())?;
    let connection = {
        let stdio = [&stdin, &stdout, &stderr].map(|end| end.as_ref().unwrap_or(&null).as_fd());
        exec::start(context, pod, container, command, stdio, None).await?
    };
    drop((stdin, stdout, stderr));
    let (ended, end) = watch::channel(false);
    let outputs = async {
        tokio::join!(
            output(stdout_end, streams.stdout, end.clone()),
            output(stderr_end, streams.stderr, end.clone())
        )
    };
    let exited = async {
        let code = exec::exit_code(&connection).await;
        ended.send_replace(true);
        code
    };
    let whole = async { tokio::join!(outputs, exited) };
    let ((stdout, stderr), code) = while_feeding(whole, input(streams.stdin, stdin_end)).await;
    stdout.and(stderr).map_err(at("carry the output of", container.id.short()))?;
    code
}

/// The same on a terminal of the container, of which the agent has the other end.
async fn exec_on_terminal(
    context: &Arc<Context>,
    pod: &PodId,
    container: &ContainerRecord,
    command: Command,
    streams: Streams,
    null: BorrowedFd<'_>,
) -> Result<i32> {
    let failed = |errno: rustix::io::Errno| Error::Internal(format!("take the terminal: {errno}"));
    let (theirs, ours) = console::pair().map_err(failed)?;
    let connection = exec::start(context, pod, container, command, [null; 3], Some(theirs.as_fd())).await?;
    let master = console::receive(&ours).map_err(failed)?;
    let terminal = Terminal::new(&master)?;
    let (ended, end) = watch::channel(false);
    let exited = async {
        let code = exec::exit_code(&connection).await;
        ended.send_replace(true);
        code
    };
    let whole = async { tokio::join!(output(Some(master), streams.stdout, end), exited) };
    let feed = terminal.serve(streams.stdin, streams.resize);
    let (output, code) = while_feeding(whole, feed).await;
    output.map_err(at("carry the output of", container.id.short()))?;
    code
}

/// Our end of a container's terminal, to type and to resize.
struct Terminal {
    input: OwnedFd,
    size: OwnedFd,
}

impl Terminal {
    fn new(master: &OwnedFd) -> Result<Terminal> {
        let clone = || master.try_clone().map_err(at("duplicate", "a terminal"));
        Ok(Terminal { input: clone()?, size: clone()? })
    }

    async fn serve(self, client: Option<Box<dyn AsyncRead + Send + Unpin>>, mut sizes: mpsc::Receiver<Size>) {
        let resize = async {
            while let Some(Size { columns, rows }) = sizes.recv().await {
                let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                // One that is gone needs no size.
                let _ = rustix::termios::tcsetwinsize(&self.size, size);
            }
        };
        tokio::join!(input(client, Some(self.input)), resize);
    }
}

/// A place among those who watch a container, and write to it.
pub(crate) struct Attachment {
    context: Arc<Context>,
    pod: PodId,
    container: Arc<ContainerRecord>,
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
    /// Its end is the attachment's.
    _connection: Connection,
}

impl Attachment {
    /// Joins the streams of a container that waits for its start or runs. What it prints from now on is seen.
    ///
    /// # Errors
    /// `FailedPrecondition` when the container has ended.
    pub(crate) async fn new(
        context: &Arc<Context>,
        pod: &PodId,
        container: &Arc<ContainerRecord>,
    ) -> Result<Attachment> {
        if container.phase == ContainerPhase::Exited {
            return Err(Error::Precondition(format!("container {} is not running", container.id.short())));
        }
        let connection = Connection::open(pod, &context.pod_state(pod)).await?;
        let (stdout, stdout_end) = new_pipe()?;
        let (stderr, stderr_end) = new_pipe()?;
        for end in [&stdout_end, &stderr_end] {
            // A smaller one does too.
            let _ = rustix::pipe::fcntl_setpipe_size(end, ATTACH_PIPE);
        }
        let stdin = connection.attach(&container.id, [stdout_end.as_fd(), stderr_end.as_fd()]).await?;
        let (context, pod, container) = (context.clone(), pod.clone(), container.clone());
        Ok(Attachment { context, pod, container, stdin, stdout, stderr, _connection: connection })
    }

    /// Carries the streams until the container has ended. Dropping the future leaves the container, and closes an
    /// input that is for one client only.
    pub(crate) async fn carry(self, streams: Streams) -> Result<()> {
        let once = (self.container.config.stdin_once && streams.stdin.is_some()).then(|| CloseInput {
            context: self.context.clone(),
            pod: self.pod.clone(),
            container: self.container.id.clone(),
        });
        let (_open, end) = watch::channel(false);
        let outputs = async {
            tokio::join!(
                output(Some(self.stdout), streams.stdout, end.clone()),
                output(Some(self.stderr), streams.stderr, end.clone())
            )
        };
        let feed = async {
            match self.stdin {
                Some(master) if self.container.config.tty => {
                    let client = streams.stdin.filter(|_| self.container.config.stdin);
                    if let Ok(terminal) = Terminal::new(&master) {
                        terminal.serve(client, streams.resize).await;
                    }
                }
                pipe => {
                    drop(streams.resize);
                    input(streams.stdin, pipe).await;
                }
            }
            drop(once);
        };
        let (stdout, stderr) = while_feeding(outputs, feed).await;
        stdout.and(stderr).map_err(at("carry the output of", self.container.id.short()))
    }
}

/// Connects to a port of a pod as its own processes would, on its loopback.
///
/// # Errors
/// `FailedPrecondition` when the pod does not run or nobody listens there.
pub(crate) async fn connect(pod: &PodRecord, port: u16) -> Result<TcpStream> {
    let refused =
        |why: String| Error::Precondition(format!("connect to port {port} of pod {}: {why}", pod.id.short()));
    let monitor = pod.monitor_pid.filter(|_| pod.phase == PodPhase::Ready);
    let monitor = monitor.ok_or_else(|| refused("it is not running".into()))?;
    let socket = blocking(move || {
        let netns = File::open(format!("/proc/{monitor}/ns/net"))?.into();
        Network::dial(&netns, port, CONNECT)
    });
    let socket = socket.await.map_err(|error| refused(error.to_string()))?;
    socket.set_nonblocking(true).and_then(|()| TcpStream::from_std(socket)).map_err(at("watch", "a socket"))
}

/// Closes the input of a container whose one client has gone.
struct CloseInput {
    context: Arc<Context>,
    pod: PodId,
    container: ContainerId,
}

impl Drop for CloseInput {
    fn drop(&mut self) {
        let (context, pod, id) = (self.context.clone(), self.pod.clone(), self.container.to_string());
        tokio::spawn(async move {
            let closed = async {
                let connection = Connection::open(&pod, &context.pod_state(&pod)).await?;
                connection.command(&Request::CloseStdin { id: id.clone() }).await
            };
            if let Err(error) = closed.await {
                tracing::debug!(container.id = %id, error = %error.chain(), "the input could not be closed");
            }
        });
    }
}

/// Waits for `work`, with `feed` beside it for as long as it takes.
async fn while_feeding<T>(work: impl Future<Output = T>, feed: impl Future<Output = ()>) -> T {
    let feed = async {
        feed.await;
        std::future::pending().await
    };
    tokio::select! {
        outcome = work => outcome,
        () = feed => unreachable!("it never ends"),
    }
}

/// Copies a client's input until either side has ended, and closes the pipe then.
async fn input(client: Option<Box<dyn AsyncRead + Send + Unpin>>, pipe: Option<OwnedFd>) {
    let (Some(mut client), Some(pipe)) = (client, pipe) else { return };
    let pipe = nonblocking(pipe).and_then(pipe::Sender::from_owned_fd_unchecked);
    if let Ok(mut pipe) = pipe {
        // It fails when nobody reads it any more, or the client is gone: the end of the input either way.
        let _ = tokio::io::copy(&mut client, &mut pipe).await;
    }
}

/// Copies output to a client until the pipe ends, or is empty when the command has `ended`: its background children may
/// hold it open for ever. A client that takes no more does not hold up the command.
async fn output(
    pipe: Option<OwnedFd>,
    mut client: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    mut ended: watch::Receiver<bool>,
) -> io::Result<()> {
    let Some(pipe) = pipe else { return Ok(()) };
    let mut pipe = pipe::Receiver::from_owned_fd_unchecked(nonblocking(pipe)?)?;
    let mut buffer = vec![0; BUFFER];
    // After the end no more than a pipe can hold is read.
    let mut rounds = 2 * ATTACH_PIPE / BUFFER;
    while rounds > 0 {
        let over = *ended.borrow();
        let length = if over {
            rounds -= 1;
            // Past tokio, which may not know yet of what was written last.
            rustix::io::read(&pipe, &mut buffer[..]).unwrap_or(0)
        } else {
            tokio::select! {
                // A terminal that is gone is an error to read, not an end.
                read = pipe.read(&mut buffer) => read.unwrap_or(0),
                Ok(()) = ended.changed() => continue,
            }
        };
        if length == 0 {
            break;
        }
        if let Some(writer) = &mut client
            && writer.write_all(&buffer[..length]).await.is_err()
        {
            client = None;
        }
    }
    match client {
        Some(mut client) => client.shutdown().await.or(Ok(())),
        None => Ok(()),
    }
}

fn nonblocking(end: OwnedFd) -> io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&end, true)?;
    Ok(end)
}

/// The ends for reading and writing.
fn new_pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).map_err(at("make", "a pipe"))
}

fn optional_pipe(wanted: bool) -> Result<(Option<OwnedFd>, Option<OwnedFd>)> {
    Ok(if wanted { new_pipe().map(|(read, write)| (Some(read), Some(write)))? } else { (None, None) })
}
