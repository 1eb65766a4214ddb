//! `kill`: signals by name or number.

use super::record::{Folder, Record, Status};
use super::{Context, Error, Result, arguments};
use crate::sys;

pub(super) fn kill(context: &Context, arguments: &arguments::Kill) -> Result<()> {
    let signal = number(&arguments.signal)
        .ok_or_else(|| Error::refused(format!("unknown signal {:?}", arguments.signal)))?;
    let record = Folder::open(context, &arguments.id)?.read()?;
    let status = record.status();
    if status == Status::Stopped {
        // Processes of a container without a pid namespace of its own may have outlived its first.
        if !record.own_pid_namespace && (arguments.all || signal == libc::SIGKILL) {
            let left = record.cgroup()?.pids().map_err(Error::cgroup(&record.cgroup))?;
            if arguments.all || !left.is_empty() {
                return signal_all(&record, signal);
            }
        }
        if arguments.all {
            return Ok(());
        }
        return Err(Error::NotRunning { id: record.id, status: status.name() });
    }
    if arguments.all || signal == libc::SIGKILL && !record.own_pid_namespace {
        return signal_all(&record, signal);
    }
    let pidfd = sys::process::pidfd_open(record.pid).map_err(Error::call("no such process"))?;
    if record.status() == Status::Stopped {
        return Err(Error::NotRunning { id: record.id, status: Status::Stopped.name() });
    }
    sys::signal::pidfd_send_signal(&pidfd, signal)
        .map_err(|source| Error::io(format!("send signal {signal} to the container"), source))?;
    // It can't die of it as long as it is frozen on version 1.
    if signal == libc::SIGKILL && status == Status::Paused {
        let cgroup = record.cgroup()?;
        cgroup.freeze(false).map_err(Error::cgroup(&record.cgroup))?;
    }
    Ok(())
}

fn signal_all(record: &Record, signal: i32) -> Result<()> {
    let cgroup = record.cgroup()?;
    cgroup.signal(signal).map(drop).map_err(Error::cgroup(&record.cgroup))
}

/// `9`, `KILL`, `sigkill`, `RTMIN+3`.
fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (0..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(above) = name.strip_prefix("RTMIN") {
        let above = above.strip_prefix('+').map_or(Some(0), |above| above.parse().ok());
        return above
            .filter(|_| name != "RTMIN+")
            .map(|above: i32| 34 + above)
            .filter(|n| (34..=64).contains(n));
    }
    if let Some(below) = name.strip_prefix("RTMAX") {
        let below = below.strip_prefix('-').map_or(Some(0), |below| below.parse().ok());
        return below.map(|below: i32| 64 - below).filter(|n| (34..=64).contains(n));
    }
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

const NAMES: [(&str, i32); 35] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
    ("UNUSED", libc::SIGSYS),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, expected) in [
            ("9", Some(9)),
            ("KILL", Some(9)),
            ("sigterm", Some(15)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX", Some(64)),
            ("0", Some(0)),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
        for text in ["", "SIG", "65", "-1", "RTMIN+99", "RTMIN+", "NOPE"] {
            assert_eq!(number(text), None, "{text}");
        }
    }
}
