//! A terminal of a container's own `/dev/pts`: the slave becomes the standard descriptors, the master goes to a socket.
//!
//! Both ends come from the container's devpts by descriptor. The slave is had from the master itself and never by
//! its name, which somebody in the container could have given to something else.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr};

use super::{Error, Result, device};
use crate::beneath;
use crate::sys::{self, terminal};

/// Opens a terminal beneath `root`, sends its master over `socket` and puts its slave in place of stdio.
pub(crate) fn make(
    root: impl AsFd,
    socket: &OwnedFd,
    size: Option<oci_spec::runtime::Box>,
    line_ends: LineEnds,
) -> Result<OwnedFd> {
    /// `/dev/ptmx` and that of each devpts.
    const MULTIPLEXER: (u32, u32) = (5, 2);
    const DEVPTS: i64 = 0x1cd1;
    let path = Path::new("dev/pts/ptmx");
    let found = beneath::open(&root, path, OFlags::PATH).map_err(Error::Terminal)?;
    let kind = rustix::fs::fstatfs(&found).map(|stat| stat.f_type);
    if !device::is(&found, FileType::CharacterDevice, MULTIPLEXER).map_err(Error::Terminal)?
        || kind != Ok(DEVPTS)
    {
        return Err(Error::DeviceRefused { path: path.to_owned(), problem: "it isn't that of a devpts" });
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = beneath::open(&root, path, flags).map_err(Error::Terminal)?;
    terminal::unlock(&master).map_err(Error::Terminal)?;
    let slave = terminal::peer(&master).map_err(Error::Terminal)?;
    if let Some(size) = size.filter(|size| (size.width(), size.height()) != (0, 0)) {
        let size = Winsize {
            ws_row: u16::try_from(size.height()).unwrap_or(u16::MAX),
            ws_col: u16::try_from(size.width()).unwrap_or(u16::MAX),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&master, size)
            .map_err(|errno| Error::Terminal(sys::Error::new("ioctl(TIOCSWINSZ)", errno)))?;
    }
    if line_ends == LineEnds::AsWritten {
        keep_line_ends(&slave).map_err(|errno| Error::Terminal(sys::Error::new("tcsetattr()", errno)))?;
    }
    send(socket.as_fd(), master.as_fd())?;
    sys::process::replace_stdio(&slave).map_err(Error::Terminal)?;
    Ok(slave)
}

/// How lines end that come out of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineEnds {
    /// With a carriage return, as those of a terminal do.
    OfTerminal,
    /// For what is passed on by us, to a terminal that has its own way of ending lines, or to a file that has none.
    AsWritten,
}

fn keep_line_ends(slave: &OwnedFd) -> rustix::io::Result<()> {
    let mut modes = tcgetattr(slave)?;
    modes.output_modes.remove(OutputModes::ONLCR);
    tcsetattr(slave, OptionalActions::Now, &modes)
}

/// Mounts the slave at `/dev/console`.
pub(super) fn bind(root: impl AsFd, slave: &OwnedFd) -> Result<()> {
    let attached = beneath::file(&root, Path::new("/dev/console")).and_then(|target| {
        let tree = sys::mount::clone_tree(slave, "", false)?;
        sys::mount::attach(&tree, &target)
    });
    attached.map_err(|source| Error::Device { path: "/dev/console".into(), source })
}

fn send(socket: BorrowedFd<'_>, master: BorrowedFd<'_>) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [master];
    // There is room for one.
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let sent = sendmsg(socket, &[IoSlice::new(b"/dev/ptmx")], &mut control, SendFlags::NOSIGNAL);
    sent.map(drop).map_err(|errno| Error::Terminal(sys::Error::new("sendmsg(console socket)", errno)))
}
