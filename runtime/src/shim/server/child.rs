//! What becomes of the shim's children: reports on their way to their programs, and their ends.
//!
//! At the end of a container the order is: its last reports, its remaining processes, its remaining output, the exit
//! record, and only then the word about it.

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus, wait};

use super::request::{Refusal, now};
use super::{Memory, Server, Waiting, report_dropping};
use crate::cgroup::Cgroup;
use crate::console;
use crate::container::{ExecFailure, Report};
use crate::shim::container::{Container, Phase, Terminal};
use crate::shim::log::Stream;
use crate::shim::poll::{EventFlags, Poll, Source};
use crate::shim::protocol::{ErrorKind, Event, Exit, PidMode, Response};
use crate::shim::removal::{Removal, Rest};
use crate::shim::{chain, record, say};
use crate::sys;

impl Server {
    /// Signals have arrived: children have ended, or somebody wants us to.
    pub(super) fn signalled(&mut self) {
        // struct signalfd_siginfo has 128 bytes and begins with the signal's number.
        let mut info = [0u8; 128];
        let mut end = false;
        while matches!(rustix::io::read(&self.signals, &mut info), Ok(128)) {
            end |= matches!(i32::from(info[0]), libc::SIGTERM | libc::SIGINT);
        }
        self.reap();
        if end && self.shutdown.is_none() {
            say("asked by a signal to end");
            let _ = self.shut_down(None);
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            let making =
                self.containers.iter().filter(|c| c.child == pid && c.is_being_made() || c.is_coming_back());
            for number in making.map(|container| container.number).collect::<Vec<_>>() {
                // It may have been the midwife or the restorer, who told of the container's process and left.
                self.container_reports(number);
            }
            if let Some(container) = self.containers.iter().find(|c| c.child == pid && !c.has_exited()) {
                self.container_ended(container.number, status);
            } else if let Some(exec) = self.execs.iter().find(|exec| exec.child == pid) {
                self.exec_ended(exec.number, status);
            } else if self.pod_init.as_ref().is_some_and(|init| init.pid == pid) {
                if self.shutdown.is_none() {
                    say("the first process of the pod's pid namespace has ended");
                }
                self.pod_init = None;
            }
            // Anybody else was an orphan of the pod, and it is enough that it is reaped.
        }
    }

    pub(super) fn container_reports(&mut self, number: u32) {
        let Some(container) = self.containers.iter_mut().find(|container| container.number == number) else {
            return;
        };
        while let Some(channel) = &container.channel {
            let report = match channel.receive() {
                Ok(Some(report)) => report,
                Ok(None) => return,
                Err(error) => Report::Failed { message: chain(&error), exec: None },
            };
            match (report, container.phase.clone()) {
                (Report::Born { pid }, _) if container.is_being_made() || container.is_coming_back() => {
                    match sys::process::pidfd_open(pid) {
                        Ok(pidfd) => {
                            (container.pid, container.pidfd) = (pid, pidfd);
                            // A delegate stays; a midwife or a restorer goes, and the process that it brought is our
                            // own child.
                            if container.runtime.is_none() {
                                container.child = pid;
                            }
                        }
                        Err(error) => container.failure = Some((ErrorKind::Internal, chain(&error))),
                    }
                }
                (Report::Ready, Phase::Creating { client }) => {
                    if let Err(message) = take_terminal(&self.poll, container) {
                        container.failure = Some((ErrorKind::Internal, message));
                        container.channel = None;
                        let _ = container.signal(libc::SIGKILL);
                        return;
                    }
                    if container.runtime.is_none() {
                        container.memory = Memory::watch(&self.poll, number, &container.cgroup);
                    }
                    container.phase = Phase::Created;
                    let pid = container.pid;
                    return self.reply(client, Response::Created { pid });
                }
                (Report::Executed, Phase::Starting { client }) => {
                    container.phase = Phase::Running;
                    container.channel = None;
                    let started_at = container.started_at;
                    let pid = container.restored.then_some(container.pid);
                    return self.reply(client, Response::Started { started_at, pid });
                }
                (Report::Failed { message, exec }, _) => {
                    container.failure = Some((kind_of(exec), message));
                    container.channel = None;
                }
                (report, phase) => {
                    let message = format!("the container's process says {report:?} when it is {phase:?}");
                    container.failure = Some((ErrorKind::Internal, message));
                    container.channel = None;
                    // Whatever it is, it isn't what we made. One that is gone already is what we want.
                    let _ = container.signal(libc::SIGKILL);
                }
            }
        }
    }

