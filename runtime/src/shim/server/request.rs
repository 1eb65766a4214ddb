//! What clients ask for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{FileType, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::time::{ClockId, clock_gettime};

use super::{SHUTDOWN, Server, Shutdown};
use crate::cgroup::Cgroup;
use crate::console;
use crate::container::{Child, PidNamespace, SpawnOptions, spawn};
use crate::criu::{self, Restore};
use crate::delegate;
use crate::exec::ExecOptions;
use crate::shim::connection::Message;
use crate::shim::container::{Attachment, Container, Phase, Terminal};
use crate::shim::exec::Exec;
use crate::shim::log::{Log, Stream};
use crate::shim::poll::{EventFlags, Source};
use crate::shim::protocol::{
    ATTACH_DESCRIPTORS, ErrorKind, MAX_ID, PidMode, Request, Response, Runtime, VERSION,
};
use crate::shim::{chain, say};
use crate::sys;
use crate::users::UserNamespace;

/// Containers in one message of a state: with the longest ids they fit.
const STATE_BATCH: usize = 8;

/// A refusal.
pub(super) type Refusal = (ErrorKind, String);

/// What to say now, or nothing when the answer comes with a later event.
pub(super) type Answer = Result<Option<Response>, Refusal>;

const DONE: Answer = Ok(Some(Response::Done));

impl Server {
    pub(super) fn request(&mut self, client: u32, message: Message) {
        let Some(connection) = self.connection(client) else { return };
        connection.busy = true;
        let greeted = connection.greeted;
        let answer = match message.request {
            Err(text) => Err((ErrorKind::InvalidArgument, text)),
            Ok(Request::Hello { version }) => self.hello(client, version),
            Ok(_) if !greeted => {
                Err((ErrorKind::FailedPrecondition, "the first request must be hello".to_owned()))
            }
            Ok(request) => self.answer(client, request, message.descriptors),
        };
        match answer {
            Ok(Some(response)) => self.reply(client, response),
            Ok(None) => {}
            Err((kind, text)) => self.reply_error(client, kind, text),
        }
    }

    fn hello(&mut self, client: u32, version: u32) -> Answer {
        if version == 0 {
            return Err((ErrorKind::InvalidArgument, "there is no version 0".to_owned()));
        }
        if let Some(connection) = self.connection(client) {
            connection.greeted = true;
        }
        Ok(Some(Response::Hello { version: VERSION, pid: rustix::process::getpid().as_raw_nonzero().get() }))
    }

    fn answer(&mut self, client: u32, request: Request, descriptors: Vec<OwnedFd>) -> Answer {
        let making = matches!(
            request,
            Request::Create { .. }
                | Request::Restore { .. }
                | Request::Start { .. }
                | Request::Exec { .. }
                | Request::Checkpoint { .. }
        );
        if self.shutdown.is_some() && making {
            return Err((ErrorKind::FailedPrecondition, "the pod is shutting down".to_owned()));
        }
        match request {
            Request::Hello { version } => self.hello(client, version),
            Request::Create { id, bundle, cgroup, log, pid, stdin, terminal, runtime } => {
                let way = runtime.map_or(Way::Own, Way::Delegate);
                self.create(client, New { id, bundle, cgroup, log, pid, stdin, terminal, way })
            }
            Request::Restore { id, bundle, cgroup, log, stdin, images, criu } => {
                let (pid, way) = (PidMode::Private, Way::Restore { images, criu });
                self.create(client, New { id, bundle, cgroup, log, pid, stdin, terminal: false, way })
            }
            Request::Start { id } => self.start(client, &id),
            Request::Kill { id, signal, all } => self.kill(&id, signal, all),
            Request::ReopenLog { id } => self.reopen_log(&id),
            Request::Forget { id } => self.forget(client, &id),
            Request::State => self.state(client),
            Request::Subscribe => {
                if let Some(connection) = self.connection(client) {
                    connection.subscribed = true;
                }
                DONE
            }
            Request::Exec { id, exec } => self.exec(client, &id, &exec, descriptors),
            Request::Checkpoint { id, images, criu } => self.checkpoint(client, &id, &images, &criu),
            Request::Attach { id } => self.attach(client, &id, descriptors),
            Request::CloseStdin { id } => {
                let container = self.find(&id)?;
                if matches!(container.terminal, Terminal::None) {
                    container.stdin = None;
                }
                DONE
            }
            Request::Shutdown => self.shut_down(Some(client)),
        }
    }

