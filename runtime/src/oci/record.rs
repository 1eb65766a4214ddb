//! A container's folder below the root: its record, its configuration, the socket for its start.
//!
//! ```text
//!  mkdir ─▶ creating ──▶ created ──start──▶ running ◀──▶ paused
//!                           └──────────────────┴── process gone ──▶ stopped ──delete──▶ rmdir
//! ```
//!
//! The record is written whole. Whether the process still lives is asked of the kernel, with the time of its start,
//! since pids are used again. Verbs that change a container hold a lock on the folder; those that look don't.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::runtime::{Spec, State, StateBuilder};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::{Context, Error, OCI_VERSION, Result};
use crate::cgroup::Cgroup;
use crate::sys::process::Stat;

/// A verb that takes longer than this isn't waited for by another.
const LOCK_DEADLINE: Duration = Duration::from_secs(30);

const RECORD: &str = "state.json";
const CONFIGURATION: &str = "config.json";
/// Where the start comes in.
pub(super) const START: &str = "start.sock";

/// What is remembered of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) oci_version: String,
    pub(super) id: String,
    pub(super) pid: i32,
    /// In clock ticks since the machine's boot.
    pub(super) started: u64,
    pub(super) phase: Phase,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    /// RFC 3339.
    pub(super) created: String,
    pub(super) cgroup: String,
    /// Whether the kernel ends the container's other processes with its first.
    pub(super) own_pid_namespace: bool,
    pub(super) own_user_namespace: bool,
    /// How many mounts there were at its root before its own, if it has no mount namespace for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mounts_before: Option<usize>,
    /// Whether its processes have a session keyring of their own.
    #[serde(default)]
    pub(super) keyring: bool,
    #[serde(default, skip_serializing_if = "HashMap::is_empty")]
    pub(super) annotations: HashMap<String, String>,
}

/// How far it has come, as long as its process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    Creating,
    Created,
    Running,
}

/// The state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

impl Record {
    pub(super) fn status(&self) -> Status {
        if start_time(self.pid).is_none_or(|started| started != self.started) {
            return Status::Stopped;
        }
        match self.phase {
            Phase::Creating => Status::Creating,
            Phase::Created => Status::Created,
            Phase::Running if self.is_frozen() => Status::Paused,
            Phase::Running => Status::Running,
        }
    }

    pub(super) fn cgroup(&self) -> Result<Cgroup> {
        Cgroup::new(&self.cgroup).map_err(Error::cgroup(&self.cgroup))
    }

    pub(super) fn is_frozen(&self) -> bool {
        let Ok(cgroup) = self.cgroup() else { return false };
        let paths = cgroup.paths();
        let read = |controller: &str, file: &str| {
            paths.get(controller).and_then(|path| fs::read_to_string(path.join(file)).ok())
        };
        match read("freezer", "freezer.state") {
            Some(state) => state.trim() != "THAWED",
            None => read("unified", "cgroup.freeze").is_some_and(|state| state.trim() == "1"),
        }
    }

    /// What hooks get, and the beginning of what `state` prints.
    pub(super) fn state(&self) -> Result<State> {
        let state = StateBuilder::default().version(OCI_VERSION).id(&self.id).bundle(&self.bundle);
        let state = state.annotations(self.annotations.clone()).build();
        state.map_err(|error| Error::refused(format!("the state can't be told: {error}")))
    }
}

/// When a process was started, in clock ticks since boot; None when there is none, or nothing but its remains.
pub(super) fn start_time(pid: i32) -> Option<u64> {
    let stat = Stat::of(pid).ok()?;
    if matches!(stat.field(3)?, "Z" | "X" | "x") {
        return None;
    }
    stat.field(22)?.parse().ok()
}

/// A container's folder.
pub(super) struct Folder {
    pub(super) path: PathBuf,
    directory: OwnedFd,
    /// The record that this process wrote last.
    written: RefCell<Vec<u8>>,
}

