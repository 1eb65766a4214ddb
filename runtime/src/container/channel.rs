//! The channel between a process that is on its way to exec and its parent.
//!
//! A pair of sequenced-packet sockets, both close-on-exec: exec is seen as the end of the stream.
//! Because death looks the same, the child says when it is about to exec; an end before that is a
//! failure. Neither side ever blocks on a full socket: a child sends a handful of messages at most.

use std::cell::{Cell, OnceCell};
use std::error::Error as StdError;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::Error;
use crate::{init, sys};

/// A message never exceeds this; longer texts of errors are cut.
const MAX_MESSAGE: usize = 2048;

const READY: u8 = b'r';
const EXECUTING: u8 = b'x';
const START: u8 = b's';
const ENVIRONMENT: u8 = b'E';
const BORN: u8 = b'B';
const LISTENER: u8 = b'L';

/// What the child says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Everything is set up; it waits for [`Channel::start`]. An exec in a running container leaves this out.
    Ready,
    /// It gave up, and exits.
    Failed {
        /// The whole chain of causes.
        message: String,
        /// Set when it was the program itself that could not be executed.
        exec: Option<ExecFailure>,
    },
    /// It is now the program that was asked for.
    Executed,
    /// The container's process is another one, of this pid, which goes on in its place; the first one exits.
    Born {
        /// As the caller sees it.
        pid: i32,
    },
    /// The namespaces are there and the mounts are made: hooks of the runtime may run, and then [`Channel::start`].
    Environment,
    /// Its descriptor of this number gets the notifications of its seccomp filter; it waits for [`Channel::start`].
    Listener {
        /// Of the child.
        number: i32,
    },
}

/// Why a program could not be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecFailure {
    /// No such file, or nothing of this name in `PATH`. The child exits with 127.
    NotFound,
    /// There is something, but it can't be executed. The child exits with 126.
    NotExecutable,
    /// Something else. The child exits with 126.
    Other,
}

impl ExecFailure {
    pub(crate) fn code(self) -> u8 {
        match self {
            ExecFailure::NotFound => b'n',
            ExecFailure::NotExecutable => b'e',
            ExecFailure::Other => b'o',
        }
    }

    fn from_code(code: u8) -> Option<ExecFailure> {
        [ExecFailure::NotFound, ExecFailure::NotExecutable, ExecFailure::Other]
            .into_iter()
            .find(|f| f.code() == code)
    }
}

/// The parent's end. Readable when there is a report.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    executing: Cell<bool>,
    ended: Cell<bool>,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Channel {
    /// The next report, or None when there is nothing yet; nothing comes after `Failed` and `Executed`.
    pub fn receive(&self) -> Result<Option<Report>, Error> {
        if self.ended.get() {
            return Ok(None);
        }
        let mut buffer = [0u8; MAX_MESSAGE];
        loop {
            let received = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT);
            match received {
                Ok((count, _)) => match self.understand(&buffer[..count]) {
                    Some(report) => return Ok(Some(report)),
                    None => continue,
                },
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                // The child died with our start message unread.
                Err(Errno::CONNRESET) => return Ok(self.understand(&[])),
                Err(errno) => return Err(Error::Talk(sys::Error::new("recv(MSG_DONTWAIT)", errno))),
            }
        }
    }

    fn understand(&self, message: &[u8]) -> Option<Report> {
        match message {
            [READY] => Some(Report::Ready),
            [ENVIRONMENT] => Some(Report::Environment),
            &[BORN, a, b, c, d] => Some(Report::Born { pid: i32::from_ne_bytes([a, b, c, d]) }),
            &[LISTENER, a, b, c, d] => Some(Report::Listener { number: i32::from_ne_bytes([a, b, c, d]) }),
            [EXECUTING] => {
                self.executing.set(true);
                None
            }
            [] => {
                self.ended.set(true);
                Some(if self.executing.get() { Report::Executed } else { died() })
            }
            [code, text @ ..] => {
                self.ended.set(true);
                let message = String::from_utf8_lossy(text).into_owned();
                Some(Report::Failed { message, exec: ExecFailure::from_code(*code) })
            }
        }
    }

    /// The channel over a connection to the socket on which a container waits for its start.
    pub(crate) fn over(socket: OwnedFd) -> Channel {
        Channel { socket, executing: Cell::new(false), ended: Cell::new(false) }
    }

    /// Tells a child that waits to go on.
    pub fn start(&self) -> Result<(), Error> {
        let sent = rustix::net::send(&self.socket, &[START], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        sent.map(drop).map_err(|errno| Error::Talk(sys::Error::new("send(start)", errno)))
    }
}

