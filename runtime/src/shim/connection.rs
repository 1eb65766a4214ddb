//! One client's connection.
//!
//! Nothing here blocks: what a client doesn't take at once waits in a bounded queue, and a client whose queue is full
//! is given up. While a request is being worked on, the next one stays in the socket, which keeps answers in order.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, send, sendmsg,
};

use super::poll::EventFlags;
use super::protocol::{EXEC_DESCRIPTORS, ErrorKind, MAX_MESSAGE, Request, Response};

/// Messages that may wait for a slow client, beside those that its socket holds.
const MAX_QUEUE: usize = 64;

/// A request with the descriptors that came with it.
pub(super) struct Message {
    pub(super) request: Result<Request, String>,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Outcome of a look into the socket.
pub(super) enum Received {
    Message(Message),
    Nothing,
    End,
}

pub(super) struct Connection {
    pub(super) number: u32,
    socket: OwnedFd,
    /// Whether it has said hello.
    pub(super) greeted: bool,
    pub(super) subscribed: bool,
    /// Whether a request is being worked on.
    pub(super) busy: bool,
    /// It has closed its side.
    pub(super) listens_only: bool,
    queue: VecDeque<Vec<u8>>,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    pub(super) fn new(number: u32, socket: OwnedFd) -> Connection {
        Connection {
            number,
            socket,
            greeted: false,
            subscribed: false,
            busy: false,
            listens_only: false,
            queue: VecDeque::new(),
        }
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::RDHUP, !self.listens_only);
        flags.set(EventFlags::IN, !self.busy && !self.listens_only);
        flags.set(EventFlags::OUT, !self.queue.is_empty());
        flags
    }

    pub(super) fn receive(&self) -> Received {
        let mut bytes = [0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(EXEC_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut vector = [io::IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = match recvmsg(&self.socket, &mut vector, &mut control, flags) {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Received::Nothing,
            Err(_) => return Received::End,
        };
        let rights = |message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        };
        let descriptors: Vec<OwnedFd> = control.drain().filter_map(rights).flatten().collect();
        if received.bytes == 0 {
            return Received::End;
        }
        let request = if received.flags.contains(ReturnFlags::TRUNC) {
            Err(format!("a message is longer than {MAX_MESSAGE} bytes"))
        } else if received.flags.contains(ReturnFlags::CTRUNC) {
            Err(format!("a message has more than {EXEC_DESCRIPTORS} descriptors"))
        } else {
            let text = &vector[0][..received.bytes];
            serde_json::from_slice(text).map_err(|error| format!("a message is no request: {error}"))
        };
        Received::Message(Message { request, descriptors })
    }

    /// Sends now or later. An error means that the client is gone or doesn't read.
    pub(super) fn send(&mut self, response: &Response) -> io::Result<()> {
        let bytes = encode(response)?;
        if self.queue.is_empty() && self.try_send(&bytes)? {
            return Ok(());
        }
        if self.queue.len() >= MAX_QUEUE {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "the client does not read"));
        }
        self.queue.push_back(bytes);
        Ok(())
    }

    /// Sends now, with a descriptor. There is room in the socket of a client that has just asked for it.
    pub(super) fn send_with(
        &mut self,
        response: &Response,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let Some(descriptor) = descriptor else { return self.send(response) };
        let bytes = encode(response)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(&self.socket, &[io::IoSlice::new(&bytes)], &mut control, flags)?;
        Ok(())
    }

    /// Sends what waits, as far as the client takes it.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while let Some(bytes) = self.queue.front() {
            if !self.try_send(bytes)? {
                return Ok(());
            }
            self.queue.pop_front();
        }
        self.queue = VecDeque::new();
        Ok(())
    }

    fn try_send(&self, bytes: &[u8]) -> io::Result<bool> {
        match send(&self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The bytes of a message that is sure to fit: only an error's text can be too long, and is cut.
pub(super) fn encode(response: &Response) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(response)?;
    match response {
        Response::Error { kind, message } if bytes.len() > MAX_MESSAGE => encode_cut(*kind, message),
        _ if bytes.len() > MAX_MESSAGE => Err(io::Error::other("a response is too long")),
        _ => Ok(bytes),
    }
}

fn encode_cut(kind: ErrorKind, message: &str) -> io::Result<Vec<u8>> {
    // JSON makes at most six bytes of one.
    let end = (0..=MAX_MESSAGE / 6 - 16).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
    Ok(serde_json::to_vec(&Response::Error { kind, message: format!("{}…", &message[..end]) })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, recv, socketpair};

    fn pair() -> (Connection, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (Connection::new(1, ours), theirs)
    }

    fn request(connection: &Connection) -> Message {
        match connection.receive() {
            Received::Message(message) => message,
            _ => panic!("no message"),
        }
    }

    #[test]
    fn requests_come_with_their_descriptors() {
        let (connection, client) = pair();
        assert!(matches!(connection.receive(), Received::Nothing));
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let descriptors = [reader.as_fd(), writer.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&client, &[io::IoSlice::new(br#""state""#)], &mut control, SendFlags::empty()).unwrap();
        let message = request(&connection);
        assert_eq!((message.request, message.descriptors.len()), (Ok(Request::State), 2));
        drop(client);
        assert!(matches!(connection.receive(), Received::End));
    }

    #[test]
    fn too_long_and_senseless_messages_are_told_apart_from_the_end() {
        let (connection, client) = pair();
        for bad in [vec![b'x'; MAX_MESSAGE + 1], b"{}".to_vec(), b"\xff".to_vec()] {
            send(&client, &bad, SendFlags::empty()).unwrap();
            assert!(request(&connection).request.is_err());
        }
    }

    #[test]
    fn a_client_that_does_not_read_is_given_up_after_a_bounded_queue() {
        let (mut connection, client) = pair();
        let response = Response::Error { kind: ErrorKind::Internal, message: "x".repeat(3000) };
        let sent = (0..100_000).take_while(|_| connection.send(&response).is_ok()).count();
        assert_eq!(connection.queue.len(), MAX_QUEUE);
        assert!(connection.interest().contains(EventFlags::OUT));
        let mut buffer = [0; MAX_MESSAGE];
        let mut read = 0;
        while recv(&client, &mut buffer[..], RecvFlags::empty()).is_ok() {
            read += 1;
            connection.flush().unwrap();
        }
        assert_eq!(read, sent, "nothing is lost that was accepted");
        assert!(!connection.interest().contains(EventFlags::OUT));
    }

    #[test]
    fn long_errors_are_cut_to_fit() {
        for text in ["\u{1}", "ä", "x"] {
            let response = Response::Error { kind: ErrorKind::Internal, message: text.repeat(5000) };
            let bytes = encode(&response).unwrap();
            assert!(bytes.len() <= MAX_MESSAGE);
            assert!(matches!(serde_json::from_slice(&bytes).unwrap(), Response::Error { .. }));
        }
    }
}
