//! The agent's side of a pod's monitor (`sampan-runtime shim`): starting one, and speaking to it.
//!
//! A connection is a SOCK_SEQPACKET socket that carries one message a datagram. Requests on one connection
//! are answered in order, so the pod's task keeps two: one for requests, one that receives events.
//! Executions have a connection of their own each.
//!
//! An answer that nobody waited for any more comes before the next one, and is passed over then.

use std::{
    ffi::OsString,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{Mode, OFlags},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    },
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
};
use sampan_runtime::{
    mount::MinimalNamespace,
    shim::{
        Launcher, Start,
        protocol::{ContainerState, EXEC_DESCRIPTORS, ErrorKind, MAX_MESSAGE, Request, Response, VERSION},
    },
};
use tokio::{
    io::Interest,
    net::UnixStream,
    time::{sleep, timeout},
};
use tracing::debug;

use super::{
    config::{IdMappings, IdRun},
    id::{ContainerId, PodId},
};
use crate::{
    error::{Error, Kind, Result, at},
    procfs::Procfs,
};

/// Longest wait for any answer of a monitor. Making a container mounts file systems, which can be slow; a monitor gives another
/// runtime 100 seconds, and kubelet waits for two minutes.
const ANSWER: Duration = Duration::from_secs(110);

/// Between tries to connect to a monitor with which many others are waiting to be connected.
const RETRY: Duration = Duration::from_millis(10);

/// Longest wait for a killed monitor to be gone.
const KILLED: Duration = Duration::from_secs(10);

/// The name of the socket in a pod's state folder.
const SOCKET: &str = "shim.sock";

/// One connection to a monitor.
#[derive(Debug)]
pub(crate) struct Connection {
    pod: PodId,
    /// Tokio has no type for SEQPACKET sockets; this one is used for readiness alone.
    socket: UnixStream,
    /// The monitor's process.
    pub(crate) pid: i32,
    /// Requests whose answers were given up, and will come all the same.
    given_up: AtomicU32,
}

/// How a monitor is started.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) launcher: &'a Launcher,
    pub(crate) pod: &'a PodId,
    /// The pod's state folder.
    pub(crate) folder: &'a Path,
    pub(crate) cgroup: &'a str,
    pub(crate) mounts: Option<&'a MinimalNamespace>,
    pub(crate) hostname: Option<&'a str>,
    pub(crate) host_network: bool,
    pub(crate) host_ipc: bool,
    pub(crate) shared_pid: bool,
    pub(crate) sysctls: Vec<(String, String)>,
    /// By which they are set.
    pub(crate) procfs: &'a Procfs,
    pub(crate) users: Option<&'a IdMappings>,
}

/// Starts a monitor and gives a connection to it, once it has made the pod's namespaces.
pub(crate) async fn launch(launch: &Launch<'_>) -> Result<Connection> {
    let gone = |source| Error::MonitorGone { pod: launch.pod.to_string(), source };
    let log = launch.folder.join("shim.log");
    let start = Start { arguments: launch.arguments(), socket: launch.folder.join(SOCKET), log: log.clone() };
    let monitor = launch
        .launcher
        .start(start)
        .and_then(Started::new)
        .map_err(|source| gone(io::Error::new(source.kind(), format!("start it: {source}"))))?;
    match Connection::open(launch.pod, launch.folder).await {
        Ok(connection) => {
            // The monitor is our child until the agent ends: reap it whenever it goes.
            tokio::spawn(monitor.reap());
            Ok(connection)
        }
        Err(error) => {
            monitor.kill();
            let _ = timeout(KILLED, monitor.reap()).await;
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let last = log.lines().last().unwrap_or("the monitor said nothing").to_owned();
            Err(gone(io::Error::other(format!("{}: {last}", error.chain()))))
        }
    }
}

