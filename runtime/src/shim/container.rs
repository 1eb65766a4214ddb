//! One container of the pod, as its monitor sees it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use super::log::{Buffers, Log, Progress, Stream};
use super::protocol::{ContainerState, ErrorKind, Exit, PidMode, Runtime, Status};
use super::server::Memory;
use crate::container::Channel;

/// How far it is. A client is the number of the connection that waits for the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// The process is on its way to being a container.
    Creating {
        client: u32,
    },
    /// It waits for its start.
    Created,
    /// It is on its way to its program.
    Starting {
        client: u32,
    },
    Running,
    Exited(Exit),
}

pub(super) struct Container {
    pub(super) number: u32,
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) cgroup: String,
    pub(super) pid_mode: PidMode,
    /// The other runtime that makes it, if there is one.
    pub(super) runtime: Option<Runtime>,
    /// It comes back from images, and its first process is not there yet: until then it has a restorer.
    pub(super) restored: bool,
    /// Whom the shim waits for: the container's process, or its delegate.
    pub(super) child: i32,
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    /// Until the program is executed.
    pub(super) channel: Option<Channel>,
    pub(super) log: Option<Log>,
    /// The writing end of its standard input, which stays open while nobody is attached; or its terminal's master.
    pub(super) stdin: Option<OwnedFd>,
    pub(super) terminal: Terminal,
    pub(super) stdout: Option<Stream>,
    pub(super) stderr: Option<Stream>,
    pub(super) attachments: Vec<Attachment>,
    pub(super) phase: Phase,
    /// Nanoseconds since 1970; 0 until it has been started.
    pub(super) started_at: i64,
    /// Why it never came to run its program.
    pub(super) failure: Option<(ErrorKind, String)>,
    /// Tells of kills for want of memory, from the moment that the container is made.
    pub(super) memory: Option<Memory>,
    /// Somebody asked us to kill it.
    pub(super) told_to_die: bool,
    /// The connection that wants it forgotten when it has ended.
    pub(super) forget: Option<u32>,
}

/// After the end of a container its pipes are read until they are empty, which somebody could prevent who still holds
/// them: no more than twice the largest pipe is read.
const MAX_DRAIN: usize = 2 << 20;

impl Container {
    /// Whether its process is still on its way to be one.
    pub(super) fn is_being_made(&self) -> bool {
        matches!(self.phase, Phase::Creating { .. })
    }

    /// Whether its processes are on their way back: the end of its first one may be seen before the word about its birth.
    pub(super) fn is_coming_back(&self) -> bool {
        self.restored && matches!(self.phase, Phase::Starting { .. })
    }

    pub(super) fn has_exited(&self) -> bool {
        matches!(self.phase, Phase::Exited(_))
    }

    /// Whether its first process is on its way out or gone, so that no other can begin in it.
    pub(super) fn is_ending(&self) -> bool {
        self.phase != Phase::Running || self.told_to_die || crate::sys::process::is_exiting(self.pid)
    }

    pub(super) fn state(&self) -> Option<ContainerState> {
        let (status, exit) = match &self.phase {
            Phase::Creating { .. } => return None,
            Phase::Created | Phase::Starting { .. } => (Status::Created, None),
            Phase::Running => (Status::Running, None),
            Phase::Exited(exit) => (Status::Exited, Some(exit.clone())),
        };
        Some(ContainerState { id: self.id.clone(), pid: self.pid, status, started_at: self.started_at, exit })
    }

    pub(super) fn signal(&self, signal: i32) -> std::io::Result<()> {
        crate::sys::signal::pidfd_send_signal(self.pidfd.as_fd(), signal)
    }

    /// Moves a batch of output to the log; what begins to be dropped is returned for a word about it.
    pub(super) fn pump(&mut self, errors: bool, buffers: &mut Buffers) -> (Progress, std::io::Result<()>) {
        let stream = if errors { &mut self.stderr } else { &mut self.stdout };
        let Some(reader) = stream.as_mut() else { return (Progress::End, Ok(())) };
        let attachments = &self.attachments;
        let copy = |output: &[u8]| attachments.iter().for_each(|attachment| attachment.copy(errors, output));
        let (progress, result) = reader.pump(buffers, self.log.as_mut(), copy);
        if progress == Progress::End {
            *stream = None;
        }
        (progress, result)
    }

    /// The master of its terminal.
    pub(super) fn master(&self) -> Option<&Stream> {
        self.stdout.as_ref().filter(|_| matches!(self.terminal, Terminal::Here))
    }

    /// Moves everything that is in the pipes to the log and closes them. Waits for nobody.
    pub(super) fn drain(&mut self, buffers: &mut Buffers) -> std::io::Result<()> {
        let mut outcome = Ok(());
        for errors in [false, true] {
            let mut total = 0;
            while let (Progress::Read(count), result) = self.pump(errors, buffers) {
                outcome = outcome.and(result);
                total += count;
                if total > MAX_DRAIN {
                    break;
                }
            }
        }
        for stream in [self.stdout.take(), self.stderr.take()].into_iter().flatten() {
            if let Some(log) = self.log.as_mut() {
                outcome = outcome.and(stream.finish(buffers, log));
            }
        }
        self.stdin = None;
        self.attachments = Vec::new();
        outcome
    }
}

/// Whether it has a terminal.
pub(super) enum Terminal {
    None,
    /// Not yet: the master comes over this socket.
    Awaited(OwnedFd),
    Here,
}

/// Somebody who watches the output.
pub(super) struct Attachment {
    /// The connection that it belongs to.
    pub(super) client: u32,
    /// The writing ends of nonblocking pipes.
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

impl Attachment {
    /// Gives it some output, or what of it fits. A watcher that is gone is taken away with its connection.
    fn copy(&self, errors: bool, mut output: &[u8]) {
        let pipe = if errors { &self.stderr } else { &self.stdout };
        while let Ok(written @ 1..) = rustix::io::write(pipe, output) {
            output = &output[written..];
        }
    }
}