    pub(super) fn find(&mut self, id: &str) -> Result<&mut Container, Refusal> {
        let found = self.containers.iter_mut().find(|container| container.id == id);
        found.ok_or_else(|| (ErrorKind::NotFound, format!("no container {id:?}")))
    }

    fn create(&mut self, client: u32, new: New) -> Answer {
        new.check()?;
        if self.containers.iter().any(|container| container.id == new.id) {
            return Err((ErrorKind::AlreadyExists, format!("there is a container {:?} already", new.id)));
        }
        let number = self.next_number();
        let container = self.make(number, client, new)?;
        self.containers.push(container);
        Ok(None)
    }

    fn make(&self, number: u32, client: u32, new: New) -> Result<Container, Refusal> {
        let log = new.log.as_deref().map(open_log).transpose()?;
        let ((stdout, out), (stderr, err)) = match new.terminal {
            true => Default::default(),
            false => (self.output(Source::Stdout(number))?, self.output(Source::Stderr(number))?),
        };
        let piped = new.stdin && !new.terminal;
        let pipe = piped.then(|| internal("make a pipe", pipe_with(PipeFlags::CLOEXEC))).transpose()?;
        let (input, stdin) = pipe.unzip();
        let console =
            new.terminal.then(|| internal("make a pair of sockets", console::pair())).transpose()?;
        let (console, terminal) = match console {
            Some((theirs, ours)) => (Some(theirs), Terminal::Awaited(ours)),
            None => (None, Terminal::None),
        };
        let stdio = [&input, &out, &err].map(|end| end.as_ref().unwrap_or(&self.null).as_fd());
        let console = console.as_ref().map(AsFd::as_fd);
        let (bundle, cgroup) = (&*new.bundle, &*new.cgroup);
        let child = match &new.way {
            Way::Own => {
                let pid_namespace = self.pid_namespace(&new.pid)?;
                self.give_to_root(stdio)?;
                let users = self.users();
                let mounts = self.mounts.as_ref().map(AsFd::as_fd);
                let command_line = None;
                let options = SpawnOptions {
                    bundle,
                    cgroup,
                    pid_namespace,
                    stdio,
                    console,
                    users,
                    mounts,
                    command_line,
                };
                self.with_original_oom_score(|| spawn(&options))
            }
            _ if self.users.is_some() => {
                let text = "only the monitor itself makes a container for users of the pod's own";
                return Err((ErrorKind::FailedPrecondition, text.to_owned()));
            }
            Way::Restore { images, criu } => {
                let options = ["--file-locks".into()];
                let call = criu::Call { program: criu, images, work: images, options: &options };
                let (limit, keyring) = (super::checkpoint::RESTORE, Some(&*new.id));
                let wanted = Restore { call, limit, bundle, cgroup, keyring, stdio };
                self.with_original_oom_score(|| criu::restore(&wanted))
            }
            Way::Delegate(runtime) => {
                let (id, pid_namespace_of) = (&*new.id, self.pid_namespace_of(&new.pid)?);
                let wanted =
                    delegate::Container { runtime, id, bundle, cgroup, pid_namespace_of, stdio, console };
                self.with_original_oom_score(|| delegate::create(&wanted))
            }
        };
        let Child { pid, pidfd, channel } = child.map_err(internal_error)?;
        if let Err(refusal) = self.watch_child(Source::Container(number), &channel) {
            // It is reaped as somebody whom nobody knows.
            let _ = sys::signal::pidfd_send_signal(&pidfd, libc::SIGKILL);
            return Err(refusal);
        }
        Ok(Container {
            number,
            id: new.id,
            bundle: new.bundle,
            cgroup: new.cgroup,
            pid_mode: new.pid,
            restored: matches!(new.way, Way::Restore { .. }),
            runtime: match new.way {
                Way::Delegate(runtime) => Some(runtime),
                Way::Own | Way::Restore { .. } => None,
            },
            child: pid,
            pid,
            pidfd,
            channel: Some(channel),
            log,
            stdin,
            terminal,
            stdout: stdout.map(|pipe| Stream::new(b"stdout", pipe)),
            stderr: stderr.map(|pipe| Stream::new(b"stderr", pipe)),
            attachments: Vec::new(),
            phase: Phase::Creating { client },
            started_at: 0,
            failure: None,
            memory: None,
            told_to_die: false,
            forget: None,
        })
    }