impl Folder {
    /// Makes the folder of a new container, locked.
    pub(super) fn make(context: &Context, id: &str) -> Result<Folder> {
        check_id(id)?;
        let failed = |path: &Path, source| Error::io(format!("make {}", path.display()), source);
        let make = |path: &Path, recursive| {
            use std::os::unix::fs::DirBuilderExt;
            fs::DirBuilder::new().mode(0o700).recursive(recursive).create(path)
        };
        let path = context.root.join(id);
        let made = match make(&path, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(&context.root, true).map_err(|source| failed(&context.root, source))?;
                make(&path, false)
            }
            made => made,
        };
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::Exists { id: id.to_owned() })
            }
            Err(source) => Err(failed(&path, source)),
            Ok(()) => {
                let folder = Folder::open(context, id)?;
                folder.lock()?;
                Ok(folder)
            }
        }
    }

    /// The folder of a container that exists.
    pub(super) fn open(context: &Context, id: &str) -> Result<Folder> {
        check_id(id)?;
        let path = std::path::absolute(context.root.join(id))
            .map_err(|source| Error::io("find the root folder", source))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(directory) => Ok(Folder { path, directory, written: RefCell::default() }),
            Err(rustix::io::Errno::NOENT) => Err(Error::Missing { id: id.to_owned() }),
            Err(errno) => Err(Error::errno(format!("open {}", path.display()), errno)),
        }
    }

    /// Keeps other verbs from changing the container, until this value goes.
    pub(super) fn lock(&self) -> Result<()> {
        let since = Instant::now();
        loop {
            match rustix::fs::flock(&self.directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) if since.elapsed() < LOCK_DEADLINE => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(errno) => {
                    return Err(Error::errno(format!("lock {}", self.path.display()), errno));
                }
            }
        }
    }

    pub(super) fn read(&self) -> Result<Record> {
        let path = self.path.join(RECORD);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|source| Error::Json { path: path.display().to_string(), source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let id = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                Err(Error::Missing { id })
            }
            Err(source) => Err(Error::io(format!("read {}", path.display()), source)),
        }
    }

    pub(super) fn write(&self, record: &Record) -> Result<()> {
        let text =
            serde_json::to_vec(record).map_err(|source| Error::Json { path: RECORD.to_owned(), source })?;
        // On a disk, one file in place of another is flushed.
        if *self.written.borrow() != text {
            super::write_whole(&self.path.join(RECORD), &text)?;
            self.written.replace(text);
        }
        Ok(())
    }

    /// The configuration as it was when the container was made.
    pub(super) fn configuration(&self) -> Result<Spec> {
        let path = self.path.join(CONFIGURATION);
        let text = fs::read(&path).map_err(|source| Error::io(format!("read {}", path.display()), source))?;
        serde_json::from_slice(&text)
            .map_err(|source| Error::Json { path: path.display().to_string(), source })
    }

    pub(super) fn keep_configuration(&self, text: &[u8]) -> Result<()> {
        let path = self.path.join(CONFIGURATION);
        fs::write(&path, text).map_err(|source| Error::io(format!("write {}", path.display()), source))
    }

    pub(super) fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(|source| Error::io(format!("remove {}", self.path.display()), source)),
        }
    }
}

/// Names that are names of files, and nothing else.
fn check_id(id: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if id.is_empty() || id.len() > 255 || matches!(id, "." | "..") || !id.bytes().all(plain) {
        return Err(Error::refused(format!("invalid container ID {id:?}")));
    }
    Ok(())
}

/// Every container below the root. A root that doesn't exist has none.
pub(super) fn all(context: &Context) -> Result<Vec<Record>> {
    let entries = match fs::read_dir(&context.root) {
        Ok(entries) => entries,
        // One that was named is expected to be there.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !context.root_was_named => {
            return Ok(Vec::new());
        }
        Err(source) => return Err(Error::io(format!("read {}", context.root.display()), source)),
    };
    let mut records = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if check_id(&name).is_err() || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        match Folder::open(context, &name).and_then(|folder| folder.read()) {
            Ok(record) => records.push(record),
            // Being made, or removed meanwhile.
            Err(Error::Missing { .. }) => {}
            Err(error) => context.log.warn(&super::error::text(&error)),
        }
    }
    records.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names_and_no_paths() {
        for id in ["a", "A-b_c.d+e", "0"] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "a/b", "a b", "ä", "a\n", "@x"] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn the_start_of_a_process_is_known_while_it_lives() {
        assert!(start_time(std::process::id() as i32).is_some_and(|time| time > 0));
        assert_eq!(start_time(i32::MAX), None);
    }
}