impl Launch<'_> {
    fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            ["--pod", self.pod.as_str(), "--cgroup", self.cgroup].map(Into::into).into();
        if let Some(mounts) = self.mounts {
            arguments.extend(["--mounts".into(), mounts.path().into()]);
        }
        if let Some(hostname) = self.hostname {
            arguments.extend(["--hostname".into(), hostname.into()]);
        }
        for (wanted, flag) in [
            (self.host_network, "--host-network"),
            (self.host_ipc, "--host-ipc"),
            (self.shared_pid, "--shared-pid"),
        ] {
            arguments.extend(wanted.then(|| flag.into()));
        }
        if !self.sysctls.is_empty() {
            arguments.extend(["--procfs".into(), self.procfs.path().into()]);
        }
        for (key, value) in &self.sysctls {
            arguments.extend(["--sysctl".into(), format!("{key}={value}").into()]);
        }
        if let Some(mappings) = self.users {
            for (flag, runs) in [("--uid-map", &mappings.uids), ("--gid-map", &mappings.gids)] {
                for IdRun { outside, inside, length } in runs {
                    arguments.extend([flag.into(), format!("{inside}:{outside}:{length}").into()]);
                }
            }
        }
        arguments
    }
}

/// A monitor that is our child.
struct Started {
    /// Its pidfd, for whose readiness Tokio has no type either.
    process: UnixStream,
}

impl Started {
    fn new(pid: i32) -> io::Result<Started> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
        let process = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        Ok(Started { process: UnixStream::from_std(process.into())? })
    }

    fn kill(&self) {
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// Waits until it ends, and has the kernel forget it.
    async fn reap(self) {
        let ended = || waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED);
        let _ = self.process.async_io(Interest::READABLE, || Ok(ended()?)).await;
    }
}

impl Connection {
    /// Connects to the monitor of a pod and agrees on the protocol's version.
    pub(crate) async fn open(pod: &PodId, folder: &Path) -> Result<Connection> {
        let socket = in_time(connect(folder)).await;
        let socket = socket.map_err(|source| Error::MonitorGone { pod: pod.to_string(), source })?;
        let mut connection = Connection { pod: pod.clone(), socket, pid: 0, given_up: AtomicU32::new(0) };
        match connection.request(&Request::Hello { version: VERSION }).await? {
            Response::Hello { pid, .. } => connection.pid = pid,
            other => return Err(connection.unexpected(&other)),
        }
        Ok(connection)
    }

    /// Sends a request and waits for its answer; a refusal becomes an error.
    pub(crate) async fn request(&self, request: &Request) -> Result<Response> {
        self.request_with(request, &[]).await
    }

