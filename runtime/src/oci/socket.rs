//! Unix sockets by path, of any length: the caller's for descriptors, ours for the start.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, sendmsg, socket_with,
};

use super::{Error, Result};
use crate::sys;

/// Connects to a stream socket at a path that a caller chose.
pub(super) fn connect_stream(path: &Path) -> Result<OwnedFd> {
    connect_to(path, SocketType::STREAM)
        .map_err(|errno| Error::errno(format!("connect to {}", path.display()), errno))
}

fn connect_to(path: &Path, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    // An address holds 107 bytes; a descriptor's link is always shorter.
    let target = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", target.as_raw_fd()))?;
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    connect(&socket, &address)?;
    Ok(socket)
}

/// Sends one message with descriptors over a connection of its own.
pub(super) fn send(path: &Path, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let socket = connect_stream(path)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // There is room for the one that everybody sends.
    control.push(SendAncillaryMessage::ScmRights(descriptors));
    let failed = |errno| Error::errno(format!("send to {}", path.display()), errno);
    let mut sent =
        sendmsg(&socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL).map_err(failed)?;
    while sent < message.len() {
        sent += rustix::net::send(&socket, &message[sent..], SendFlags::NOSIGNAL).map_err(failed)?;
    }
    Ok(())
}

/// Sends a pidfd to whoever asked for it.
pub(super) fn send_pidfd(path: Option<&Path>, pidfd: impl AsFd) -> Result<()> {
    path.map_or(Ok(()), |path| send(path, b"pidfd", &[pidfd.as_fd()]))
}

/// Listens at `name` in a folder.
pub(super) fn listen_in(folder: &Path, name: &str) -> Result<OwnedFd> {
    let path = folder.join(name);
    sys::socket::listen(&path, SocketFlags::NONBLOCK, 4)
        .map_err(|errno| Error::errno(format!("listen at {}", path.display()), errno))
}

/// Connects to what listens at `name` in a folder; None when nobody does.
pub(super) fn connect_in(folder: &Path, name: &str) -> Result<Option<OwnedFd>> {
    use rustix::io::Errno;
    match connect_to(&folder.join(name), SocketType::SEQPACKET) {
        Ok(socket) => Ok(Some(socket)),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(None),
        Err(errno) => Err(Error::errno(format!("connect to {}", folder.join(name).display()), errno)),
    }
}
