//! Kills for want of memory, as they happen.
//!
//! Version 1 tells through an eventfd that `cgroup.event_control` connects to `memory.oom_control`; version 2 modifies
//! `memory.events`, which inotify sees. Both wake for other reasons too (the cgroup's removal, other counters), so the
//! count decides.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::fs::inotify;
use rustix::io::Errno;

use super::directory::{ControlFile, Directory, pairs};
use super::{Error, Layout};

/// Watches a cgroup. Poll its descriptor for reading, then ask [`OomEvents::take`].
#[derive(Debug)]
pub struct OomEvents {
    /// An eventfd or an inotify instance, nonblocking.
    fd: OwnedFd,
    counter: ControlFile,
    seen: u64,
    version: Layout,
}

impl AsFd for OomEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl OomEvents {
    pub(super) fn v1(directory: Directory) -> Result<OomEvents, Error> {
        let counter = directory.open_file("memory.oom_control")?;
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(Error::io("eventfd", directory.path()))?;
        let registration = format!("{} {}", fd.as_raw_fd(), counter.as_fd().as_raw_fd());
        directory.write("cgroup.event_control", &registration)?;
        OomEvents { fd, counter, seen: 0, version: Layout::V1 }.starting_now()
    }

    pub(super) fn v2(directory: Directory) -> Result<OomEvents, Error> {
        let counter = directory.open_file("memory.events")?;
        let failed = |call| Error::io(call, directory.path());
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let fd = inotify::init(flags).map_err(failed("inotify_init1"))?;
        let path = directory.path().join("memory.events");
        inotify::add_watch(&fd, &path, inotify::WatchFlags::MODIFY).map_err(failed("inotify_add_watch"))?;
        OomEvents { fd, counter, seen: 0, version: Layout::V2 }.starting_now()
    }

    fn starting_now(mut self) -> Result<OomEvents, Error> {
        self.seen = self.count()?;
        Ok(self)
    }

    /// How many processes were killed since the last call, or since the watch began. Never waits.
    ///
    /// When the cgroup is gone the error says so ([`Error::is_not_found`]).
    pub fn take(&mut self) -> Result<u64, Error> {
        let mut buffer = [0u8; 1024];
        loop {
            match rustix::io::read(&self.fd, &mut buffer) {
                // An eventfd is empty after one reading; inotify may have more.
                Ok(count) if count > 0 && self.version == Layout::V2 => {}
                Ok(_) | Err(Errno::AGAIN) => break,
                Err(errno) => return Err(Error::io("read", self.counter.path())(errno)),
            }
        }
        let count = self.count()?;
        let new = count.saturating_sub(self.seen);
        self.seen = count;
        Ok(new)
    }

    fn count(&self) -> Result<u64, Error> {
        let mut buffer = Vec::new();
        let text = self.counter.read(&mut buffer)?;
        Ok(pairs(text).find(|(name, _)| *name == b"oom_kill").map_or(0, |(_, count)| count))
    }
}