    /// The same with descriptors passed along.
    pub(crate) async fn request_with(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Response> {
        self.send(request, fds).await?;
        self.answer().await.map(|(response, _)| response)
    }

    /// The answer to what was sent last, with the descriptor that came with it.
    async fn answer(&self) -> Result<(Response, Option<OwnedFd>)> {
        let answer = timeout(ANSWER, self.receive_own()).await.map_err(|_| {
            self.given_up.fetch_add(1, Ordering::Relaxed);
            let what = format!("the monitor of pod {}", self.pod.short());
            Error::Deadline { what, limit: ANSWER }
        });
        match answer?? {
            Some((Response::Error { kind, message }, _)) => {
                Err(Error::Monitor { kind: refusal(kind), message })
            }
            Some(answer) => Ok(answer),
            None => Err(self.gone(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// A request that is answered by nothing but its being done.
    pub(crate) async fn command(&self, request: &Request) -> Result<()> {
        match self.request(request).await? {
            Response::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Has the monitor copy a container's output to two pipes, for as long as the connection is open; gives the end for
    /// writing to the container's input if there is one.
    pub(crate) async fn attach(
        &self,
        container: &ContainerId,
        pipes: [BorrowedFd<'_>; 2],
    ) -> Result<Option<OwnedFd>> {
        self.send(&Request::Attach { id: container.to_string() }, &pipes).await?;
        match self.answer().await? {
            (Response::Attached, stdin) => Ok(stdin),
            (other, _) => Err(self.unexpected(&other)),
        }
    }

    /// Gives up the command that runs on this connection: all its processes are killed. Returns when they are gone.
    pub(crate) async fn give_up(&self) -> Result<()> {
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write)
            .map_err(|errno| self.gone(errno.into()))?;
        let ended = async {
            while let Some(message) = self.receive().await? {
                if matches!(message, Response::ExecExited { .. } | Response::Error { .. }) {
                    break;
                }
            }
            Ok(())
        };
        timeout(ANSWER, ended).await.map_err(|_| Error::Deadline {
            what: format!("killing a command in pod {}", self.pod.short()),
            limit: ANSWER,
        })?
    }

    /// Every container that the monitor knows.
    pub(crate) async fn state(&self) -> Result<Vec<ContainerState>> {
        let mut all = Vec::new();
        let mut answer = self.request(&Request::State).await?;
        loop {
            let Response::State { containers, more } = answer else { return Err(self.unexpected(&answer)) };
            all.extend(containers);
            if !more {
                return Ok(all);
            }
            answer = match timeout(ANSWER, self.receive()).await {
                Ok(next) => next?.ok_or_else(|| self.gone(io::ErrorKind::UnexpectedEof.into()))?,
                Err(_) => return Err(self.gone(io::ErrorKind::TimedOut.into())),
            };
        }
    }

    /// The next message, whenever it comes; `None` when the monitor has closed the connection.
    pub(crate) async fn receive(&self) -> Result<Option<Response>> {
        Ok(self.receive_with().await?.map(|(response, _)| response))
    }

    /// The answer to the last request, behind those to earlier ones that were given up.
    async fn receive_own(&self) -> Result<Option<(Response, Option<OwnedFd>)>> {
        while self.given_up.load(Ordering::Relaxed) > 0 {
            match self.receive().await? {
                None => return Ok(None),
                // More of the same answer follows.
                Some(Response::State { more: true, .. }) => {}
                Some(late) => {
                    debug!(?late, "an answer that was given up");
                    self.given_up.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
        self.receive_with().await
    }

    async fn receive_with(&self) -> Result<Option<(Response, Option<OwnedFd>)>> {
        match self.socket.async_io(Interest::READABLE, || receive(&self.socket)).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            received => received.map_err(|error| self.gone(error)),
        }
    }

    async fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let message = serde_json::to_vec(request).map_err(|error| self.gone(error.into()))?;
        if message.len() > MAX_MESSAGE {
            return Err(Error::Invalid(format!(
                "a request to the monitor of pod {} has {} bytes; at most {MAX_MESSAGE} fit",
                self.pod.short(),
                message.len()
            )));
        }
        let write = self.socket.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(EXEC_DESCRIPTORS))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(fds));
            }
            let message = [IoSlice::new(&message)];
            Ok(rustix::net::sendmsg(&self.socket, &message, &mut ancillary, SendFlags::NOSIGNAL)?)
        });
        in_time(write).await.map(|_| ()).map_err(|error| self.gone(error))
    }

    fn gone(&self, source: io::Error) -> Error {
        Error::MonitorGone { pod: self.pod.to_string(), source }
    }

    fn unexpected(&self, response: &Response) -> Error {
        self.gone(io::Error::new(io::ErrorKind::InvalidData, format!("unexpected answer {response:?}")))
    }
}

/// One message and the descriptor that came with it; `None` at the end. The buffer is here, and not kept by who waits.
fn receive(socket: &UnixStream) -> io::Result<Option<(Response, Option<OwnedFd>)>> {
    let mut buffer = [0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let length = rustix::net::recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
    if length == 0 {
        return Ok(None);
    }
    let rights = |message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    };
    let descriptor = ancillary.drain().find_map(rights);
    Ok(Some((serde_json::from_slice(&buffer[..length])?, descriptor)))
}

/// What a monitor that takes nothing holds up, for as long as any answer may take.
async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(ANSWER, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Waits, but keeps no thread waiting, while as many as the kernel lets wait are waiting already.
async fn connect(folder: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = seqpacket(flags)?;
    let (_directory, address) = address(folder)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Err(Errno::AGAIN) => sleep(RETRY).await,
            connected => break connected?,
        }
    }
    UnixStream::from_std(socket.into())
}

fn seqpacket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn address(folder: &Path) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let directory =
        rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path: PathBuf = format!("/proc/self/fd/{}/{SOCKET}", directory.as_fd().as_raw_fd()).into();
    Ok((directory, SocketAddrUnix::new(path)?))
}

fn refusal(kind: ErrorKind) -> Kind {
    match kind {
        ErrorKind::NotFound => Kind::NotFound,
        ErrorKind::AlreadyExists => Kind::AlreadyExists,
        ErrorKind::FailedPrecondition => Kind::FailedPrecondition,
        ErrorKind::InvalidArgument => Kind::InvalidArgument,
        ErrorKind::Internal => Kind::Internal,
    }
}

/// Kills a pod's monitor if that process is still it: the number may belong to a stranger by now.
pub(crate) fn kill(pid: i32, pod: &PodId) -> Result<()> {
    kill_process(pid, pod).map_err(|source| Error::MonitorGone { pod: pod.to_string(), source })
}

/// Kills the monitor of a pod of which no record tells the process.
pub(crate) fn end_stranger(pod: &PodId) -> Result<()> {
    let processes = std::fs::read_dir("/proc").map_err(at("read", "/proc"))?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| is_monitor(*pid, pod)).try_for_each(|pid| kill(pid, pod))
}

