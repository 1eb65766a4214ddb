//! A small blocking client of the shim's protocol.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg,
    socket_with,
};
use sampan_runtime::shim::protocol::{
    ContainerState, ErrorKind, Event, Exit, MAX_MESSAGE, Request, Response, VERSION,
};

/// Nothing that a test does takes longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Client(OwnedFd);

impl Client {
    /// A connection that has said hello.
    pub(crate) fn connect(socket: &Path) -> Client {
        let client = Client::connect_silently(socket);
        let answer = client.ask(&Request::Hello { version: VERSION });
        assert!(matches!(answer, Response::Hello { version: VERSION, .. }), "{answer:?}");
        client
    }

    pub(crate) fn connect_silently(path: &Path) -> Client {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Client(socket)
    }

    pub(crate) fn send(&self, request: &Request) {
        self.send_with(request, &[]);
    }

    pub(crate) fn send_with(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) {
        let bytes = serde_json::to_vec(request).unwrap();
        self.send_bytes(&bytes, descriptors);
    }

    pub(crate) fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let sent = sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
        assert_eq!(sent, bytes.len());
    }

    /// The next message; None at the end of the connection.
    pub(crate) fn receive(&self) -> Option<Response> {
        self.receive_within(DEADLINE).expect("no message within the deadline")
    }

    /// The next message if it comes in time.
    pub(crate) fn receive_within(&self, deadline: Duration) -> Option<Option<Response>> {
        Some(self.receive_with(deadline)?.map(|(response, _)| response))
    }

    /// The same with the descriptors that came with it.
    pub(crate) fn receive_with(&self, deadline: Duration) -> Option<Option<(Response, Vec<OwnedFd>)>> {
        let timeout = Timespec { tv_sec: deadline.as_secs() as i64, tv_nsec: deadline.subsec_nanos().into() };
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout)).unwrap() == 0 {
            return None;
        }
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
        let count = match received {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(errno) => panic!("receive: {errno}"),
        };
        let rights = |message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        };
        let descriptors = control.drain().filter_map(rights).flatten().collect();
        Some((count > 0).then(|| (serde_json::from_slice(&bytes[..count]).unwrap(), descriptors)))
    }

    pub(crate) fn ask(&self, request: &Request) -> Response {
        self.send(request);
        self.receive().expect("the shim closed the connection")
    }

    pub(crate) fn done(&self, request: &Request) {
        assert_eq!(self.ask(request), Response::Done, "{request:?}");
    }

    /// The error that a request must lead to.
    pub(crate) fn refused(&self, request: &Request) -> (ErrorKind, String) {
        match self.ask(request) {
            Response::Error { kind, message } => (kind, message),
            other => panic!("{request:?} was answered with {other:?}"),
        }
    }

    pub(crate) fn state(&self) -> Vec<ContainerState> {
        self.send(&Request::State);
        let mut all = Vec::new();
        loop {
            match self.receive() {
                Some(Response::State { containers, more }) => {
                    all.extend(containers);
                    if !more {
                        return all;
                    }
                }
                other => panic!("state: {other:?}"),
            }
        }
    }

    /// Waits on a subscribed connection for the end of a container.
    pub(crate) fn exit_of(&self, container: &str) -> Exit {
        loop {
            match self.receive() {
                Some(Response::Event(Event::Exited { id, exit })) if id == container => return exit,
                Some(Response::Event(_)) => {}
                other => panic!("instead of an event: {other:?}"),
            }
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