    /// The user namespace of a pod that has its own.
    fn users(&self) -> Option<BorrowedFd<'_>> {
        self.users.as_ref().map(AsFd::as_fd)
    }

    /// Lets the root of a pod with users of its own open `/dev/stdout` anew, which is a pipe of the host's root. What is
    /// no pipe stays as it is.
    fn give_to_root(&self, stdio: [BorrowedFd<'_>; 3]) -> Result<(), Refusal> {
        let Some((uid, gid)) = self.users.as_ref().map(UserNamespace::root) else { return Ok(()) };
        for end in stdio {
            let stat = internal("look at a pipe", rustix::fs::fstat(end))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
                let owner = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
                internal("give away a pipe", rustix::fs::fchown(end, Some(owner.0), Some(owner.1)))?;
            }
        }
        Ok(())
    }

    /// A pipe whose end for reading is watched. Only that end is nonblocking: the other is the container's.
    fn output(&self, source: Source) -> Result<(Option<OwnedFd>, Option<OwnedFd>), Refusal> {
        let (reader, writer) = internal("make a pipe", pipe_with(PipeFlags::CLOEXEC))?;
        internal("make a pipe nonblocking", rustix::fs::fcntl_setfl(&reader, OFlags::NONBLOCK))?;
        internal("watch a pipe", self.poll.add(source, &reader, EventFlags::IN))?;
        Ok((Some(reader), Some(writer)))
    }

    pub(super) fn watch_child(&self, source: Source, channel: impl AsFd) -> Result<(), Refusal> {
        internal("watch a process", self.poll.add(source, channel, EventFlags::IN))
    }

    fn pid_namespace(&self, mode: &PidMode) -> Result<PidNamespace<'_>, Refusal> {
        Ok(match (mode, self.shares_pids_with(mode)?) {
            (_, Some((_, pidfd))) => PidNamespace::Join(pidfd.as_fd()),
            (PidMode::Host, None) => PidNamespace::Inherit,
            (_, None) => PidNamespace::New,
        })
    }

    /// The same for another runtime, which is told a path.
    fn pid_namespace_of(&self, mode: &PidMode) -> Result<Option<i32>, Refusal> {
        Ok(self.shares_pids_with(mode)?.map(|(pid, _)| pid))
    }

    /// The process in whose pid namespace a container lives, if it is one of the pod's.
    fn shares_pids_with(&self, mode: &PidMode) -> Result<Option<(i32, &OwnedFd)>, Refusal> {
        let missing = |what: String| (ErrorKind::FailedPrecondition, what);
        match mode {
            PidMode::Private | PidMode::Host => Ok(None),
            PidMode::Pod => match &self.pod_init {
                Some(init) => Ok(Some((init.pid, &init.pidfd))),
                None => Err(missing("the pod has no pid namespace to share".to_owned())),
            },
            PidMode::Target(id) => {
                let target =
                    self.containers.iter().find(|container| container.id == *id && !container.has_exited());
                let target = target
                    .ok_or_else(|| missing(format!("no container {id:?} whose pids could be shared")))?;
                Ok(Some((target.pid, &target.pidfd)))
            }
        }
    }

    fn start(&mut self, client: u32, id: &str) -> Answer {
        let container = self.find(id)?;
        if container.phase != Phase::Created {
            return Err((ErrorKind::FailedPrecondition, format!("container {id:?} is not created")));
        }
        let Some(channel) = &container.channel else {
            return Err((ErrorKind::FailedPrecondition, format!("container {id:?} is ending")));
        };
        channel.start().map_err(internal_error)?;
        container.started_at = now();
        container.phase = Phase::Starting { client };
        Ok(None)
    }

    fn kill(&mut self, id: &str, signal: i32, all: bool) -> Answer {
        if !(1..=libc::SIGRTMAX()).contains(&signal) {
            return Err((ErrorKind::InvalidArgument, format!("{signal} is no signal")));
        }
        let container = self.find(id)?;
        if container.has_exited() {
            return Err((ErrorKind::FailedPrecondition, format!("container {id:?} has exited")));
        }
        container.told_to_die |= signal == libc::SIGKILL;
        // The first process comes first, so that it ends by the signal and not because of what becomes of the others.
        if !all || signal == libc::SIGKILL {
            match container.signal(signal) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => return Err((ErrorKind::Internal, format!("signal container {id:?}: {error}"))),
            }
        }
        if all {
            let cgroup = Cgroup::new(&container.cgroup).map_err(internal_error)?;
            match signal {
                libc::SIGKILL => cgroup.kill().map_err(internal_error)?,
                _ => cgroup.signal(signal).map(drop).map_err(internal_error)?,
            }
        }
        DONE
    }

    fn reopen_log(&mut self, id: &str) -> Answer {
        let container = self.find(id)?;
        if container.has_exited() {
            return Err((ErrorKind::FailedPrecondition, format!("container {id:?} has exited")));
        }
        let Some(log) = &mut container.log else {
            return Err((ErrorKind::FailedPrecondition, format!("container {id:?} has no log")));
        };
        match log.reopen() {
            Ok(()) => DONE,
            Err(error) => Err((ErrorKind::Internal, format!("reopen {}: {error}", log.path().display()))),
        }
    }

    fn forget(&mut self, client: u32, id: &str) -> Answer {
        let container = self.find(id)?;
        match container.phase {
            Phase::Exited(_) => {
                let number = container.number;
                self.forget_now(number, Some((client, Response::Done)));
                Ok(None)
            }
            Phase::Created if container.forget.is_none() => {
                container.forget = Some(client);
                container.signal(libc::SIGKILL).map_err(|error| (ErrorKind::Internal, error.to_string()))?;
                Ok(None)
            }
            _ => Err((ErrorKind::FailedPrecondition, format!("container {id:?} has not exited"))),
        }
    }

    fn state(&mut self, client: u32) -> Answer {
        let mut states: Vec<_> = self.containers.iter().filter_map(Container::state).collect();
        while states.len() > STATE_BATCH {
            let rest = states.split_off(STATE_BATCH);
            let containers = std::mem::replace(&mut states, rest);
            self.tell(client, &Response::State { containers, more: true });
        }
        Ok(Some(Response::State { containers: states, more: false }))
    }

    fn exec(&mut self, client: u32, id: &str, name: &str, descriptors: Vec<OwnedFd>) -> Answer {
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next();
        let six = (next(), next(), next(), next(), next(), next());
        let (Some(process), Some(stdin), Some(stdout), Some(stderr), console, None) = six else {
            let text = "an exec needs four descriptors, process, input, output and errors, or a console too";
            return Err((ErrorKind::InvalidArgument, text.to_owned()));
        };
        let number = self.next_number();
        let container = self.find(id)?;
        if container.phase != Phase::Running {
            return Err((ErrorKind::FailedPrecondition, format!("container {id:?} is not running")));
        }
        let of_container = container.cgroup.clone();
        let (of, bundle, pidfd, container_pid) =
            (container.number, container.bundle.clone(), clone(&container.pidfd)?, container.pid);
        let runtime = container.runtime.clone();
        let cgroup = self.free_cgroup(&of_container);
        let process = process.as_fd();
        let stdio = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let console = console.as_ref().map(AsFd::as_fd);
        let (child, cgroup) = match &runtime {
            None => {
                let options = ExecOptions {
                    pidfd: pidfd.as_fd(),
                    container_pid,
                    bundle: &bundle,
                    cgroup: &cgroup,
                    process,
                    stdio,
                    console,
                    users: self.users(),
                    command_line: None,
                };
                self.give_to_root(stdio)?;
                (self.with_original_oom_score(|| crate::exec::exec(&options)), Some(cgroup))
            }
            Some(runtime) => {
                let (bundle, cgroup) = (&*bundle, &*of_container);
                let wanted = delegate::Exec { runtime, id, bundle, cgroup, number, process, stdio, console };
                (self.with_original_oom_score(|| delegate::exec(&wanted)), None)
            }
        };
        let Child { pid, pidfd, channel } = child.map_err(|error| {
            self.blame(of, (ErrorKind::Internal, format!("exec {name:?}: {}", chain(&error))))
        })?;
        if let Err(refusal) = self.watch_child(Source::Exec(number), &channel) {
            let _ = sys::signal::pidfd_send_signal(&pidfd, libc::SIGKILL);
            return Err(refusal);
        }
        let channel = Some(channel);
        let client = Some(client);
        self.execs.push(Exec {
            number,
            container: of,
            client,
            cgroup,
            child: pid,
            pid,
            pidfd,
            channel,
            failure: None,
            given_up: false,
        });
        Ok(None)
    }

    /// A cgroup below a container's that no exec is in: one that an exec has left, or one that is not there yet.
    fn free_cgroup(&self, of_container: &str) -> String {
        let taken = |name: &str| {
            let leaving = self.removals.iter().map(|removal| removal.name.as_str());
            self.execs
                .iter()
                .filter_map(|exec| exec.cgroup.as_deref())
                .chain(leaving)
                .any(|taken| taken == name)
        };
        let mut number = 1;
        loop {
            let name = format!("{of_container}/exec-{number}");
            if !taken(&name) {
                return name;
            }
            number += 1;
        }
    }

    fn attach(&mut self, client: u32, id: &str, descriptors: Vec<OwnedFd>) -> Answer {
        let Ok([stdout, stderr]) = <[OwnedFd; ATTACH_DESCRIPTORS]>::try_from(descriptors) else {
            let text = "an attachment needs two descriptors, of pipes for output and errors";
            return Err((ErrorKind::InvalidArgument, text.to_owned()));
        };
        for pipe in [&stdout, &stderr] {
            internal("make a pipe nonblocking", rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK))?;
        }
        let container = self.find(id)?;
        if container.has_exited() {
            return Err((ErrorKind::FailedPrecondition, format!("container {id:?} has exited")));
        }
        let stdin = container.stdin.as_ref().map(clone).transpose()?;
        container.attachments.push(Attachment { client, stdout, stderr });
        if let Some(connection) = self.connection(client) {
            connection.busy = false;
            if let Err(error) = connection.send_with(&Response::Attached, stdin.as_ref().map(AsFd::as_fd)) {
                say(&format!("answer to an attachment: {error}"));
                self.disconnect(client);
            }
        }
        Ok(None)
    }

    /// Kills everything. The loop sees when it is gone.
    pub(super) fn shut_down(&mut self, client: Option<u32>) -> Answer {
        if self.shutdown.as_ref().is_some_and(|shutdown| shutdown.client.is_some()) {
            return Err((ErrorKind::FailedPrecondition, "the pod is shutting down".to_owned()));
        }
        for exec in &mut self.execs {
            exec.abandon();
        }
        for container in self.containers.iter().filter(|container| !container.has_exited()) {
            // One that is gone already is what we want.
            let _ = container.signal(libc::SIGKILL);
            let killed = Cgroup::new(&container.cgroup).and_then(|cgroup| cgroup.kill());
            if let Err(error) = killed {
                say(&chain(&error));
            }
        }
        self.shutdown = Some(Shutdown { client, until: Instant::now() + SHUTDOWN });
        Ok(None)
    }

    /// Runs `work`, which clones, while our own OOM score is that of any process: a container must not inherit ours.
    pub(super) fn with_original_oom_score<T>(&self, work: impl FnOnce() -> T) -> T {
        let Some(score) = &self.oom_score else { return work() };
        let set = |value: &str| {
            if let Err(error) = crate::shim::pod::set_oom_score(value) {
                say(&format!("set the OOM score to {value}: {error}"));
            }
        };
        set(&score.original);
        let result = work();
        set(score.own);
        result
    }
}

