//! Control groups: what a container may use and has used, and which processes it consists of.
//!
//! A `Cgroup` is a path below the roots of all hierarchies, the same in each. It is a name and not a guard:
//! dropping one removes nothing. Version 1 (controllers mounted together or alone), hybrid and version 2 look the
//! same from outside. In a hybrid layout the controllers' hierarchies count; the unified one has the same paths, as packet
//! filters and systemd tell processes apart by it.
//!
//! Two drivers: a path (`/sampan/pod/container`) is made here, a scope (`slice:prefix:name`) is made by systemd. Whatever
//! lies below a scope (`slice:prefix:name/exec-1`) is made here again.

mod details;
mod devices;
mod directory;
mod error;
#[cfg(test)]
mod fake;
mod hierarchy;
mod journal;
mod meter;
mod oom;
mod stats;
mod systemd;
mod tree;
mod v1;
mod v2;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub use details::{Counter, Details, DeviceIo, Pressure, RdmaStats, Stall, Stalls};
pub use error::Error;
pub use hierarchy::Layout;
pub use meter::{Meter, Reading};
pub use oom::OomEvents;
pub use stats::{CpuStats, IoStats, MemoryStats, PidsStats, Stats};
pub use systemd::BusError;

use directory::Directory;
use hierarchy::Hierarchies;
use journal::Journal;
use stats::Readers;
use systemd::Unit;

/// For the tasks of a cgroup to stop, before they are killed where they stand.
const HOLD: Duration = Duration::from_millis(200);

/// Whether a path is the name of a scope, which only systemd makes.
pub(crate) fn names_scope(path: &str) -> bool {
    Unit::parse(path).is_some_and(|unit| unit.is_ok())
}

/// Whether systemd, which makes scopes, is the first process of this machine, as sd_booted(3) tells.
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// How this host arranges its cgroups.
pub fn layout() -> Result<Layout, Error> {
    Ok(Hierarchies::of_host()?.layout())
}

/// Where the hierarchies are mounted.
pub(crate) fn roots() -> Result<Vec<PathBuf>, Error> {
    let hierarchies = Hierarchies::of_host()?;
    let unified = hierarchies.unified.iter();
    Ok(hierarchies.v1.iter().map(|hierarchy| &hierarchy.root).chain(unified).cloned().collect())
}

/// Moves the calling process, which must be single-threaded, into the cgroup of one directory.
pub(crate) fn enter_directory(path: &Path) -> Result<(), Error> {
    let directory = Directory::open(path)?;
    // See `Cgroup::enter`; version 2 has no such file.
    let file = if directory.has("tasks") { "tasks" } else { "cgroup.procs" };
    directory.write(file, "0")
}

/// A cgroup by its path below the hierarchies' roots.
pub struct Cgroup {
    hierarchies: Arc<Hierarchies>,
    /// Without a leading slash.
    path: String,
    /// A sub-cgroup of a container that only groups processes.
    exec: bool,
    /// The scope, when systemd manages the cgroup.
    unit: Option<Unit>,
    readers: OnceLock<Readers>,
}

impl std::fmt::Debug for Cgroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cgroup").field("path", &self.path).field("exec", &self.exec).finish_non_exhaustive()
    }
}

impl Cgroup {
    /// The cgroup at `path`, with or without a leading slash, or a scope of systemd, `slice:prefix:name`, which has none.
    /// Nothing is made yet.
    ///
    /// A path that looks like a scope (two colons before the first slash) is told apart by a leading slash.
    pub fn new(path: &str) -> Result<Cgroup, Error> {
        Cgroup::within(Hierarchies::of_host()?, path, false)
    }

    /// A cgroup at `path` that groups the processes of one exec and has its parent's limits.
    ///
    /// On version 1 it exists in one hierarchy only (`freezer` where there is one) and entering it enters the parent,
    /// which is the container's own cgroup, in the others.
    pub fn new_exec(path: &str) -> Result<Cgroup, Error> {
        Cgroup::within(Hierarchies::of_host()?, path, true)
    }

