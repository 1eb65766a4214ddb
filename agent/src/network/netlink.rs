//! A synchronous netlink socket: one request or a batch out, the answers back.
//!
//! The kernel handles a request inside `send`, so the answers are waiting when
//! it returns; a receive timeout bounds every wait all the same. A socket stays
//! in the network namespace of the thread that opened it.
//! What the messages mean is left to `link`, `bridge` and `netfilter`.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_packet_core::NetlinkSerializable;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket as RawSocket, SocketAddr};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size_force, set_socket_timeout};

pub(super) const REQUEST: u16 = 0x001;
pub(super) const ACK: u16 = 0x004;
pub(super) const REPLACE: u16 = 0x100;
pub(super) const EXCLUSIVE: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;
pub(super) const DUMP: u16 = 0x300;

const DUMP_INTERRUPTED: u16 = 0x010;
const ACK_HAS_ATTRIBUTES: u16 = 0x200;

const MESSAGE_ERROR: u16 = 2;
const MESSAGE_DONE: u16 = 3;
const FIRST_PROTOCOL_MESSAGE: u16 = 16;

const HEADER: usize = 16;
/// The kernel never makes a dump datagram larger than this.
const RECEIVE_BUFFER: usize = 32 * 1024;
const DEADLINE: Duration = Duration::from_secs(10);
/// What fits a socket's send buffer as the kernel sets it up.
const SEND_BUFFER: usize = 128 * 1024;
/// A dump that the kernel marks as torn is asked for again this often.
const DUMP_TRIES: usize = 5;

/// What can go wrong between a request and its answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on the socket failed.
    #[error("{call} on a netlink socket")]
    Socket {
        /// The call.
        call: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("{action}{}", detail.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// What was asked for.
        action: &'static str,
        /// The kernel's own explanation, where it gave one.
        detail: Option<String>,
        /// The error number.
        #[source]
        source: io::Error,
    },
    /// No answer before the deadline.
    #[error("{action}: no answer from the kernel")]
    TimedOut {
        /// What was asked for.
        action: &'static str,
    },
    /// An answer that does not parse.
    #[error("malformed netlink answer")]
    Malformed,
}

impl Error {
    /// The error number with which the kernel refused, if it did.
    pub(super) fn errno(&self) -> Option<Errno> {
        match self {
            Error::Refused { source, .. } => Errno::from_io_error(source),
            _ => None,
        }
    }
}

/// One request, without its sequence number.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) body: Vec<u8>,
    /// What the request does, for the error that names it.
    pub(super) action: &'static str,
}

impl Message {
    /// An rtnetlink request; `flags` beside REQUEST and ACK.
    pub(super) fn route(action: &'static str, flags: u16, message: &RouteNetlinkMessage) -> Self {
        let mut body = vec![0; NetlinkSerializable::buffer_len(message)];
        message.serialize(&mut body);
        Message {
            kind: NetlinkSerializable::message_type(message),
            flags: REQUEST | ACK | flags,
            body,
            action,
        }
    }
}

/// One answer that is neither an acknowledgement nor the end of a dump.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) kind: u16,
    pub(super) body: Vec<u8>,
}

/// A netlink socket with requests numbered in order.
pub(super) struct Socket {
    inner: RawSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket for links, addresses and routes of the calling thread's namespace.
    pub(super) fn route() -> Result<Self, Error> {
        Self::open(NETLINK_ROUTE)
    }