fn died() -> Report {
    let message = "the process ended before it executed its program; killed, or out of its memory limit";
    Report::Failed { message: message.to_owned(), exec: None }
}

/// The child's end.
#[derive(Debug)]
pub(crate) struct Reporter {
    socket: OwnedFd,
    /// Who has started the container, when that is another process than the one that made it.
    starter: OnceCell<OwnedFd>,
}

impl AsFd for Reporter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.starter.get().unwrap_or(&self.socket).as_fd()
    }
}

impl From<OwnedFd> for Reporter {
    fn from(socket: OwnedFd) -> Reporter {
        Reporter { socket, starter: OnceCell::new() }
    }
}

impl Reporter {
    /// Says `Ready`; [`Reporter::wait`] comes next.
    pub(crate) fn ready(&self) -> sys::Result<()> {
        self.send(&[READY])
    }

    /// Says `Ready` and blocks until the parent starts the program. False when the parent is gone.
    pub(crate) fn wait_for_start(&self) -> sys::Result<bool> {
        self.ready()?;
        self.wait()
    }

    /// Says `Ready` and blocks until somebody connects to `listener` and starts the program. Who connects without a
    /// word is passed over. The signal, if one comes first that would end a program.
    pub(crate) fn wait_for_starter(&self, listener: &OwnedFd) -> sys::Result<Option<i32>> {
        let failed = |call: &'static str| move |errno| sys::Error::new(call, errno);
        let signals = sys::signal::block_terminating().map_err(|error| {
            sys::Error::new("signalfd()", Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })?;
        self.send(&[READY])?;
        loop {
            let mut sources = [PollFd::new(&signals, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
            match poll(&mut sources, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(sys::Error::new("poll(start)", errno)),
            }
            if let Some(signal) = sys::signal::next(&signals) {
                return Ok(Some(signal));
            }
            match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(connection) => {
                    let mut sources = [PollFd::new(&connection, PollFlags::IN)];
                    // Who connects does it in order to say the one word.
                    let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
                    poll(&mut sources, Some(&timeout)).map_err(failed("poll(start)"))?;
                    let mut buffer = [0u8; 1];
                    if matches!(rustix::io::read(&connection, &mut buffer), Ok(1)) && buffer[0] == START {
                        rustix::io::ioctl_fionbio(&connection, false).map_err(failed("ioctl(FIONBIO)"))?;
                        // Nobody else has been accepted: this function is called once.
                        let _ = self.starter.set(connection);
                        return Ok(None);
                    }
                }
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => return Err(sys::Error::new("accept(start)", errno)),
            }
        }
    }

    /// Blocks until the parent says to start. False when it is gone.
    pub(crate) fn wait(&self) -> sys::Result<bool> {
        let mut buffer = [0u8; 1];
        loop {
            match rustix::io::read(self, &mut buffer) {
                Ok(count) => return Ok(count == 1 && buffer[0] == START),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(sys::Error::new("read(start)", errno)),
            }
        }
    }

    /// Says that another process goes on with the container.
    pub(crate) fn born(&self, pid: i32) -> sys::Result<()> {
        let [a, b, c, d] = pid.to_ne_bytes();
        self.send(&[BORN, a, b, c, d])
    }

    /// Says that hooks may run, and waits until they have. False when the parent is gone.
    pub(crate) fn environment(&self) -> sys::Result<bool> {
        self.send(&[ENVIRONMENT])?;
        self.wait()
    }

    /// Hands over the descriptor that gets notifications, and waits until it has been taken.
    pub(crate) fn listener(&self, number: i32) -> sys::Result<bool> {
        let [a, b, c, d] = number.to_ne_bytes();
        self.send(&[LISTENER, a, b, c, d])?;
        self.wait()
    }

    /// Says that the next thing is exec.
    pub(crate) fn executing(&self) -> sys::Result<()> {
        self.send(&[EXECUTING])
    }

    /// For one that goes on without being the program: says that the program is there, and closes the channel.
    pub(crate) fn executed(&self) -> sys::Result<()> {
        self.executing()?;
        rustix::net::shutdown(self, rustix::net::Shutdown::Both)
            .map_err(|errno| sys::Error::new("shutdown(report)", errno))
    }

    /// Says what went wrong, and returns the code to exit with.
    pub(crate) fn failed(&self, error: &init::Error) -> i32 {
        let exec = error.exec_failure();
        let mut message = vec![exec.map_or(b'f', ExecFailure::code)];
        message.extend_from_slice(chain(error).as_bytes());
        message.truncate(MAX_MESSAGE);
        // A parent that is gone needs no report.
        let _ = self.send(&message);
        match exec {
            Some(ExecFailure::NotFound) => 127,
            Some(_) => 126,
            None => init::EXIT_FAILED,
        }
    }

    /// By write(2), which the strictest seccomp filter is the likeliest to allow.
    fn send(&self, message: &[u8]) -> sys::Result<()> {
        rustix::io::write(self, message).map(drop).map_err(|errno| sys::Error::new("write(report)", errno))
    }
}

/// Both ends of a new channel.
pub(crate) fn pair() -> sys::Result<(Channel, Reporter)> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|errno| sys::Error::new("socketpair(AF_UNIX, SOCK_SEQPACKET)", errno))?;
    Ok((Channel::over(ours), Reporter::from(theirs)))
}

