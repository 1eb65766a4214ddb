//! The loop: waits, and hands each event to what it belongs to.
//!
//! Everything the shim holds is owned here. `request` answers what clients ask, `child` follows what becomes of
//! processes; both leave answers that can't be given yet to a later event, under the number of their connection.

mod checkpoint;
mod child;
mod memory;
mod request;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;

pub(super) use memory::Memory;

use super::connection::{Connection, Received};
use super::container::Container;
use super::exec::Exec;
use super::log::{Buffers, Progress};
use super::pod::{Made, PodInit};
use super::poll::{EventFlags, Poll, Source};
use super::protocol::{ErrorKind, Response};
use super::removal::{self, Outcome, Removal};
use super::{Error, chain, say};
use crate::sys;
use crate::users::UserNamespace;

/// An agent connects before it even starts the shim. When none has come by then, it died in between.
const FIRST_CLIENT: Duration = Duration::from_secs(30);

/// A shutdown that isn't done by then leaves a process that can't be killed.
const SHUTDOWN: Duration = Duration::from_secs(15);

/// After so long without an event the memory of the last ones is given back.
const IDLE: Duration = Duration::from_millis(200);

/// Who waits for a cgroup to be gone, and what is said then.
type Waiting = Option<(u32, Response)>;

pub(super) struct Server {
    poll: Poll,
    signals: OwnedFd,
    /// `/dev/null`, for what has no other input or output.
    null: OwnedFd,
    /// The last number given to a connection, container or exec.
    last_number: u32,
    connections: Vec<Connection>,
    containers: Vec<Container>,
    execs: Vec<Exec>,
    removals: Vec<Removal<Waiting>>,
    pod_init: Option<PodInit>,
    users: Option<UserNamespace>,
    /// Where mount namespaces of containers come from.
    mounts: Option<OwnedFd>,
    buffers: Buffers,
    first_client_until: Option<Instant>,
    shutdown: Option<Shutdown>,
    /// Our own OOM score, when it is lower than what children are to have.
    oom_score: Option<OomScore>,
}

struct Shutdown {
    client: Option<u32>,
    until: Instant,
}

/// The scores of the shim and of what it was started by.
pub(super) struct OomScore {
    pub(super) own: &'static str,
    pub(super) original: String,
}