    /// A socket for nftables and connection tracking of the calling thread's namespace.
    pub(super) fn netfilter() -> Result<Self, Error> {
        Self::open(NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> Result<Self, Error> {
        let failed = |call| move |source| Error::Socket { call, source };
        let mut inner = RawSocket::new(protocol).map_err(failed("socket"))?;
        inner.bind_auto().map_err(failed("bind"))?;
        inner.connect(&SocketAddr::new(0, 0)).map_err(failed("connect"))?;
        // Errors without a copy of the request, and with the kernel's words.
        inner.set_cap_ack(true).map_err(failed("setsockopt"))?;
        inner.set_ext_ack(true).map_err(failed("setsockopt"))?;
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(inner.as_fd(), direction, Some(DEADLINE))
                .map_err(|errno| failed("setsockopt")(errno.into()))?;
        }
        Ok(Socket { inner, sequence: 0, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// Sends the messages in one datagram and waits for every acknowledgement
    /// they ask for. The first refusal is the result; outside an nftables
    /// transaction the kernel has carried out the others all the same.
    pub(super) fn transact(&mut self, messages: &[Message]) -> Result<Vec<Reply>, Error> {
        let first = self.send(messages)?;
        let mut exchange = Exchange::new(first, messages);
        while !exchange.is_complete() {
            let length = self.receive(exchange.next_action())?;
            exchange.read(&self.buffer[..length])?;
        }
        exchange.finish()
    }

    /// Asks for a dump, again when the kernel says it changed midway.
    pub(super) fn dump(&mut self, message: &Message) -> Result<Vec<Reply>, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            let first = self.send(std::slice::from_ref(message))?;
            let mut exchange = Exchange::new(first, std::slice::from_ref(message));
            while !exchange.is_complete() {
                let length = self.receive(message.action)?;
                exchange.read(&self.buffer[..length])?;
            }
            if !exchange.interrupted || tries == DUMP_TRIES {
                return exchange.finish();
            }
        }
    }

    fn send(&mut self, messages: &[Message]) -> Result<u32, Error> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::with_capacity(1024);
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            let start = datagram.len();
            let length = u32::try_from(HEADER + message.body.len()).unwrap_or(u32::MAX);
            datagram.extend_from_slice(&length.to_ne_bytes());
            datagram.extend_from_slice(&message.kind.to_ne_bytes());
            datagram.extend_from_slice(&message.flags.to_ne_bytes());
            datagram.extend_from_slice(&self.sequence.to_ne_bytes());
            datagram.extend_from_slice(&0u32.to_ne_bytes());
            datagram.extend_from_slice(&message.body);
            datagram.resize(start + align(datagram.len() - start), 0);
        }
        let failed = |call| move |source| Error::Socket { call, source };
        if datagram.len() > SEND_BUFFER {
            // A transaction goes in one piece, however many ports are in it.
            set_socket_send_buffer_size_force(self.inner.as_fd(), datagram.len() * 2)
                .map_err(|errno| failed("setsockopt")(errno.into()))?;
        }
        self.inner.send(&datagram, 0).map_err(failed("send"))?;
        Ok(first)
    }

    fn receive(&mut self, action: &'static str) -> Result<usize, Error> {
        loop {
            let received = rustix::net::recv(self.inner.as_fd(), &mut self.buffer[..], RecvFlags::TRUNC);
            return match received {
                Ok((_, length)) if length > self.buffer.len() => Err(Error::Malformed),
                Ok((_, length)) => Ok(length),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Err(Error::TimedOut { action }),
                Err(errno) => Err(Error::Socket { call: "recv", source: errno.into() }),
            };
        }
    }
}

/// What has come back so far of the requests `first .. first + messages.len()`.
struct Exchange<'a> {
    first: u32,
    messages: &'a [Message],
    /// Which messages still have an acknowledgement or an end of dump to come.
    pending: Vec<bool>,
    replies: Vec<Reply>,
    failure: Option<Error>,
    interrupted: bool,
}

impl<'a> Exchange<'a> {
    fn new(first: u32, messages: &'a [Message]) -> Self {
        let pending =
            messages.iter().map(|message| message.flags & ACK != 0 || message.flags & DUMP == DUMP).collect();
        Exchange { first, messages, pending, replies: Vec::new(), failure: None, interrupted: false }
    }

    fn is_complete(&self) -> bool {
        !self.pending.contains(&true)
    }

    fn next_action(&self) -> &'static str {
        let next = self.pending.iter().position(|&pending| pending);
        self.messages[next.unwrap_or(0)].action
    }

    fn finish(self) -> Result<Vec<Reply>, Error> {
        match self.failure {
            Some(failure) => Err(failure),
            None => Ok(self.replies),
        }
    }

    fn read(&mut self, mut datagram: &[u8]) -> Result<(), Error> {
        while datagram.len() >= HEADER {
            let length = read_u32(datagram, 0) as usize;
            if length < HEADER || length > datagram.len() {
                return Err(Error::Malformed);
            }
            let kind = read_u16(datagram, 4);
            let flags = read_u16(datagram, 6);
            let index = read_u32(datagram, 8).wrapping_sub(self.first) as usize;
            // An answer to a request that was given up on earlier is skipped.
            if index < self.messages.len() {
                self.take(index, kind, flags, &datagram[HEADER..length])?;
            }
            datagram = &datagram[align(length).min(datagram.len())..];
        }
        Ok(())
    }

    fn take(&mut self, index: usize, kind: u16, flags: u16, body: &[u8]) -> Result<(), Error> {
        self.interrupted |= flags & DUMP_INTERRUPTED != 0;
        match kind {
            MESSAGE_ERROR | MESSAGE_DONE => {
                let code = if body.len() >= 4 { read_u32(body, 0).cast_signed() } else { 0 };
                self.pending[index] = false;
                if code < 0 {
                    self.refuse(index, code, flags, body);
                }
            }
            kind if kind >= FIRST_PROTOCOL_MESSAGE => self.replies.push(Reply { kind, body: body.to_vec() }),
            _ => {}
        }
        Ok(())
    }

    fn refuse(&mut self, index: usize, code: i32, flags: u16, body: &[u8]) {
        // A transaction that failed as a whole is refused by its first message
        // alone, which asks for no acknowledgement.
        if index == 0 && self.messages[0].flags & ACK == 0 {
            self.pending.fill(false);
        }
        if self.failure.is_none() {
            let detail = (flags & ACK_HAS_ATTRIBUTES != 0).then(|| explanation(body)).flatten();
            self.failure = Some(Error::Refused {
                action: self.messages[index].action,
                detail,
                source: io::Error::from_raw_os_error(-code),
            });
        }
    }
}