    fn container_ended(&mut self, number: u32, status: WaitStatus) {
        // What it said last tells how far it came; each look stops at the first thing that was answered.
        self.container_reports(number);
        self.container_reports(number);
        let Some(container) = self.containers.iter_mut().find(|container| container.number == number) else {
            return;
        };
        let finished_at = now();
        let cgroup = Cgroup::new(&container.cgroup);
        if container.pid_mode != PidMode::Private {
            // Without a pid namespace of its own, a container's other processes don't go with its first.
            if let Err(error) =
                cgroup.as_ref().map_err(chain_of).and_then(|c| c.kill().map_err(|e| chain(&e)))
            {
                say(&error);
            }
        }
        if let Some(master) = container.master() {
            // Those who are attached may hold it for longer.
            let _ = self.poll.remove(master);
        }
        let dropped = container.drain(&mut self.buffers);
        report_dropping(container, dropped);
        container.log = None;
        container.channel = None;
        let (code, signal) = ending(status);
        let killed = code == 128 + libc::SIGKILL;
        let oom_killed = self.died_of_memory(number) && killed;
        let Some(container) = self.containers.iter_mut().find(|container| container.number == number) else {
            return;
        };
        let ran = container.failure.is_none() && container.phase == Phase::Running;
        let started_at = if ran { container.started_at } else { 0 };
        let exit = Exit { code, signal, oom_killed, started_at, finished_at };
        let phase = std::mem::replace(&mut container.phase, Phase::Exited(exit.clone()));
        container.started_at = started_at;
        let (forget, failure) = (container.forget.take(), container.failure.take());
        let failure = |what: &str| {
            let (kind, message) = failure.unwrap_or((
                ErrorKind::Internal,
                format!("the container's process ended while it was {what}"),
            ));
            Response::Error { kind, message }
        };
        match (phase, forget) {
            // It never was a container.
            (Phase::Creating { client }, _) => self.forget_now(number, Some((client, failure("made")))),
            (_, Some(client)) => self.forget_now(number, Some((client, Response::Done))),
            (phase, None) => {
                self.record(number, &exit);
                if let Phase::Starting { client } = phase {
                    self.reply(client, failure("started"));
                }
                self.publish_end(number, exit);
            }
        }
    }

    fn record(&self, number: u32, exit: &Exit) {
        let Some(container) = self.containers.iter().find(|container| container.number == number) else {
            return;
        };
        if let Err(error) = record::write(&container.bundle, exit) {
            say(&format!("container {}: write the exit record: {error}", container.id));
        }
    }

    fn publish_end(&mut self, number: u32, exit: Exit) {
        let Some(container) = self.containers.iter().find(|container| container.number == number) else {
            return;
        };
        let id = container.id.clone();
        self.publish(Response::Event(Event::Exited { id, exit }));
    }

    /// Tells everybody who has subscribed.
    pub(super) fn publish(&mut self, event: Response) {
        let subscribers = self.connections.iter().filter(|connection| connection.subscribed);
        for number in subscribers.map(|connection| connection.number).collect::<Vec<_>>() {
            self.tell(number, &event);
        }
    }

    /// Drops a container that has ended. The answer comes when its cgroup is gone.
    pub(super) fn forget_now(&mut self, number: u32, then: Waiting) {
        let Some(index) = self.containers.iter().position(|container| container.number == number) else {
            return;
        };
        let container = self.containers.swap_remove(index);
        self.remove_container_cgroup(&container.cgroup, then);
    }

    pub(super) fn exec_reports(&mut self, number: u32) {
        let Some(exec) = self.execs.iter_mut().find(|exec| exec.number == number) else { return };
        while let Some(channel) = &exec.channel {
            match channel.receive() {
                Ok(None) => return,
                Ok(Some(Report::Born { pid })) => {
                    exec.pid = pid;
                    // One that has ended already needs none: its delegate is about to end too.
                    if let Ok(pidfd) = sys::process::pidfd_open(pid) {
                        exec.pidfd = pidfd;
                    }
                }
                // The last two are said to a command line only, which asks for what leads to them.
                Ok(Some(Report::Ready | Report::Environment | Report::Listener { .. })) => {}
                Ok(Some(Report::Executed)) => {
                    exec.channel = None;
                    let (client, pid) = (exec.client, exec.pid);
                    if let Some(client) = client {
                        self.tell(client, &Response::ExecStarted { pid });
                    }
                    return;
                }
                Ok(Some(Report::Failed { message, exec: kind })) => {
                    exec.failure = Some((kind_of(kind), message));
                    exec.channel = None;
                }
                Err(error) => {
                    exec.failure = Some((ErrorKind::Internal, chain(&error)));
                    exec.channel = None;
                }
            }
        }
    }