    fn within(hierarchies: Arc<Hierarchies>, path: &str, exec: bool) -> Result<Cgroup, Error> {
        let invalid = || Error::Path { path: path.to_owned() };
        let (first, below) = path.split_once('/').map_or((path, None), |(first, below)| (first, Some(below)));
        let mut unit = Unit::parse(first).transpose()?;
        let relative = match (&unit, below) {
            (Some(unit), None) => unit.path(&systemd::root()?),
            (Some(unit), Some(below)) => format!("{}/{below}", unit.path(&systemd::root()?)),
            (None, _) => path.strip_prefix('/').unwrap_or(path).to_owned(),
        };
        if below.is_some() {
            unit = None;
        }
        let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\0', '\n']);
        if !relative.split('/').all(plain) {
            return Err(invalid());
        }
        Ok(Cgroup { hierarchies, path: relative, exec, unit, readers: OnceLock::new() })
    }

    /// Whether systemd makes this cgroup. Then nobody can be born in it: its first process has it made for itself.
    pub fn is_scope(&self) -> bool {
        self.unit.is_some()
    }

    /// The path below the roots, without a leading slash.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Makes the cgroup and whatever is missing above it. One that exists already is fine.
    ///
    /// A scope begins with the calling process in it; one that exists already is an error unless the process is in it.
    pub fn create(&self) -> Result<(), Error> {
        if let Some(unit) = &self.unit {
            let (pid, own) = (systemd::own_pid()?, std::process::id() as i32);
            match unit.start(pid) {
                // Lists show pids as this process sees them, and systemd sees others.
                Err(Error::Systemd { .. }) if self.holds(own) => {}
                result => result?,
            }
        }
        if let Some(root) = self.unified() {
            return self.create_v2(root);
        }
        for hierarchy in &self.hierarchies.v1 {
            if self.exec && self.hierarchies.of_processes() != Some(hierarchy) {
                continue;
            }
            tree::make(&hierarchy.root.join(&self.path))?;
            if hierarchy.has("cpuset") {
                v1::cpuset::inherit(&hierarchy.root, Path::new(&self.path))?;
            }
        }
        self.create_in_hybrid()
    }

    /// The part of `create` that a process has to be born in, as moving into it would wait for a grace period: on version 2
    /// it is the whole of it, in a hybrid layout that of the unified hierarchy.
    pub(crate) fn create_birthplace(&self) -> Result<(), Error> {
        if self.unified().is_some() { self.create() } else { self.create_in_hybrid() }
    }

    fn create_in_hybrid(&self) -> Result<(), Error> {
        match self.in_hybrid().filter(|_| !self.exec) {
            Some(path) => tree::make(&path),
            None => Ok(()),
        }
    }

    /// Where its processes are in the unified hierarchy of a hybrid layout: those of an exec are the container's.
    fn in_hybrid(&self) -> Option<PathBuf> {
        let root = self.hierarchies.unified.as_deref()?;
        let path = Path::new(&self.path);
        let own = if self.exec { path.parent().unwrap_or(path) } else { path };
        (self.hierarchies.layout() == Layout::Hybrid).then(|| root.join(own))
    }

    /// Whether a process is in the cgroup in any hierarchy: systemd doesn't know them all.
    fn holds(&self, pid: i32) -> bool {
        self.own_paths().iter().any(|path| {
            let mut found = false;
            tree::each_process(path, &mut |other| found |= other == pid).is_ok() && found
        })
    }

    fn create_v2(&self, root: &Path) -> Result<(), Error> {
        if !self.exec {
            // Outermost first: a level can hand down only what it was given.
            for (end, _) in self.path.match_indices('/') {
                tree::make(&root.join(&self.path[..end]))?;
            }
            v2::delegate(root)?;
            for (end, _) in self.path.match_indices('/') {
                v2::delegate(&root.join(&self.path[..end]))?;
            }
        }
        tree::make(&root.join(&self.path))
    }

    /// Sets the limits of a new cgroup that `resources` names; the others stay as they are.
    ///
    /// Devices are denied but for those that are named and those that every container has, also when none are named.
    pub fn apply(&self, resources: &LinuxResources) -> Result<(), Error> {
        if let Some(unit) = &self.unit {
            unit.set(resources, self.hierarchies.layout(), true)?;
        }
        self.set_limits(resources, None)?;
        let named = resources.devices().as_deref();
        match self.set_devices(named.unwrap_or_default()) {
            // A host without any means to filter devices runs containers that don't ask for it.
            Err(Error::Unavailable { .. }) if named.is_none() => Ok(()),
            result => result,
        }
    }