/// The kernel's words in an extended acknowledgement whose request was cut off.
fn explanation(body: &[u8]) -> Option<String> {
    const MESSAGE: u16 = 1;
    let text = attribute(body.get(4 + HEADER..)?, MESSAGE)?;
    let text = text.strip_suffix(&[0]).unwrap_or(text);
    Some(String::from_utf8_lossy(text).into_owned())
}

/// The attributes laid out in `bytes`: kind without its flag bits, and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        if bytes.len() < 4 {
            return None;
        }
        let length = usize::from(read_u16(bytes, 0));
        if length < 4 || length > bytes.len() {
            return None;
        }
        let item = (read_u16(bytes, 2) & 0x3fff, &bytes[4..length]);
        bytes = &bytes[align(length).min(bytes.len())..];
        Some(item)
    })
}

/// The value of the first attribute of a kind.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Netlink lays everything out in units of four bytes.
pub(super) fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

pub(super) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(flags: u16) -> Message {
        Message { kind: FIRST_PROTOCOL_MESSAGE, flags, body: Vec::new(), action: "test" }
    }

    fn answer(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&0u16.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn first_refusal_of_a_batch_is_reported_after_every_acknowledgement() {
        let messages = [message(ACK), message(ACK), message(ACK)];
        let mut exchange = Exchange::new(7, &messages);
        exchange.read(&answer(MESSAGE_ERROR, 7, &[0; 4])).unwrap();
        exchange.read(&answer(MESSAGE_ERROR, 8, &(-17i32).to_ne_bytes())).unwrap();
        assert!(!exchange.is_complete());
        exchange.read(&answer(MESSAGE_ERROR, 9, &[0; 4])).unwrap();
        assert!(exchange.is_complete());
        assert_eq!(exchange.finish().unwrap_err().errno(), Some(Errno::EXIST));
    }

    #[test]
    fn answers_to_an_abandoned_request_are_skipped() {
        let messages = [message(ACK)];
        let mut exchange = Exchange::new(7, &messages);
        exchange.read(&answer(MESSAGE_ERROR, 6, &(-1i32).to_ne_bytes())).unwrap();
        assert!(!exchange.is_complete());
        exchange.read(&answer(MESSAGE_ERROR, 7, &[0; 4])).unwrap();
        assert!(exchange.finish().is_ok());
    }

    #[test]
    fn refused_transaction_ends_the_wait() {
        let messages = [message(0), message(0), message(ACK)];
        let mut exchange = Exchange::new(1, &messages);
        exchange.read(&answer(MESSAGE_ERROR, 1, &(-12i32).to_ne_bytes())).unwrap();
        assert!(exchange.is_complete());
        assert_eq!(exchange.finish().unwrap_err().errno(), Some(Errno::NOMEM));
    }

    #[test]
    fn truncated_answers_are_errors_and_truncated_attributes_end_the_list() {
        let messages = [message(ACK)];
        let mut exchange = Exchange::new(1, &messages);
        let mut bytes = answer(MESSAGE_ERROR, 1, &[0; 4]);
        bytes.truncate(18);
        assert!(exchange.read(&bytes).is_err());
        assert_eq!(attributes(&[9, 0, 1, 0, 5]).count(), 0);
        assert_eq!(attribute(&[5, 0, 1, 0x80, 7], 1), Some(&[7u8][..]));
    }
}