impl Server {
    /// Listens on standard input.
    pub(super) fn new() -> std::io::Result<Server> {
        let signals = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
        sys::signal::block(&signals)?;
        let signals = sys::signal::signalfd(&signals)?;
        let listener = sys::descriptor::stdin();
        rustix::fs::fcntl_setfl(listener, rustix::fs::fcntl_getfl(listener)? | OFlags::NONBLOCK)?;
        let poll = Poll::new()?;
        poll.add(Source::Listener, listener, EventFlags::IN)?;
        poll.add(Source::Signals, &signals, EventFlags::IN)?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Server {
            poll,
            signals,
            null,
            last_number: 0,
            connections: Vec::new(),
            containers: Vec::new(),
            execs: Vec::new(),
            removals: Vec::new(),
            pod_init: None,
            users: None,
            mounts: None,
            buffers: Buffers::new(),
            first_client_until: Some(Instant::now() + FIRST_CLIENT),
            shutdown: None,
            oom_score: None,
        })
    }

    pub(super) fn null(&self) -> &OwnedFd {
        &self.null
    }

    pub(super) fn adopt(&mut self, made: Made) {
        (self.pod_init, self.users, self.mounts) = (made.init, made.users, made.mounts);
    }

    pub(super) fn protected(&mut self, oom_score: Option<OomScore>) {
        self.oom_score = oom_score;
    }

    /// Tells whoever has connected already why there will be no pod.
    pub(super) fn refuse(mut self, error: &Error) {
        let kind = if error.is_invalid_argument() { ErrorKind::InvalidArgument } else { ErrorKind::Internal };
        self.accept();
        for connection in &mut self.connections {
            let _ = connection.send(&Response::Error { kind, message: chain(error) });
        }
    }

    /// Serves until a shutdown is done, or no client ever came.
    pub(super) fn serve(mut self) -> Result<(), Error> {
        let mut active = true;
        loop {
            let count = match self.timeout(active) {
                Some(milliseconds) => self.poll.wait(milliseconds),
                None => self.poll.sleep(),
            };
            let count = count.map_err(|errno| Error::Wait(errno.into()))?;
            for index in 0..count {
                if let Some((source, flags)) = self.poll.event(index) {
                    self.handle(source, flags);
                }
            }
            self.remove_cgroups();
            self.look_again_for_kills();
            if let Some(result) = self.finished() {
                return result;
            }
            if count == 0 && active {
                self.rest();
            }
            active = count > 0;
        }
    }

    /// How long nothing may happen before there is something to do all the same.
    fn timeout(&self, active: bool) -> Option<u64> {
        let now = Instant::now();
        let looking =
            self.containers.iter().any(|container| container.memory.as_ref().is_some_and(Memory::expects));
        let pause = (looking || !self.removals.is_empty()).then_some(removal::PAUSE);
        let idle = active.then_some(IDLE);
        let until = [self.first_client_until, self.shutdown.as_ref().map(|shutdown| shutdown.until)];
        let until = until.into_iter().flatten().map(|until| until.saturating_duration_since(now));
        // Rounded up, not to wake too early and go round in circles.
        until.chain(pause).chain(idle).min().map(|duration| duration.as_millis() as u64 + 1)
    }

    /// Gives back what the last burst of work needed.
    fn rest(&mut self) {
        self.buffers.release();
    }

    fn finished(&mut self) -> Option<Result<(), Error>> {
        let now = Instant::now();
        if self.first_client_until.is_some_and(|until| now >= until) {
            // Containers are made by clients only, so there are none.
            say("no client ever came");
            self.first_client_until = None;
            let _ = self.shut_down(None);
        }
        let shutdown = self.shutdown.as_ref()?;
        let (client, late) = (shutdown.client, now >= shutdown.until);
        let left =
            self.containers.iter().filter(|container| !container.has_exited()).count() + self.execs.len();
        if left == 0 && !self.containers.is_empty() {
            while let Some(container) = self.containers.pop() {
                self.remove_container_cgroup(&container.cgroup, None);
            }
            self.remove_cgroups();
        }
        if left == 0 {
            self.end_pod_init();
        }
        let (response, result) = match left + self.removals.len() + usize::from(self.pod_init.is_some()) {
            0 => (Response::Done, Ok(())),
            _ if !late => return None,
            count => {
                let message = format!("{count} processes or cgroups can't be ended");
                let response = Response::Error { kind: ErrorKind::Internal, message: message.clone() };
                (response, Err(Error::Unclean(message)))
            }
        };
        if let Some(client) = client {
            self.reply(client, response);
        }
        Some(result)
    }

    /// Kills it, with whoever is left in its namespace. It is gone when it has been reaped.
    fn end_pod_init(&self) {
        if let Some(init) = &self.pod_init {
            // One that is gone already is what we want.
            let _ = sys::signal::pidfd_send_signal(&init.pidfd, libc::SIGKILL);
        }
    }

    /// Not inlined, so that the buffers of all that happens here are off the stack during the wait.
    #[inline(never)]
    fn handle(&mut self, source: Source, flags: EventFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.signalled(),
            Source::Connection(number) => self.connection_ready(number, flags),
            Source::Container(number) => self.container_reports(number),
            Source::Exec(number) => self.exec_reports(number),
            Source::Stdout(number) => self.pump(number, false),
            Source::Stderr(number) => self.pump(number, true),
            Source::Memory(number) => self.short_of_memory(number),
        }
    }

    fn next_number(&mut self) -> u32 {
        self.last_number += 1;
        self.last_number
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            let socket = match rustix::net::accept_with(sys::descriptor::stdin(), flags) {
                Ok(socket) => socket,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(Errno::AGAIN) => return,
                Err(errno) => return say(&format!("accept a client: {errno}")),
            };
            // The socket's directory keeps others out already; this is for a mistake there.
            let own = rustix::process::geteuid();
            if rustix::net::sockopt::socket_peercred(&socket)
                .is_ok_and(|peer| peer.uid != own && !peer.uid.is_root())
            {
                continue;
            }
            let connection = Connection::new(self.next_number(), socket);
            let source = Source::Connection(connection.number);
            match self.poll.add(source, &connection, connection.interest()) {
                Ok(()) => self.connections.push(connection),
                Err(errno) => say(&format!("watch a client: {errno}")),
            }
            self.first_client_until = None;
        }
    }

    fn connection_ready(&mut self, number: u32, flags: EventFlags) {
        if flags.contains(EventFlags::OUT)
            && let Some(connection) = self.connection(number)
            && connection.flush().is_err()
        {
            return self.disconnect(number);
        }
        let closed = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        if flags.contains(EventFlags::RDHUP) && !closed && self.give_up_exec(number) {
            return;
        }
        let gone = closed || flags.contains(EventFlags::RDHUP);
        while let Some(connection) = self.connection(number).filter(|connection| !connection.busy) {
            match connection.receive() {
                Received::Message(message) => self.request(number, message),
                Received::Nothing => break,
                Received::End => return self.disconnect(number),
            }
        }
        if gone {
            return self.disconnect(number);
        }
        self.watch(number);
    }

    fn connection(&mut self, number: u32) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|connection| connection.number == number)
    }

    /// Has the loop wait for what the connection is interested in now.
    fn watch(&self, number: u32) {
        if let Some(connection) = self.connections.iter().find(|connection| connection.number == number) {
            let changed = self.poll.change(Source::Connection(number), connection, connection.interest());
            if let Err(errno) = changed {
                say(&format!("watch a client: {errno}"));
            }
        }
    }

    fn disconnect(&mut self, number: u32) {
        self.connections.retain(|connection| connection.number != number);
        for container in &mut self.containers {
            container.attachments.retain(|attachment| attachment.client != number);
        }
        for exec in &mut self.execs {
            if exec.client == Some(number) {
                exec.abandon();
            }
        }
    }

    /// A client that has an exec and says that it will say no more has given the exec up, and waits to hear of its end.
    fn give_up_exec(&mut self, number: u32) -> bool {
        let Some(exec) = self.execs.iter_mut().find(|exec| exec.client == Some(number)) else { return false };
        exec.given_up = true;
        exec.kill();
        if let Some(connection) = self.connection(number) {
            connection.listens_only = true;
        }
        self.watch(number);
        true
    }

    /// Gives the answer to a connection's request, which may then ask the next.
    fn reply(&mut self, number: u32, response: Response) {
        if let Some(connection) = self.connection(number) {
            connection.busy = false;
        }
        self.tell(number, &response);
    }

    fn reply_error(&mut self, number: u32, kind: ErrorKind, message: impl Into<String>) {
        self.reply(number, Response::Error { kind, message: message.into() });
    }

    /// Sends a message that isn't the last word on a request.
    fn tell(&mut self, number: u32, response: &Response) {
        let Some(connection) = self.connection(number) else { return };
        match connection.send(response) {
            Ok(()) => self.watch(number),
            Err(_) => self.disconnect(number),
        }
    }

    fn pump(&mut self, number: u32, errors: bool) {
        let Some(container) = self.containers.iter_mut().find(|container| container.number == number) else {
            return;
        };
        let (progress, result) = container.pump(errors, &mut self.buffers);
        debug_assert!(progress != Progress::Empty || result.is_ok());
        report_dropping(container, result);
        if let (Progress::Read(_), Some(master)) = (progress, container.master())
            && let Err(errno) = self.poll.change(Source::Stdout(number), master, child::OF_MASTER)
        {
            say(&format!("container {}: watch the terminal: {errno}", container.id));
        }
    }

    /// Removes a container's cgroup now or soon, and answers then.
    fn remove_container_cgroup(&mut self, path: &str, then: Waiting) {
        match Removal::new(path, then) {
            Ok(removal) => self.removals.push(removal),
            Err(error) => say(&chain(&error)),
        }
    }

    fn remove_cgroups(&mut self) {
        let mut index = 0;
        while index < self.removals.len() {
            let outcome = self.removals[index].attempt();
            if matches!(outcome, Outcome::Busy) {
                index += 1;
                continue;
            }
            let removal = self.removals.swap_remove(index);
            let failure = match &outcome {
                Outcome::Failed(error) => Some(chain(error)),
                _ => None,
            };
            if let Some(message) = &failure {
                say(message);
            }
            match (removal.then, failure) {
                // An answer that reports a failure already says more than the cgroup could.
                (Some((client, Response::Done)), Some(message)) => {
                    self.reply_error(client, ErrorKind::Internal, message);
                }
                (Some((client, response)), _) => self.reply(client, response),
                (None, _) => {}
            }
        }
    }
}

fn report_dropping(container: &Container, result: std::io::Result<()>) {
    if let (Err(error), Some(log)) = (result, &container.log) {
        say(&format!(
            "container {}: output is dropped: write {}: {error}",
            container.id,
            log.path().display()
        ));
    }
}
