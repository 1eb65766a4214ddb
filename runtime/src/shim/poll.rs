//! What the shim waits for: an epoll instance whose events name their source.
//!
//! Sources are named by numbers that are never used again, so an event that arrives for something that an earlier
//! event of the same batch has closed finds nothing and does nothing.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

pub(super) use rustix::event::epoll::EventFlags;

/// Where an event comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Listener,
    Signals,
    Connection(u32),
    /// The channel to a container's process that has not executed its program yet.
    Container(u32),
    /// The same of an exec's.
    Exec(u32),
    Stdout(u32),
    Stderr(u32),
    /// What wakes when a container is short of memory.
    Memory(u32),
}

impl Source {
    fn encode(self) -> u64 {
        let (kind, number) = match self {
            Source::Listener => (0, 0),
            Source::Signals => (1, 0),
            Source::Connection(number) => (2, number),
            Source::Container(number) => (3, number),
            Source::Exec(number) => (4, number),
            Source::Stdout(number) => (5, number),
            Source::Stderr(number) => (6, number),
            Source::Memory(number) => (7, number),
        };
        kind << 32 | u64::from(number)
    }

    fn decode(value: u64) -> Option<Source> {
        let number = value as u32;
        Some(match value >> 32 {
            0 => Source::Listener,
            1 => Source::Signals,
            2 => Source::Connection(number),
            3 => Source::Container(number),
            4 => Source::Exec(number),
            5 => Source::Stdout(number),
            6 => Source::Stderr(number),
            7 => Source::Memory(number),
            _ => return None,
        })
    }
}

/// The set of sources. A descriptor leaves it by being closed, if it has no duplicates.
pub(super) struct Poll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    pub(super) fn new() -> rustix::io::Result<Poll> {
        Ok(Poll { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::with_capacity(16) })
    }

    pub(super) fn add(&self, source: Source, fd: impl AsFd, flags: EventFlags) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(source.encode()), flags)
    }

    pub(super) fn change(&self, source: Source, fd: impl AsFd, flags: EventFlags) -> rustix::io::Result<()> {
        epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(source.encode()), flags)
    }

    /// Takes out what others hold too: it would go on telling of what nobody here knows any more.
    pub(super) fn remove(&self, fd: impl AsFd) -> rustix::io::Result<()> {
        epoll::delete(&self.epoll, fd)
    }

    /// Waits for up to `milliseconds` and returns how many events there are.
    pub(super) fn wait(&mut self, milliseconds: u64) -> rustix::io::Result<usize> {
        self.events.clear();
        let timeout = Timespec {
            tv_sec: (milliseconds / 1000) as i64,
            tv_nsec: (milliseconds % 1000 * 1_000_000) as i64,
        };
        interrupted(epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events),
            Some(&timeout),
        ))
    }

    /// Waits as long as it takes, holding as little memory as can be.
    pub(super) fn sleep(&mut self) -> rustix::io::Result<usize> {
        self.events.clear();
        interrupted(crate::sys::memory::sleep(&self.epoll, &mut self.events))
    }

    /// An event of the last wait.
    pub(super) fn event(&self, index: usize) -> Option<(Source, EventFlags)> {
        let event = self.events.get(index)?;
        Some((Source::decode(event.data.u64())?, event.flags))
    }
}

fn interrupted(result: rustix::io::Result<usize>) -> rustix::io::Result<usize> {
    match result {
        Err(Errno::INTR) => Ok(0),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_name_their_source() {
        let mut poll = Poll::new().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        poll.add(Source::Stderr(u32::MAX), &reader, EventFlags::IN).unwrap();
        assert_eq!(poll.wait(0).unwrap(), 0);
        rustix::io::write(&writer, b"x").unwrap();
        assert_eq!(poll.sleep().unwrap(), 1);
        assert_eq!(poll.event(0), Some((Source::Stderr(u32::MAX), EventFlags::IN)));
        drop(reader);
        assert_eq!(poll.wait(0).unwrap(), 0, "closing is leaving");
    }
}
