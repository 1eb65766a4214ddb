//! Kills for want of memory, as they happen.
//!
//! Version 1 tells through an eventfd that `cgroup.event_control` connects to `memory.oom_control`; version 2 wakes who
//! polls `memory.events`. (inotify would see that too, but a user has only 128 instances of it.) Both wake for other
//! reasons too (the cgroup's removal, other counters), so the count decides.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFlags};
use rustix::io::Errno;

use super::Error;
use super::directory::{ControlFile, Directory, pairs};

/// Watches a cgroup. Poll its descriptor for what is [`OomEvents::awaited`], then ask [`OomEvents::take`].
#[derive(Debug)]
pub struct OomEvents {
    /// Of version 1, nonblocking.
    eventfd: Option<OwnedFd>,
    counter: ControlFile,
    seen: u64,
}

impl AsFd for OomEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_ref().map_or(self.counter.as_fd(), AsFd::as_fd)
    }
}

impl OomEvents {
    pub(super) fn v1(directory: Directory) -> Result<OomEvents, Error> {
        let counter = directory.open_file("memory.oom_control")?;
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(Error::io("eventfd", directory.path()))?;
        let registration = format!("{} {}", fd.as_raw_fd(), counter.as_fd().as_raw_fd());
        directory.write("cgroup.event_control", &registration)?;
        OomEvents { eventfd: Some(fd), counter, seen: 0 }.starting_now()
    }

    pub(super) fn v2(directory: Directory) -> Result<OomEvents, Error> {
        OomEvents { eventfd: None, counter: directory.open_file("memory.events")?, seen: 0 }.starting_now()
    }

    /// What its descriptor is to be polled for.
    pub fn awaited(&self) -> PollFlags {
        match self.eventfd {
            Some(_) => PollFlags::IN,
            // A control file can always be read; this tells that it says something new since it was.
            None => PollFlags::PRI,
        }
    }

    fn starting_now(mut self) -> Result<OomEvents, Error> {
        self.seen = self.count()?;
        Ok(self)
    }

    /// How many processes were killed since the last call, or since the watch began. Never waits.
    ///
    /// When the cgroup is gone the error says so ([`Error::is_not_found`]).
    pub fn take(&mut self) -> Result<u64, Error> {
        if let Some(eventfd) = &self.eventfd {
            match rustix::io::read(eventfd, &mut [0u8; 8]) {
                Ok(_) | Err(Errno::AGAIN) => {}
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use rustix::event::{PollFd, Timespec, poll};

    use super::*;

    /// No memory is needed for it: of all files of version 2 that tell of changes, this one is in each hierarchy.
    #[test]
    fn a_file_of_version_2_wakes_once_for_each_change() {
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let Some(root) = roots.into_iter().find(|root| root.join("cgroup.controllers").exists()) else {
            return;
        };
        let path = root.join(format!("sampan-events-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let counter = Directory::open(&path).unwrap().open_file("cgroup.events").unwrap();
        let mut events = OomEvents { eventfd: None, counter, seen: 0 }.starting_now().unwrap();
        let wakes = |events: &OomEvents, seconds| {
            let second = Timespec { tv_sec: seconds, tv_nsec: 0 };
            poll(&mut [PollFd::new(events, events.awaited())], Some(&second)).unwrap() == 1
        };
        assert!(!wakes(&events, 0));
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        std::fs::write(path.join("cgroup.procs"), child.id().to_string()).unwrap();
        assert!(wakes(&events, 20));
        assert_eq!(events.take().unwrap(), 0);
        assert!(!wakes(&events, 0));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(wakes(&events, 20));
        std::fs::remove_dir(&path).unwrap();
        assert!(events.take().unwrap_err().is_not_found());
    }
}