    /// Whose fault it is that an exec did not begin: nobody's when its container ends. Probes go on until it is gone.
    pub(super) fn blame(&self, container: u32, (kind, message): Refusal) -> Refusal {
        let container = self.containers.iter().find(|other| other.number == container);
        if kind == ErrorKind::Internal && container.is_none_or(Container::is_ending) {
            return (ErrorKind::FailedPrecondition, format!("the container is ending: {message}"));
        }
        (kind, message)
    }

    fn exec_ended(&mut self, number: u32, status: WaitStatus) {
        self.exec_reports(number);
        let Some(index) = self.execs.iter().position(|exec| exec.number == number) else { return };
        let exec = self.execs.swap_remove(index);
        let exit_code = ending(status).0;
        let started = exec.failure.is_none() && exec.channel.is_none();
        let (rest, response) = match exec.failure {
            None if started => (Rest::MovedUp, Response::ExecExited { exit_code }),
            failure => {
                let failure = failure.unwrap_or_else(|| {
                    (ErrorKind::Internal, "the process ended before it executed its program".to_owned())
                });
                let (kind, message) = self.blame(exec.container, failure);
                (Rest::Killed, Response::Error { kind, message })
            }
        };
        // Without its client it was killed, and all that it made goes with it.
        let rest = if exec.client.is_some() && self.shutdown.is_none() { rest } else { Rest::Killed };
        let rest = if exec.given_up { Rest::Killed } else { rest };
        let mut answer = exec.client.map(|client| (client, response));
        if let Some(cgroup) = &exec.cgroup {
            match Removal::of_exec(cgroup, rest, None) {
                Ok(mut removal) => {
                    // Whoever gave it up hears of its end when nothing is left of it.
                    removal.then = answer.take_if(|_| exec.given_up);
                    self.removals.push(removal);
                }
                Err(error) => say(&chain(&error)),
            }
        }
        if let Some((client, response)) = answer {
            self.reply(client, response);
        }
    }
}

/// A terminal that nobody has open is hung up for as long as that lasts, which is told once: when there is something to
/// read again, that is told too. So whoever has read asks to be told of what is left.
pub(super) const OF_MASTER: EventFlags = EventFlags::IN.union(EventFlags::ET);

/// Takes the master of a container's terminal, which it has sent before it was ready, and watches it as its output.
fn take_terminal(poll: &Poll, container: &mut Container) -> Result<(), String> {
    let Terminal::Awaited(socket) = &container.terminal else { return Ok(()) };
    let failed = |errno: Errno| format!("take the terminal: {errno}");
    let master = console::receive(socket).map_err(failed)?;
    rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK).map_err(failed)?;
    poll.add(Source::Stdout(container.number), &master, OF_MASTER).map_err(failed)?;
    container.stdin = Some(rustix::io::fcntl_dupfd_cloexec(&master, 0).map_err(failed)?);
    container.stdout = Some(Stream::new(b"stdout", master));
    container.terminal = Terminal::Here;
    Ok(())
}

fn chain_of(error: &crate::cgroup::Error) -> String {
    chain(error)
}

fn kind_of(exec: Option<ExecFailure>) -> ErrorKind {
    match exec {
        Some(ExecFailure::NotFound | ExecFailure::NotExecutable) => ErrorKind::InvalidArgument,
        Some(ExecFailure::Other) | None => ErrorKind::Internal,
    }
}

/// The exit code, and the signal if it was one.
fn ending(status: WaitStatus) -> (i32, Option<i32>) {
    match (status.exit_status(), status.terminating_signal()) {
        (_, Some(signal)) => (128 + signal, Some(signal)),
        (code, None) => (code.unwrap_or(0), None),
    }
}
