//! Running a command in a container and collecting what it prints.
//!
//! The monitor starts it; its output comes straight to the agent through pipes, at most 16 MiB of each
//! stream. Nothing here goes through the pod's task: probes must not wait for one another.

use std::{
    fs::File,
    io::{self, Seek, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use oci_spec::runtime::{Process, Spec};
use rustix::{
    fs::{MemfdFlags, Mode, OFlags},
    io::Errno,
    pipe::PipeFlags,
};
use sampan_runtime::shim::protocol::{Request, Response};
use tokio::{io::AsyncReadExt, net::unix::pipe, time::timeout};
use tracing::warn;

use super::{
    id::{ContainerId, PodId},
    layout::with_primary,
    monitor::Connection,
    record::{ContainerPhase, ContainerRecord},
    session::Command,
};
use crate::{
    context::Context,
    error::{Error, Result, at},
};

/// What kubelet expects as the most of one stream; the rest is read and thrown away.
const OUTPUT_LIMIT: usize = 16 << 20;

/// What an execution gave.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// At most 16 MiB.
    pub stdout: Vec<u8>,
    /// At most 16 MiB.
    pub stderr: Vec<u8>,
    /// The command's own, or 128 and the signal.
    pub exit_code: i32,
}

/// Runs `argv` in a running container.
///
/// # Errors
/// `FailedPrecondition` when the container does not run; `DeadlineExceeded` when the command takes longer
/// than `limit`, all its processes being killed then.
pub(crate) async fn run(
    context: &Arc<Context>,
    pod: &PodId,
    container: &ContainerRecord,
    argv: Vec<String>,
    limit: Option<Duration>,
) -> Result<Output> {
    let pipe =
        || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).map_err(at("make", "a pipe"));
    let (stdout, stdout_end) = pipe()?;
    let (stderr, stderr_end) = pipe()?;
    let null = null()?;
    let stdio = [null.as_fd(), stdout_end.as_fd(), stderr_end.as_fd()];
    let connection = start(context, pod, container, Command::new(argv, false), stdio, None).await?;
    drop((stdout_end, stderr_end));
    let collect = collect(&connection, stdout, stderr);
    match limit {
        None => collect.await,
        Some(limit) => match timeout(limit, collect).await {
            Ok(output) => output,
            Err(_) => {
                // A probe that is answered while its processes are still there makes them pile up.
                if let Err(error) = connection.give_up().await {
                    warn!(container.id = %container.id, error = %error.chain(), "a command may not be gone");
                }
                let what = format!("the command in container {}", container.id.short());
                Err(Error::Deadline { what, limit })
            }
        },
    }
}

