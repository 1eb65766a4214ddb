//! Work inside another network namespace.
//!
//! A namespace belongs to a thread. So a short-lived thread moves into it, does
//! the little that must be done there (opens sockets, writes sysctls), and ends;
//! the caller's thread never changes its namespace.

use std::io;
use std::os::fd::BorrowedFd;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Enough for a few system calls; the default would map 2 MiB.
const STACK: usize = 128 * 1024;

/// Why a namespace could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No thread could be started.
    #[error("start a thread")]
    Thread(#[source] io::Error),
    /// The descriptor is no network namespace, or entering it is not permitted.
    #[error("setns")]
    Enter(#[source] io::Error),
    /// The work in the namespace panicked.
    #[error("the thread panicked")]
    Panicked,
}

/// Runs `work` on a thread of its own in the network namespace `netns`.
pub(super) fn enter<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".into())
            .stack_size(STACK)
            .spawn_scoped(scope, || {
                move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
                    .map_err(|errno| Error::Enter(errno.into()))?;
                Ok(work())
            })
            .map_err(Error::Thread)?;
        thread.join().map_err(|_| Error::Panicked)?
    })
}