fn is_monitor(pid: i32, pod: &PodId) -> bool {
    let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = command_line.split(|byte| *byte == 0);
    words.nth(1) == Some(b"shim") && words.any(|word| word == pod.as_str().as_bytes())
}

fn kill_process(pid: i32, pod: &PodId) -> io::Result<()> {
    let Some(number) = Pid::from_raw(pid) else { return Ok(()) };
    let process = match pidfd_open(number, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        other => other?,
    };
    if !is_monitor(pid, pod) {
        return Ok(());
    }
    match pidfd_send_signal(&process, Signal::KILL) {
        Err(Errno::SRCH) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    // The descriptor becomes readable when the process has ended.
    let mut waiting = [PollFd::new(&process, PollFlags::IN)];
    let deadline = Timespec::try_from(KILLED).map_err(io::Error::other)?;
    rustix::event::poll(&mut waiting, Some(&deadline))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::net::{RecvFlags, recv, send, socketpair};

    use super::*;

    fn pair() -> (Connection, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, monitors) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let socket = UnixStream::from_std(ours.into()).unwrap();
        let pod = PodId::random();
        (Connection { pod, socket, pid: 0, given_up: AtomicU32::new(0) }, monitors)
    }

    fn answer(monitor: &OwnedFd, response: &Response) {
        send(monitor, &serde_json::to_vec(response).unwrap(), SendFlags::empty()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_not_taken_for_the_next_ones() {
        let (connection, monitor) = pair();
        let start = Request::Start { id: "a".into() };
        for _ in 0..2 {
            let late = connection.request(&start).await.unwrap_err();
            assert_eq!(late.kind(), Kind::DeadlineExceeded);
        }
        answer(&monitor, &Response::Started { started_at: 1, pid: None });
        answer(&monitor, &Response::Error { kind: ErrorKind::NotFound, message: "late".into() });
        answer(&monitor, &Response::Created { pid: 7 });
        let request = Request::Kill { id: "a".into(), signal: 9, all: false };
        assert!(matches!(connection.request(&request).await.unwrap(), Response::Created { pid: 7 }));
        answer(&monitor, &Response::Done);
        connection.command(&request).await.unwrap();
        let mut buffer = [0; 4096];
        let sent = (0..4).filter(|_| recv(&monitor, &mut buffer, RecvFlags::empty()).is_ok());
        assert_eq!(sent.count(), 4, "each was asked");
    }

    #[tokio::test]
    async fn a_monitor_that_accepts_nobody_keeps_no_thread_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let listener = seqpacket(SocketFlags::CLOEXEC).unwrap();
        rustix::net::bind(&listener, &address(folder.path()).unwrap().1).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _first = connect(folder.path()).await.unwrap();
        let mut second = Box::pin(connect(folder.path()));
        // The only thread goes on.
        timeout(Duration::from_millis(50), &mut second).await.unwrap_err();
        rustix::net::accept(&listener).unwrap();
        timeout(ANSWER, second).await.unwrap().unwrap();
    }
}
