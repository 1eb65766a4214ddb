//! The runtime's own executable, kept from being written by those it runs.
//!
//! `/proc/PID/exe` of a process that executes the runtime's file leads to that very file, whatever
//! the mount namespace of who follows it. A container's process that is root can get hold of it: a
//! container's entrypoint, or a program of an exec, that begins with `#!/proc/self/exe` makes the
//! kernel execute our file as a process of the container, undumpable no more. Opened for
//! writing once nobody executes it, it would be the container's to replace, for the host to run
//! next (CVE-2019-5736).
//!
//! Such a link opens its file through the mount it was executed from. So the runtime executes
//! itself from a read-only bind mount of its own file that is mounted nowhere: the link then leads
//! to a read-only mount (EROFS), which nobody can change who can't reach it in a mount namespace.
//! Children are clones of the monitor, not executed anew, and have the same link. Unlike a copy in
//! a sealed memfd this costs no memory: all monitors of a node go on sharing the file's pages. It
//! costs one more exec a monitor, and none when whoever started it did the same already, as the agent does.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags};

use crate::sys::process::Strings;
use crate::sys::{self, mount::Attributes};

/// Why the process can't run from a read-only mount.
#[derive(Debug, thiserror::Error)]
#[error("run from a read-only mount of the executable")]
pub struct Error(#[source] Cause);

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("{0}: {source}", source = std::error::Error::source(.0).map(ToString::to_string).unwrap_or_default())]
    Call(sys::Error),
    #[error("the mount is still writable")]
    StillWritable,
    #[error("read the arguments")]
    Arguments(#[source] io::Error),
}

/// Makes sure that this process runs from a read-only mount: executes its own file again from one if it doesn't.
///
/// To be called first thing in `main`. The arguments, the environment and all descriptors that
/// survive exec stay as they are. Returns when the process runs as it should.
pub fn protect() -> Result<(), Error> {
    protect_self().map_err(Error)
}

fn protect_self() -> Result<(), Cause> {
    let own = rustix::fs::openat(CWD, "/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let own = own.map_err(|errno| Cause::Call(sys::Error::new("open(/proc/self/exe)", errno)))?;
    if is_read_only(&own)? {
        return Ok(());
    }
    // One that is still writable is an error: never again and again.
    let mount = read_only_mount(&own)?;
    let arguments = Strings::new(strings(std::env::args_os().map(OsStringExt::into_vec))?);
    let environment = std::env::vars_os().map(|(name, value)| {
        let mut variable = name.into_vec();
        variable.push(b'=');
        variable.extend(value.into_vec());
        variable
    });
    let environment = Strings::new(strings(environment)?);
    Err(Cause::Call(sys::process::fexecve(&mount, &arguments, &environment)))
}

/// Opens an executable on a read-only mount of its own that is mounted nowhere. Executed by this descriptor, the runtime runs
/// as it should from the start.
pub fn open_read_only(path: &Path) -> Result<OwnedFd, Error> {
    let file = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let file = file.map_err(|errno| Error(Cause::Call(sys::Error::new(format!("open({path:?})"), errno))))?;
    read_only_mount(&file).map_err(Error)
}

fn read_only_mount(file: &OwnedFd) -> Result<OwnedFd, Cause> {
    let mount = sys::mount::clone_tree(file, "", false).map_err(Cause::Call)?;
    let attributes = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
    sys::mount::set_attributes(&mount, attributes, false).map_err(Cause::Call)?;
    if is_read_only(&mount)? { Ok(mount) } else { Err(Cause::StillWritable) }
}

fn is_read_only(file: impl AsFd) -> Result<bool, Cause> {
    let stat =
        rustix::fs::fstatvfs(file).map_err(|errno| Cause::Call(sys::Error::new("fstatvfs()", errno)))?;
    Ok(stat.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn strings(list: impl Iterator<Item = Vec<u8>>) -> Result<Vec<CString>, Cause> {
    list.map(|bytes| CString::new(bytes).map_err(|error| Cause::Arguments(error.into()))).collect()
}