/// Starts a command with these descriptors as its standard input, output and error; or with a terminal, whose master
/// comes over the socket `console`. Closing the connection makes the
/// monitor kill every process of it.
pub(super) async fn start(
    context: &Context,
    pod: &PodId,
    container: &ContainerRecord,
    command: Command,
    stdio: [BorrowedFd<'_>; 3],
    console: Option<BorrowedFd<'_>>,
) -> Result<Connection> {
    if container.phase != ContainerPhase::Running {
        return Err(Error::Precondition(format!("container {} is not running", container.id.short())));
    }
    if command.argv.is_empty() {
        return Err(Error::Invalid("the command to execute is empty".into()));
    }
    let since = Instant::now();
    let folder = context.pod_state(pod);
    let process = process(&folder.join(container.id.as_str()).join("config.json"), container.pid, command)?;
    let connection = Connection::open(pod, &folder).await?;
    let request =
        Request::Exec { id: container.id.to_string(), exec: ContainerId::random().short().to_owned() };
    let [stdin, stdout, stderr] = stdio;
    let descriptors: Vec<_> = [process.as_fd(), stdin, stdout, stderr].into_iter().chain(console).collect();
    let answer = connection.request_with(&request, &descriptors).await;
    context.measurements.exec_start(matches!(answer, Ok(Response::ExecStarted { .. })), since);
    match answer? {
        Response::ExecStarted { .. } => Ok(connection),
        other => Err(Error::Internal(format!("the monitor answered {other:?} to an execution"))),
    }
}

/// Waits for a command's end.
pub(super) async fn exit_code(connection: &Connection) -> Result<i32> {
    match connection.receive().await? {
        Some(Response::ExecExited { exit_code }) => Ok(exit_code),
        Some(Response::Error { message, .. }) => Err(Error::Internal(message)),
        Some(other) => Err(Error::Internal(format!("the monitor sent {other:?} during an execution"))),
        None => Err(Error::Internal("the monitor ended during an execution".into())),
    }
}

/// What a command without a stream has in its place.
pub(super) fn null() -> Result<OwnedFd> {
    let null = File::options().read(true).write(true).open("/dev/null");
    null.map(OwnedFd::from).map_err(at("open", "/dev/null"))
}

/// The container's own process with another command line, in a file that has no name.
fn process(config: &Path, pid: Option<i32>, command: Command) -> Result<OwnedFd> {
    let text = std::fs::read(config).map_err(at("read", config))?;
    let spec: Spec = serde_json::from_slice(&text).map_err(io::Error::other).map_err(at("read", config))?;
    let missing = || Error::Internal(format!("{} has no process", config.display()));
    let mut process: Process = spec.process().clone().ok_or_else(missing)?;
    process.set_args(Some(command.argv)).set_terminal(Some(command.tty));
    let mut env = process.env().clone().unwrap_or_default();
    if command.tty && !env.iter().any(|variable| variable.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    if !command.user.is_empty() {
        let user = resolve_user(pid, &command.user)?;
        set_variable(&mut env, "HOME", user.home.as_deref().unwrap_or("/"));
        let mut identity = oci_spec::runtime::User::default();
        let groups = with_primary(user.gid, user.additional_gids);
        identity.set_uid(user.uid).set_gid(user.gid).set_additional_gids(Some(groups));
        process.set_user(identity);
    }
    for (name, value) in &command.env {
        set_variable(&mut env, name, value);
    }
    process.set_env(Some(env));
    if !command.working_dir.is_empty() {
        process.set_cwd(command.working_dir.into());
    }
    let memory = rustix::fs::memfd_create("process.json", MemfdFlags::CLOEXEC);
    let mut file = File::from(memory.map_err(io::Error::from).map_err(at("create", "process.json"))?);
    let text = serde_json::to_vec(&process).map_err(io::Error::other);
    let written = text.and_then(|text| file.write_all(&text)).and_then(|()| file.rewind());
    written.map_err(at("write", "process.json"))?;
    Ok(file.into())
}

/// Looks up a user in the files of a running container.
fn resolve_user(pid: Option<i32>, text: &str) -> Result<sampan_runtime::user::User> {
    let root = format!("/proc/{}/root", pid.unwrap_or_default());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&root, flags, Mode::empty());
    // It was looked at a moment ago.
    let opened = opened.map_err(|errno| match errno {
        Errno::NOENT | Errno::SRCH => Error::Precondition("the container has ended".into()),
        errno => at("open", &root)(errno.into()),
    });
    Ok(sampan_runtime::user::resolve(opened?.as_fd(), text)?)
}

fn set_variable(env: &mut Vec<String>, name: &str, value: &str) {
    env.retain(|variable| variable.split_once('=').is_none_or(|(other, _)| other != name));
    env.push(format!("{name}={value}"));
}

/// Reads both streams until the command has ended. What its background children may still hold open is not
/// waited for: all that the command itself wrote is in the pipes by then.
async fn collect(connection: &Connection, stdout: OwnedFd, stderr: OwnedFd) -> Result<Output> {
    let mut stdout = Stream::new(stdout)?;
    let mut stderr = Stream::new(stderr)?;
    let exit_code = loop {
        tokio::select! {
            biased;
            () = stdout.read(), if stdout.open => {}
            () = stderr.read(), if stderr.open => {}
            code = exit_code(connection) => break code?,
        }
    };
    stdout.drain();
    stderr.drain();
    Ok(Output { stdout: stdout.kept, stderr: stderr.kept, exit_code })
}

struct Stream {
    pipe: pipe::Receiver,
    kept: Vec<u8>,
    buffer: Box<[u8]>,
    open: bool,
}

impl Stream {
    fn new(end: OwnedFd) -> Result<Stream> {
        let pipe = rustix::io::ioctl_fionbio(&end, true).map_err(io::Error::from);
        let pipe = pipe.and_then(|()| pipe::Receiver::from_owned_fd(end)).map_err(at("read", "a pipe"))?;
        Ok(Stream { pipe, kept: Vec::new(), buffer: vec![0; 64 << 10].into(), open: true })
    }

    async fn read(&mut self) {
        match self.pipe.read(&mut self.buffer).await {
            Ok(0) | Err(_) => self.open = false,
            Ok(length) => self.keep(length),
        }
    }

    /// Takes what is there without waiting for more, and no more than a pipe can hold: a background child
    /// may go on writing for ever.
    fn drain(&mut self) {
        const ROUNDS: usize = 16;
        for _ in 0..ROUNDS {
            if !self.open {
                return;
            }
            // Past tokio: its own `try_read` asks the kernel only once the poller has told it of something to
            // read, and the poller may not have run since the command wrote.
            match rustix::io::read(&self.pipe, &mut self.buffer[..]) {
                Ok(0) | Err(_) => self.open = false,
                Ok(length) => self.keep(length),
            }
        }
    }

    fn keep(&mut self, length: usize) {
        let room = OUTPUT_LIMIT - self.kept.len();
        self.kept.extend_from_slice(&self.buffer[..length.min(room)]);
    }
}
