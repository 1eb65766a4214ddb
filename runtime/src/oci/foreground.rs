//! A process in the foreground: its terminal and the signals that come for it, until its end.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use super::{Error, Result, child};
use crate::sys;

/// Waits for the end of a child, passes on signals, serves its terminal if it has one, and tells the exit code.
pub(super) fn serve(pidfd: &OwnedFd, terminal: Option<OwnedFd>) -> Result<u8> {
    let mut signals: Vec<i32> = (1..=64).collect();
    signals.retain(|signal| !NOT_PASSED.contains(signal));
    let failed = |source| Error::io("take signals", source);
    sys::signal::block(&signals).map_err(failed)?;
    let signals = sys::signal::signalfd(&signals).map_err(failed)?;
    let raw = terminal.as_ref().and_then(|_| Raw::enter());
    let mut pump = Pump { terminal, input: true };
    pump.resize();
    loop {
        let mut sources = vec![PollFd::new(pidfd, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        if let Some(terminal) = &pump.terminal {
            sources.push(PollFd::new(terminal, PollFlags::IN));
            if pump.input {
                sources.push(PollFd::from_borrowed_fd(sys::process::stdio()[0], PollFlags::IN));
            }
        }
        match poll(&mut sources, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::errno("poll", errno)),
        }
        let ready: Vec<bool> = sources.iter().map(|source| !source.revents().is_empty()).collect();
        drop(sources);
        if ready.get(3) == Some(&true) {
            pump.type_in();
        }
        if ready.get(2) == Some(&true) {
            pump.show();
        }
        while let Some(signal) = sys::signal::next(&signals) {
            match signal {
                libc::SIGWINCH if pump.terminal.is_some() => pump.resize(),
                // One that has ended meanwhile needs no signal.
                _ => drop(sys::signal::pidfd_send_signal(pidfd, signal)),
            }
        }
        if ready[0] {
            let code = child::reap(pidfd)?;
            pump.drain();
            drop(raw);
            return Ok(code);
        }
    }
}

/// Our own business, or not to be had.
const NOT_PASSED: [i32; 8] = [
    libc::SIGCHLD,
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGPIPE,
    libc::SIGURG,
    libc::SIGSEGV,
];

struct Pump {
    terminal: Option<OwnedFd>,
    /// Whether standard input has more.
    input: bool,
}

impl Pump {
    /// The size of our own terminal, if there is one.
    fn resize(&self) {
        // A terminal that doesn't know its size has nothing to say about another's.
        let own = tcgetwinsize(sys::process::stdio()[0]).ok().filter(|size| size.ws_row != 0);
        if let (Some(terminal), Some(size)) = (&self.terminal, own) {
            // A size that can't be passed on is no reason to stop.
            let _ = tcsetwinsize(terminal, size);
        }
    }

    fn type_in(&mut self) {
        let mut buffer = [0u8; 4096];
        match (&self.terminal, rustix::io::read(sys::process::stdio()[0], &mut buffer)) {
            (Some(terminal), Ok(count @ 1..)) => self.input = write_all(terminal, &buffer[..count]),
            (_, Err(Errno::INTR | Errno::AGAIN)) => {}
            _ => self.input = false,
        }
    }

    /// False when there is nothing more.
    fn show(&mut self) -> bool {
        let mut buffer = [0u8; 4096];
        let Some(terminal) = &self.terminal else { return false };
        match rustix::io::read(terminal, &mut buffer) {
            Ok(count @ 1..) => write_all(sys::process::stdio()[1], &buffer[..count]),
            Err(Errno::INTR | Errno::AGAIN) => true,
            // EIO: the last process that had the slave open has gone.
            Ok(_) | Err(_) => {
                self.terminal = None;
                false
            }
        }
    }

    /// What was written before the end.
    fn drain(&mut self) {
        loop {
            let Some(terminal) = &self.terminal else { return };
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(terminal, PollFlags::IN)], Some(&now));
            if !matches!(ready, Ok(1)) || !self.show() {
                return;
            }
        }
    }
}

fn write_all(target: impl AsFd, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(&target, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

/// Our own terminal without its line editing, until this goes.
struct Raw(Termios);

impl Raw {
    /// None when standard input is no terminal.
    fn enter() -> Option<Raw> {
        let own = sys::process::stdio()[0];
        let before = tcgetattr(own).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(own, OptionalActions::Now, &raw).ok()?;
        Some(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nobody to tell.
        let _ = tcsetattr(sys::process::stdio()[0], OptionalActions::Now, &self.0);
    }
}
