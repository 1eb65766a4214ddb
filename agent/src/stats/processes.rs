//! How many processes a container has and what they hold open, as /proc tells.
//!
//! Telling sockets from files takes a system call a descriptor. So a count that took long is good for long: all
//! counting of one container takes at most a hundredth of the time.

use std::{
    collections::HashMap,
    fs,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::fs::{CWD, Dir, Mode, OFlags, openat, readlinkat};
use sampan_runtime::cgroup::Cgroup;

/// One second of counting in this many.
const SHARE: u32 = 100;

/// What a container's processes hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Processes {
    /// Processes, threads not counted.
    pub(crate) count: u64,
    /// Open descriptors.
    pub(crate) descriptors: u64,
    /// Those of them that are sockets.
    pub(crate) sockets: u64,
    /// The first process's soft limit of open files; `None` when it has none.
    pub(crate) open_files_limit: Option<u64>,
}

/// Counts by cgroup, as long as they are good.
#[derive(Debug, Default)]
pub(super) struct Counts {
    known: Mutex<HashMap<String, Counted>>,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    processes: Processes,
    until: Instant,
}

impl Counts {
    /// Of the processes in a cgroup; `first` is the container's own.
    pub(super) fn get(&self, cgroup: &str, first: Option<i32>) -> Processes {
        let start = Instant::now();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(cgroup).copied();
        if let Some(known) = known.filter(|known| known.until > start) {
            return known.processes;
        }
        let pids = Cgroup::new(cgroup).and_then(|cgroup| cgroup.pids()).unwrap_or_default();
        let processes = count(&pids, first);
        let counted = Counted { processes, until: Instant::now() + start.elapsed() * SHARE };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(cgroup.to_owned(), counted);
        processes
    }

    /// Forgets what is no longer good.
    pub(super) fn expire(&self) {
        let now = Instant::now();
        let grace = Duration::from_secs(1);
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, known| known.until + grace > now);
    }
}

/// Processes that end meanwhile count as processes without descriptors.
fn count(pids: &[i32], first: Option<i32>) -> Processes {
    let mut processes = Processes { count: pids.len() as u64, ..Processes::default() };
    for pid in pids {
        let (descriptors, sockets) = descriptors(*pid).unwrap_or_default();
        processes.descriptors += descriptors;
        processes.sockets += sockets;
    }
    processes.open_files_limit = first.and_then(open_files_limit);
    processes
}

fn descriptors(pid: i32) -> rustix::io::Result<(u64, u64)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder: OwnedFd = openat(CWD, format!("/proc/{pid}/fd"), flags, Mode::empty())?;
    let (mut all, mut sockets, mut buffer) = (0, 0, Vec::new());
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        if entry.file_name().to_bytes().starts_with(b".") {
            continue;
        }
        all += 1;
        buffer.clear();
        match readlinkat(&folder, entry.file_name(), buffer) {
            Ok(link) => {
                sockets += u64::from(link.to_bytes().starts_with(b"socket:"));
                buffer = link.into_bytes();
            }
            // Closed meanwhile.
            Err(_) => buffer = Vec::new(),
        }
    }
    Ok((all, sockets))
}

fn open_files_limit(pid: i32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn sockets_and_files_are_told_apart() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = count(&[own], Some(own));
        let _pair = UnixStream::pair().unwrap();
        let _file = fs::File::open("/proc/self/status").unwrap();
        let after = count(&[own], Some(own));
        // Other tests of this process open and close too.
        assert!(after.count == 1 && after.descriptors > after.sockets, "{before:?} {after:?}");
        assert!(after.sockets >= 2, "{after:?}");
        assert!(after.open_files_limit.is_some_and(|limit| limit >= 64), "{after:?}");
    }

    #[test]
    fn processes_that_are_gone_hold_nothing() {
        let gone = count(&[i32::MAX], Some(i32::MAX));
        assert_eq!(gone, Processes { count: 1, ..Processes::default() });
    }
}