/// A container that is asked for.
struct New {
    id: String,
    bundle: PathBuf,
    cgroup: String,
    log: Option<PathBuf>,
    pid: PidMode,
    stdin: bool,
    terminal: bool,
    way: Way,
}

/// How it is made.
enum Way {
    Own,
    /// By another runtime.
    Delegate(Runtime),
    /// From images.
    Restore {
        images: PathBuf,
        criu: PathBuf,
    },
}

impl New {
    fn check(&self) -> Result<(), Refusal> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        if self.id.is_empty() || self.id.len() > MAX_ID || !self.id.bytes().all(plain) {
            return Err((ErrorKind::InvalidArgument, format!("{:?} is no name for a container", self.id)));
        }
        Cgroup::new(&self.cgroup).map(drop).map_err(|error| (ErrorKind::InvalidArgument, chain(&error)))
    }
}

fn open_log(path: &Path) -> Result<Log, Refusal> {
    Log::open(path).map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound
            | std::io::ErrorKind::NotADirectory
            | std::io::ErrorKind::IsADirectory
            | std::io::ErrorKind::InvalidInput => ErrorKind::InvalidArgument,
            _ => ErrorKind::Internal,
        };
        (kind, format!("open the log {}: {error}", path.display()))
    })
}

fn clone(descriptor: &OwnedFd) -> Result<OwnedFd, Refusal> {
    internal("duplicate a descriptor", rustix::io::fcntl_dupfd_cloexec(descriptor, 0))
}

pub(super) fn internal<T>(step: &str, result: rustix::io::Result<T>) -> Result<T, Refusal> {
    result.map_err(|errno| (ErrorKind::Internal, format!("{step}: {errno}")))
}

pub(super) fn internal_error(error: impl std::error::Error) -> Refusal {
    (ErrorKind::Internal, chain(&error))
}

/// Nanoseconds since 1970.
pub(super) fn now() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}
