//! The descriptors a program starts with.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::Receiver;

/// Standard input, which is never closed here.
pub(crate) fn stdin() -> BorrowedFd<'static> {
    // SAFETY: 0 is open for the whole life of the process: Rust's start-up code opens it if it has to.
    unsafe { BorrowedFd::borrow_raw(0) }
}

/// Standard error, which is never closed here.
pub(crate) fn stderr() -> BorrowedFd<'static> {
    // SAFETY: as for 0.
    unsafe { BorrowedFd::borrow_raw(2) }
}

/// Starts a thread with a table of descriptors of its own: at first it has the standard ones and no more. It prepares,
/// which may fail, and works. It has no more of the process than an argument and the messages that it receives, none of
/// which may have descriptors in them. Linux 5.9.
pub(crate) fn thread_apart<A: Send + 'static, T: 'static, M: Send + 'static>(
    name: &str,
    argument: A,
    prepare: fn(A) -> io::Result<T>,
    messages: Receiver<M>,
    work: fn(T, Receiver<M>),
) -> io::Result<()> {
    let (settled, is_settled) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let unshare = libc::CLOSE_RANGE_UNSHARE;
        // SAFETY: closes nothing that anybody uses: the table becomes the thread's own first, and what the thread uses
        // is yet to be opened.
        let apart = match unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, unshare) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        // Whoever has asked for the thread waits for this.
        match apart.and_then(|()| prepare(argument)) {
            Err(error) => drop(settled.send(Err(error))),
            Ok(prepared) => {
                drop(settled.send(Ok(())));
                work(prepared, messages);
            }
        }
    })?;
    is_settled.recv().map_err(io::Error::other)?
}

/// Closes everything that a careless parent left open above the standard descriptors.
///
/// For the first moments of a program: nothing that it has opened itself survives.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: the caller has no descriptor of its own yet, so none is owned by anything.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