/// An error and its causes in one line.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_of_stream_is_success_only_after_it_was_announced() {
        let (channel, reporter) = pair().unwrap();
        assert_eq!(channel.receive().unwrap(), None);
        reporter.executing().unwrap();
        assert_eq!(channel.receive().unwrap(), None);
        drop(reporter);
        assert_eq!(channel.receive().unwrap(), Some(Report::Executed));
        assert_eq!(channel.receive().unwrap(), None);
    }

    #[test]
    fn death_before_exec_is_a_failure() {
        let (channel, reporter) = pair().unwrap();
        reporter.send(&[READY]).unwrap();
        drop(reporter);
        assert_eq!(channel.receive().unwrap(), Some(Report::Ready));
        assert!(matches!(channel.receive().unwrap(), Some(Report::Failed { exec: None, .. })));
    }

    #[test]
    fn death_with_the_start_unread_is_a_failure_too() {
        let (channel, reporter) = pair().unwrap();
        channel.start().unwrap();
        drop(reporter);
        assert!(matches!(channel.receive().unwrap(), Some(Report::Failed { .. })));
    }

    #[test]
    fn failure_after_the_announcement_wins() {
        let (channel, reporter) = pair().unwrap();
        reporter.executing().unwrap();
        let error = init::Error::Exec { program: "/nope".to_owned(), source: Errno::NOENT.into() };
        assert_eq!(reporter.failed(&error), 127);
        drop(reporter);
        let Some(Report::Failed { message, exec }) = channel.receive().unwrap() else { panic!("no failure") };
        assert_eq!(exec, Some(ExecFailure::NotFound));
        assert!(message.starts_with("exec: \"/nope\": No such file or directory"), "{message}");
        assert_eq!(channel.receive().unwrap(), None);
    }

    #[test]
    fn start_reaches_the_child_and_a_lost_parent_too() {
        let (channel, reporter) = pair().unwrap();
        channel.start().unwrap();
        assert!(reporter.wait_for_start().unwrap());
        let (channel, reporter) = pair().unwrap();
        reporter.send(&[READY]).unwrap();
        drop(channel);
        assert!(!matches!(reporter.wait_for_start(), Ok(true)));
    }

    #[test]
    fn long_texts_are_cut() {
        let (channel, reporter) = pair().unwrap();
        let error = init::Error::Exec { program: "x".repeat(10_000), source: Errno::ACCESS.into() };
        assert_eq!(reporter.failed(&error), 126);
        let Some(Report::Failed { message, .. }) = channel.receive().unwrap() else { panic!("no failure") };
        assert_eq!(message.len(), MAX_MESSAGE - 1);
    }
}
