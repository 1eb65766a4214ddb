//! A person at a command or container: keyboard and terminal on one side, a call's messages on the other.
//!
//! A terminal is raw while a session has it and is given back whatever happens. Ctrl-P Ctrl-Q leaves a container to
//! itself.

use std::{
    io::{self, Read as _},
    os::fd::AsFd as _,
    thread,
};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use sampan_proto::sampan::TerminalSize;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use tonic::{Status, Streaming};

use super::{failure::Failure, output::Output};

/// Bytes sent at a time.
const CHUNK: usize = 32 << 10;
/// Ctrl-P and Ctrl-Q, one after the other.
const LEAVE: [u8; 2] = [0x10, 0x11];

/// What a session sends.
#[derive(Debug)]
pub(super) enum Sent {
    Data(Vec<u8>),
    Resize(TerminalSize),
}

/// What a session receives.
#[derive(Debug)]
pub(super) enum Received {
    Output(Vec<u8>),
    Errors(Vec<u8>),
    ExitCode(i32),
    Nothing,
}

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    ExitCode(i32),
    /// The streams ended, and nothing was said of an exit code.
    Streams,
    /// The person has left.
    Left,
}

/// The person's side.
pub(super) struct Person {
    _terminal: Option<RawTerminal>,
    left: mpsc::Receiver<()>,
}

impl Person {
    /// Begins to read standard input if it is wanted, and makes it raw for a terminal. What is sent comes out of the
    /// receiver, which ends with the input.
    pub(super) fn sit_down(stdin: bool, tty: bool) -> Result<(Person, mpsc::Receiver<Sent>), Failure> {
        let terminal = if tty && stdin { Some(RawTerminal::new()?) } else { None };
        let (sender, sent) = mpsc::channel(4);
        let (leave, left) = mpsc::channel(1);
        if terminal.is_some() {
            tokio::spawn(leave_by_signal(leave.clone())?);
        }
        if stdin {
            let (sender, leave) = (sender.clone(), terminal.is_some().then_some(leave));
            thread::spawn(move || read_keyboard(sender, leave));
        }
        if tty {
            tokio::spawn(watch_size(sender)?);
        }
        Ok((Person { _terminal: terminal, left }, sent))
    }

    /// Shows what comes, until the session ends.
    pub(super) async fn watch<T>(
        mut self,
        mut messages: Streaming<T>,
        received: impl Fn(T) -> Received,
        out: &mut Output,
    ) -> Result<End, Status> {
        let broken = |_: Failure| Status::cancelled("the output cannot be written");
        loop {
            let message = tokio::select! {
                message = messages.message() => message?,
                Some(()) = self.left.recv() => return Ok(End::Left),
            };
            match message.map(&received) {
                None => return Ok(End::Streams),
                Some(Received::Output(data)) => {
                    out.bytes(&data).and_then(|()| out.flush()).map_err(broken)?
                }
                Some(Received::Errors(data)) => out.error_bytes(&data).map_err(broken)?,
                Some(Received::ExitCode(code)) => return Ok(End::ExitCode(code)),
                Some(Received::Nothing) => {}
            }
        }
    }
}

/// Whether a terminal can be had, as docker asks.
pub(super) fn check_terminal(stdin: bool, tty: bool) -> Result<(), Failure> {
    use io::IsTerminal as _;
    if stdin && tty && !io::stdin().is_terminal() {
        return Err(Failure::message("the input is not a terminal; leave out -t"));
    }
    Ok(())
}

/// The size of our terminal, if we have one.
pub(super) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    Some(TerminalSize { columns: size.ws_col.into(), rows: size.ws_row.into() })
}

/// Signals that end a program must not leave the terminal raw.
fn leave_by_signal(leave: mpsc::Sender<()>) -> Result<impl Future<Output = ()>, Failure> {
    let listen =
        |kind| signal(kind).map_err(|error| Failure::message(format!("cannot listen for signals: {error}")));
    let (mut terminate, mut hangup) = (listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        let _ = leave.send(()).await;
    })
}

/// A thread of its own, which nothing has to end: a read of the keyboard can't be called off.
fn read_keyboard(sender: mpsc::Sender<Sent>, leave: Option<mpsc::Sender<()>>) {
    let mut stdin = io::stdin().lock();
    let mut buffer = vec![0; CHUNK];
    let mut keys = Keys::default();
    while let Ok(length @ 1..) = stdin.read(&mut buffer) {
        let data = match &leave {
            None => buffer[..length].to_vec(),
            Some(leave) => match keys.pass(&buffer[..length]) {
                Some(data) => data,
                None => {
                    let _ = leave.blocking_send(());
                    return;
                }
            },
        };
        if !data.is_empty() && sender.blocking_send(Sent::Data(data)).is_err() {
            return;
        }
    }
}

fn watch_size(sender: mpsc::Sender<Sent>) -> Result<impl Future<Output = ()>, Failure> {
    let mut changes = signal(SignalKind::window_change())
        .map_err(|error| Failure::message(format!("cannot listen for signals: {error}")))?;
    Ok(async move {
        loop {
            if let Some(size) = size()
                && sender.send(Sent::Resize(size)).await.is_err()
            {
                return;
            }
            changes.recv().await;
        }
    })
}

/// Looks for the keys that leave, in input that comes in pieces.
#[derive(Debug, Default)]
struct Keys {
    first: bool,
}

impl Keys {
    /// What is to be sent; None when the person leaves. A first key waits for what follows it.
    fn pass(&mut self, data: &[u8]) -> Option<Vec<u8>> {
        let mut passed = Vec::with_capacity(data.len() + 1);
        for byte in data {
            match (self.first, *byte) {
                (true, byte) if byte == LEAVE[1] => return None,
                (true, byte) => {
                    passed.push(LEAVE[0]);
                    self.first = byte == LEAVE[0];
                    if !self.first {
                        passed.push(byte);
                    }
                }
                (false, byte) if byte == LEAVE[0] => self.first = true,
                (false, byte) => passed.push(byte),
            }
        }
        Some(passed)
    }
}

/// Our own terminal without echo, lines and signal keys, until it is dropped.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn new() -> Result<RawTerminal, Failure> {
        let stdin = io::stdin();
        let failed = |errno| Failure::message(format!("cannot set up the terminal: {errno}"));
        let before = tcgetattr(stdin.as_fd()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(RawTerminal { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_keys_leave_and_nothing_else_is_lost() {
        let pass = |pieces: &[&[u8]]| {
            let mut keys = Keys::default();
            pieces.iter().map(|piece| keys.pass(piece)).collect::<Option<Vec<_>>>().map(|all| all.concat())
        };
        assert_eq!(pass(&[b"ls\r"]), Some(b"ls\r".to_vec()));
        assert_eq!(pass(&[b"a\x10b"]), Some(b"a\x10b".to_vec()));
        assert_eq!(pass(&[b"\x10", b"\x10x"]), Some(b"\x10\x10x".to_vec()));
        assert_eq!(pass(&[b"a\x10\x11b"]), None);
        assert_eq!(pass(&[b"\x10", b"\x11"]), None);
    }
}
