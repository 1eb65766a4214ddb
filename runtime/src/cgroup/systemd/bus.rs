//! A connection to systemd: its private socket, which root may use, or else the system bus.
//!
//! Every wait ends at the deadline that the connection was opened with.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send,
    socket_with, sockopt,
};

use super::wire::{self, Call, Message, Reader, Writer};

const PRIVATE: &str = "/run/systemd/private";
const SYSTEM: &str = "/run/dbus/system_bus_socket";

const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const SYSTEMD: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";

/// Why systemd can't be asked, or what it answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// Neither socket takes a connection.
    #[error("connect to systemd ({PRIVATE} or {SYSTEM})")]
    Connect(#[source] std::io::Error),
    /// The connection broke.
    #[error("talk to systemd")]
    Io(#[source] std::io::Error),
    /// The other side doesn't speak D-Bus as we do.
    #[error("systemd's end of the connection sent {0}")]
    Protocol(&'static str),
    /// The other side doesn't believe that we are who we are.
    #[error("systemd refused the connection: {0}")]
    Rejected(String),
    /// systemd answered with an error.
    #[error("{method}: {text} ({name})")]
    Refused {
        /// The method that was called.
        method: &'static str,
        /// The error's name on the bus.
        name: String,
        /// What systemd says about it.
        text: String,
    },
    /// A job that systemd took on did not succeed.
    #[error("systemd's job for {unit} ended with {result:?}")]
    Job {
        /// The unit.
        unit: String,
        /// `failed`, `timeout`, `canceled`, …
        result: String,
    },
    /// No answer in time.
    #[error("no answer from systemd within {0:?}")]
    Late(Duration),
}

impl BusError {
    pub(super) fn is(&self, wanted: &str) -> bool {
        matches!(self, BusError::Refused { name, .. } if name.strip_prefix("org.freedesktop.systemd1.") == Some(wanted))
    }
}

fn io(errno: Errno) -> BusError {
    BusError::Io(errno.into())
}

pub(super) struct Bus {
    socket: OwnedFd,
    deadline: Duration,
    until: Instant,
    serial: u32,
    /// Read and not yet looked at.
    pending: Vec<u8>,
    /// Signals that came while a reply was waited for.
    signals: Vec<Message>,
}

impl Bus {
    /// Connects and introduces itself. `deadline` is for everything that is done over the connection.
    pub(super) fn open(deadline: Duration) -> Result<Bus, BusError> {
        let over = |path| Bus::over(dial(path, deadline).map_err(BusError::Connect)?, deadline);
        over(PRIVATE).or_else(|_| {
            let mut bus = over(SYSTEM)?;
            bus.call_bus("Hello", "", Vec::new())?;
            let mut rule = Writer::default();
            rule.text("type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'");
            bus.call_bus("AddMatch", "s", rule.into_bytes())?;
            // On the bus systemd is silent until somebody wants to hear.
            bus.call("Subscribe", "", Vec::new())?;
            Ok(bus)
        })
    }

    fn over(socket: OwnedFd, deadline: Duration) -> Result<Bus, BusError> {
        let until = Instant::now() + deadline;
        let mut bus = Bus { socket, deadline, until, serial: 0, pending: Vec::new(), signals: Vec::new() };
        // The identity is the decimal uid, in hexadecimal digits of its characters; the socket proves it.
        let uid = rustix::process::geteuid().as_raw().to_string();
        let digits: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        // The end of the introduction goes along with its start: systemd, which reads both at once then, would not look
        // again at a call that it has read together with a BEGIN, and neither side would move (systemd 252).
        bus.send(format!("\0AUTH EXTERNAL {digits}\r\nBEGIN\r\n").as_bytes())?;
        let answer = bus.line()?;
        if !answer.starts_with("OK ") {
            return Err(BusError::Rejected(answer));
        }
        Ok(bus)
    }

    /// Calls a method of systemd's manager and returns the body of the reply.
    pub(super) fn call(
        &mut self,
        member: &'static str,
        signature: &str,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, BusError> {
        self.ask(
            member,
            &Call { destination: SYSTEMD, path: OBJECT, interface: MANAGER, member, signature, body },
        )
    }

    fn call_bus(
        &mut self,
        member: &'static str,
        signature: &str,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, BusError> {
        let (destination, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
        self.ask(member, &Call { destination, path, interface: destination, member, signature, body })
    }

    /// A property of the manager that is a string.
    pub(super) fn property(&mut self, name: &str) -> Result<String, BusError> {
        let mut body = Writer::default();
        body.text(MANAGER);
        body.text(name);
        let interface = "org.freedesktop.DBus.Properties";
        let call = Call {
            destination: SYSTEMD,
            path: OBJECT,
            interface,
            member: "Get",
            signature: "ss",
            body: body.into_bytes(),
        };
        let reply = self.ask("Get", &call)?;
        let mut reader = Reader::new(&reply);
        match reader.signature().as_deref() {
            Some("s") => reader.text().ok_or(BusError::Protocol("a short property")),
            _ => Err(BusError::Protocol("a property of another type")),
        }
    }

    /// Waits for the end of a job that a call has started; `reply` is that call's, and names the job.
    pub(super) fn finish(&mut self, unit: &str, reply: &[u8]) -> Result<(), BusError> {
        let job = Reader::new(reply).text().ok_or(BusError::Protocol("a reply without a job"))?;
        loop {
            let signals = std::mem::take(&mut self.signals);
            for signal in signals.iter().filter(|signal| signal.member == "JobRemoved") {
                let mut reader = Reader::new(&signal.body);
                let (_number, path, _unit) = (reader.u32(), reader.text(), reader.text());
                if path.as_deref() != Some(&job) {
                    continue;
                }
                return match reader.text() {
                    Some(result) if result == "done" => Ok(()),
                    Some(result) => Err(BusError::Job { unit: unit.to_owned(), result }),
                    None => Err(BusError::Protocol("a job that ended without a result")),
                };
            }
            let message = self.receive()?;
            if message.kind == wire::SIGNAL {
                self.signals.push(message);
            }
        }
    }

    fn ask(&mut self, method: &'static str, call: &Call<'_>) -> Result<Vec<u8>, BusError> {
        self.serial += 1;
        self.send(&call.to_bytes(self.serial))?;
        loop {
            let message = self.receive()?;
            match message.kind {
                wire::SIGNAL => self.signals.push(message),
                wire::REPLY if message.reply_to == self.serial => return Ok(message.body),
                wire::ERROR if message.reply_to == self.serial => {
                    let text = match message.signature.starts_with('s') {
                        true => Reader::new(&message.body).text().unwrap_or_default(),
                        false => String::new(),
                    };
                    return Err(BusError::Refused { method, name: message.name, text });
                }
                _ => {}
            }
        }
    }

    fn receive(&mut self) -> Result<Message, BusError> {
        loop {
            if let Some(length) = wire::length(&self.pending).map_err(BusError::Protocol)?
                && self.pending.len() >= length
            {
                let bytes: Vec<u8> = self.pending.drain(..length).collect();
                return wire::parse(&bytes).map_err(BusError::Protocol);
            }
            self.read()?;
        }
    }

    /// A line of the introduction, without its end.
    fn line(&mut self) -> Result<String, BusError> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.pending.drain(..end + 2).take(end).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            if self.pending.len() > 4096 {
                return Err(BusError::Protocol("a line without an end"));
            }
            self.read()?;
        }
    }

    fn read(&mut self) -> Result<(), BusError> {
        self.wait(PollFlags::IN)?;
        let mut buffer = [0u8; 4096];
        match recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(BusError::Protocol("the end of the conversation")),
            Ok((count, _)) => {
                self.pending.extend(&buffer[..count.min(buffer.len())]);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(errno) => Err(io(errno)),
        }
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<(), BusError> {
        while !bytes.is_empty() {
            self.wait(PollFlags::OUT)?;
            match send(&self.socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(io(errno)),
            }
        }
        Ok(())
    }

    fn wait(&self, what: PollFlags) -> Result<(), BusError> {
        let left = self.until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.socket, what)], Some(&timeout)) {
            Ok(0) => Err(BusError::Late(self.deadline)),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(io(errno)),
        }
    }
}

fn dial(path: &str, deadline: Duration) -> std::io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Holds for connect too, which waits while the listener's queue is full.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(deadline))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}
