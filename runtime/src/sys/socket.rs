//! Unix sockets at paths of any length.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Listens for SEQPACKET connections at a path, where nothing is yet. `waiting` clients may be on their way.
///
/// An address holds 107 bytes; a link to the folder's descriptor, which stands in for its path, is short. The link is the
/// thread's, whose table of descriptors need not be that of the process.
pub(crate) fn listen(path: &Path, flags: SocketFlags, waiting: i32) -> rustix::io::Result<OwnedFd> {
    let (folder, name) = path.parent().zip(path.file_name()).ok_or(Errno::INVAL)?;
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(CWD, folder, directory, Mode::empty())?;
    let link = PathBuf::from(format!("/proc/thread-self/fd/{}", folder.as_raw_fd()));
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags | SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(link.join(name))?)?;
    rustix::net::listen(&socket, waiting)?;
    Ok(socket)
}