    /// Changes the limits that `resources` names, all of them or none: what was changed before a failure is changed back.
    ///
    /// Device rules replace the old ones when there are any; with none, the old ones stay.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), Error> {
        let journal = Journal::default();
        let changed = self.set_limits(resources, Some(&journal)).and_then(|()| {
            if let Some(unit) = &self.unit {
                // systemd writes what it is told, rounded: the exact values are written once more.
                unit.set(resources, self.hierarchies.layout(), false)?;
                self.set_limits(resources, Some(&journal))?;
            }
            match resources.devices() {
                Some(rules) if !rules.is_empty() => self.set_devices(rules),
                _ => Ok(()),
            }
        });
        let Err(failure) = changed else { return Ok(()) };
        match journal.undo() {
            Ok(()) => Err(failure),
            Err(undo) => Err(Error::Undo { failure: Box::new(failure), source: Box::new(undo) }),
        }
    }

    /// Fails when huge pages are limited of a size that this host can't limit, which the limits above pass over.
    pub fn require_huge_pages(&self, resources: &LinuxResources) -> Result<(), Error> {
        let Some(limits) = resources.hugepage_limits().as_deref().filter(|limits| !limits.is_empty()) else {
            return Ok(());
        };
        let (directory, file) = match self.unified() {
            Some(root) => (Some(Directory::open(&root.join(&self.path))?), "max"),
            None => (self.place().find("hugetlb")?, "limit_in_bytes"),
        };
        let has = |size: &str| {
            let name = format!("hugetlb.{size}.{file}");
            directory.as_ref().is_some_and(|directory| directory.has(&name))
        };
        match limits.iter().all(|limit| has(limit.page_size())) {
            true => Ok(()),
            false => Err(Error::Unavailable { controller: "hugetlb", limit: "hugepageLimits" }),
        }
    }

    fn set_limits(&self, resources: &LinuxResources, journal: Option<&Journal>) -> Result<(), Error> {
        match self.unified() {
            Some(root) => v2::apply(&root.join(&self.path), resources, journal),
            None => self.place().apply(resources, journal),
        }
    }

    fn set_devices(&self, specified: &[LinuxDeviceCgroup]) -> Result<(), Error> {
        let rules = devices::rules(specified)?;
        match self.unified() {
            Some(root) => v2::devices::apply(&Directory::open(&root.join(&self.path))?, &rules),
            None => self.place().apply_devices(&rules),
        }
    }

    /// Moves the calling process, which must be single-threaded, into the cgroup; in a hybrid layout not in the unified
    /// hierarchy, in which it is born, unless it is a scope's.
    ///
    /// Version 1 is asked through `tasks`, which costs microseconds where `cgroup.procs` waits for a grace period.
    pub fn enter(&self) -> Result<(), Error> {
        if let Some(root) = self.unified() {
            // A scope has its first process already, and asking again would wait for a grace period.
            return match self.unit {
                Some(_) => Ok(()),
                None => Directory::open(&root.join(&self.path))?.write("cgroup.procs", "0"),
            };
        }
        let parent = Path::new(&self.path).parent().unwrap_or(Path::new(""));
        for hierarchy in &self.hierarchies.v1 {
            let own = !self.exec || self.hierarchies.of_processes() == Some(hierarchy);
            let path = hierarchy.root.join(if own { Path::new(&self.path) } else { parent });
            Directory::open(&path)?.write("tasks", "0")?;
        }
        match (&self.unit, self.in_hybrid()) {
            (Some(_), Some(path)) => Directory::open(&path)?.write("cgroup.procs", "0"),
            _ => Ok(()),
        }
    }

    /// The directory's descriptor for `CLONE_INTO_CGROUP`, which version 1 doesn't have. In a hybrid layout it is that in the
    /// unified hierarchy, if somebody has made it, and the process has to enter the others by itself.
    pub fn directory(&self) -> Result<Option<OwnedFd>, Error> {
        let (path, optional) = match (self.unified(), self.in_hybrid()) {
            (Some(root), _) => (root.join(&self.path), false),
            (None, Some(path)) => (path, true),
            (None, None) => return Ok(None),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(Errno::NOENT) if optional => Ok(None),
            opened => opened.map(Some).map_err(Error::io("open", path)),
        }
    }

    /// What the cgroup has used. The first call opens the files, later ones only read them.
    pub fn stats(&self) -> Result<Stats, Error> {
        if let Some(readers) = self.readers.get() {
            return readers.read();
        }
        let opened = match self.unified() {
            Some(root) => Readers::V2(v2::Readers::open(&Directory::open(&root.join(&self.path))?)?),
            None => Readers::V1(self.place().readers()?),
        };
        self.readers.get_or_init(|| opened).read()
    }

    /// Opens the files of the most asked for figures, for whoever reads them again and again.
    pub fn meter(&self) -> Result<Meter, Error> {
        match self.unified() {
            Some(root) => Meter::v2(&Directory::open(&root.join(&self.path))?),
            None => Meter::v1(&self.place()),
        }
    }

    /// Everything else that the controllers tell, for whoever wants to know more than `stats` has.
    pub fn details(&self) -> Result<Details, Error> {
        match self.unified() {
            Some(root) => details::v2(&Directory::open(&root.join(&self.path))?),
            None => details::v1(&self.place()),
        }
    }

    /// How long the tasks waited for processor, memory and disk. Only version 2 tells; None elsewhere.
    pub fn pressure(&self) -> Result<Option<Pressure>, Error> {
        match self.unified() {
            Some(root) => details::pressure(&Directory::open(&root.join(&self.path))?).map(Some),
            None => Ok(None),
        }
    }

    /// Every process in the cgroup and below it. None when it is gone.
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        let mut pids = Vec::new();
        tree::each_process(&self.processes_path(), &mut |pid| pids.push(pid))?;
        Ok(pids)
    }

    /// Sends `signal` to every process in the cgroup and below it, and tells how many there were.
    pub fn signal(&self, signal: i32) -> Result<usize, Error> {
        let mut count = 0;
        tree::each_process(&self.processes_path(), &mut |pid| {
            // One that has ended meanwhile is as good as signalled.
            let _ = crate::sys::signal::kill(pid, signal);
            count += 1;
        })?;
        Ok(count)
    }

    /// Kills every process in the cgroup and below it, fork bombs included. Doesn't wait for them to end; `remove` does.
    ///
    /// Afterwards nothing can fork here any more: the cgroup is for removing.
    pub fn kill(&self) -> Result<(), Error> {
        if let Some(root) = self.unified() {
            match Directory::open(&root.join(&self.path)).and_then(|d| d.write("cgroup.kill", "1")) {
                Ok(()) => return Ok(()),
                // Linux 5.14 brought the file; before, or without the cgroup, the list is walked.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        // Forks are forbidden only after the first round: a shell whose fork fails would exit before its signal comes,
        // and its exit code would be the wrong one.
        if self.signal(libc::SIGKILL)? == 0 {
            return Ok(());
        }
        // Where forks can't be forbidden the tasks are frozen; a fork under way at that moment shows up in the second round.
        let held = self.stop_forks() || self.freeze_within(true, HOLD).is_ok();
        for _ in 0..if held { 3 } else { 32 } {
            if self.signal(libc::SIGKILL)? == 0 {
                break;
            }
        }
        self.let_die()
    }

    /// Version 1 delivers no signal to frozen tasks, not even this one, until they go on.
    fn let_die(&self) -> Result<(), Error> {
        if self.unified().is_some() {
            return Ok(());
        }
        match self.place().is_frozen() {
            Ok(true) => self.place().freeze(false),
            Ok(false) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn stop_forks(&self) -> bool {
        let path = match self.unified() {
            Some(root) => root.join(&self.path),
            // An exec may have no cgroup there.
            None => match self.hierarchies.with("pids") {
                Some(hierarchy) => hierarchy.root.join(&self.path),
                None => return false,
            },
        };
        Directory::open(&path).and_then(|directory| v1::pids::forbid_forks(&directory)).is_ok()
    }

    /// Moves the processes left in an exec's cgroup to its parent, where they live on.
    ///
    /// They may fork meanwhile, so the cgroup is empty only when `remove` says so.
    pub fn dissolve(&self) -> Result<(), Error> {
        let path = self.processes_path();
        let Some(parent) = path.parent().filter(|_| self.exec) else { return Ok(()) };
        let parent = Directory::open(parent)?;
        tree::each_process(&path, &mut |pid| {
            // One that has ended meanwhile needs no moving.
            let _ = parent.write("cgroup.procs", &pid.to_string());
        })
    }

    /// Whether nobody is left in an exec's cgroup, so that the next exec can have it. Only version 2 knows for certain; on
    /// version 1 the answer is no.
    pub fn is_vacant(&self) -> Result<bool, Error> {
        let Some(root) = self.unified() else { return Ok(false) };
        let events = Directory::open(&root.join(&self.path))?.read("cgroup.events")?;
        Ok(events.lines().any(|line| line == "populated 0"))
    }

    /// Stops every task where it stands, or lets all go on. Takes effect soon after the call.
    pub fn freeze(&self, frozen: bool) -> Result<(), Error> {
        match self.unified() {
            Some(root) => v2::freezer::set(&Directory::open(&root.join(&self.path))?, frozen),
            None => self.place().freeze(frozen),
        }
    }

    /// As `freeze`, but returns when every task has stopped (or may go on). What can't be stopped in time is let go again.
    pub fn freeze_within(&self, frozen: bool, deadline: Duration) -> Result<(), Error> {
        match self.unified() {
            Some(root) => {
                v2::freezer::set_within(&Directory::open(&root.join(&self.path))?, frozen, deadline)
            }
            None => self.place().freeze_within(frozen, deadline),
        }
    }

    /// Whether the cgroup was told to freeze and not yet to thaw.
    pub fn is_frozen(&self) -> Result<bool, Error> {
        match self.unified() {
            Some(root) => v2::freezer::is_frozen(&Directory::open(&root.join(&self.path))?),
            None => self.place().is_frozen(),
        }
    }

    /// Removes the cgroup and those below it, deepest first. Waits up to `deadline` for its processes to end.
    ///
    /// One that is missing counts as removed. A hierarchy that fails doesn't keep the others from being cleaned.
    pub fn remove(&self, deadline: Duration) -> Result<(), Error> {
        let since = Instant::now();
        self.remove_directories(deadline)?;
        // An empty scope ends by itself, but for version 1, where systemd may never hear of it.
        match &self.unit {
            Some(unit) => unit.stop(deadline.saturating_sub(since.elapsed())),
            None => Ok(()),
        }
    }

    /// As `remove`, for who can't wait for systemd's answer: a scope that doesn't end by itself is left to others.
    pub(crate) fn remove_directories(&self, deadline: Duration) -> Result<(), Error> {
        let since = Instant::now();
        let mut result = Ok(());
        for path in self.own_paths() {
            result = result.and(tree::remove(&path, deadline, since));
        }
        if let Some(path) = self.in_hybrid().filter(|_| !self.exec) {
            result = result.and(tree::remove(&path, deadline, since));
        }
        result
    }

    /// How many processes the kernel has killed here for want of memory.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        match self.unified() {
            Some(root) => v2::memory::oom_kills(&Directory::open(&root.join(&self.path))?),
            None => self.place().oom_kills(),
        }
    }

    /// A descriptor that becomes readable when the kernel has killed for want of memory here.
    pub fn oom_events(&self) -> Result<OomEvents, Error> {
        match self.unified() {
            Some(root) => OomEvents::v2(Directory::open(&root.join(&self.path))?),
            None => OomEvents::v1(self.place().need("memory", "OOM events")?),
        }
    }

    /// The cgroup's directory by controller; `unified` on version 2.
    pub fn paths(&self) -> BTreeMap<String, PathBuf> {
        if let Some(root) = self.unified() {
            return BTreeMap::from([("unified".to_owned(), root.join(&self.path))]);
        }
        let of = |hierarchy: &hierarchy::Hierarchy| {
            let path = hierarchy.root.join(&self.path);
            hierarchy.controllers.iter().map(move |name| (name.clone(), path.clone())).collect::<Vec<_>>()
        };
        self.hierarchies.v1.iter().flat_map(of).collect()
    }

    /// The root of the unified hierarchy where it is the one that counts.
    fn unified(&self) -> Option<&Path> {
        self.hierarchies.unified.as_deref().filter(|_| self.hierarchies.layout() == Layout::V2)
    }

    fn place(&self) -> v1::Place<'_> {
        v1::Place { hierarchies: &self.hierarchies, path: &self.path }
    }

    /// Where the list of processes is read.
    fn processes_path(&self) -> PathBuf {
        let of_processes = self.hierarchies.of_processes().map(|hierarchy| hierarchy.root.as_path());
        self.unified().or(of_processes).unwrap_or(Path::new("/")).join(&self.path)
    }

    /// Every directory that `create` makes.
    fn own_paths(&self) -> Vec<PathBuf> {
        match self.unified() {
            Some(root) => vec![root.join(&self.path)],
            None if self.exec => vec![self.processes_path()],
            None => self.hierarchies.v1.iter().map(|hierarchy| hierarchy.root.join(&self.path)).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
