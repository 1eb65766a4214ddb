//! The systemd driver: a container's cgroup as a transient scope that systemd makes and knows.
//!
//! ```text
//!  slice:prefix:name                     what the container's specification says
//!    └▶ prefix-name.scope in slice       the unit
//!         └▶ a.slice/a-b.slice/prefix-name.scope    the cgroup, in every hierarchy
//! ```
//!
//! The scope is delegated: below it systemd touches nothing, and limits that it has no word for are written beside its
//! back. The others are told to it as well, or it would undo them at its next opportunity. A scope begins with a
//! process in it, so the container's first process has its own made, and it ends by itself when it is empty.

mod bus;
mod properties;
mod wire;

use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::LinuxResources;

use super::{Error, Layout};
use bus::Bus;
use wire::{Value, Writer};

pub use bus::BusError;

/// For systemd to answer, and to finish the job of starting a scope. It has nothing to execute for that.
const DEADLINE: Duration = Duration::from_secs(30);

/// The slice of those that name none, as systemd itself has it for services.
const DEFAULT_SLICE: &str = "system.slice";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    slice: String,
    name: String,
}

impl Unit {
    /// Splits `slice:prefix:name`; None when `text` is a path instead.
    pub(super) fn parse(text: &str) -> Option<Result<Unit, Error>> {
        let parts: Vec<&str> = text.split(':').collect();
        let [slice, prefix, name] = parts[..] else { return None };
        if text.contains('/') {
            return None;
        }
        let invalid = |reason: &str| {
            Some(Err(Error::Invalid { limit: "cgroupsPath", reason: format!("{text:?}: {reason}") }))
        };
        if name.is_empty() {
            return invalid("the part after the second colon, which names the scope, is empty");
        }
        if name.ends_with(".slice") {
            return invalid("a slice holds scopes and no processes");
        }
        let plain =
            |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-\\@".contains(&byte));
        if !plain(slice) || !plain(prefix) || !plain(name) {
            return invalid("systemd allows letters, digits and _.-\\@ in the name of a unit");
        }
        let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
        if expand(slice).is_none() {
            return invalid(
                "the part before the first colon is not the name of a slice, such as system.slice",
            );
        }
        let name = match prefix {
            "" => format!("{name}.scope"),
            prefix => format!("{prefix}-{name}.scope"),
        };
        Some(Ok(Unit { slice: slice.to_owned(), name }))
    }

    /// The cgroup's path below the hierarchies' roots, without a leading slash. `root` is where systemd's own tree begins.
    pub(super) fn path(&self, root: &str) -> String {
        let levels = expand(&self.slice).unwrap_or_default();
        let parts = [root, levels.as_str(), self.name.as_str()];
        parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("/")
    }

    /// Has systemd make the scope, with the process `pid` in it. One of that name that failed and lingers is replaced.
    pub(super) fn start(&self, pid: u32) -> Result<(), Error> {
        let mut bus = Bus::open(DEADLINE).map_err(|source| self.failed(source))?;
        let started = match self.try_start(&mut bus, pid) {
            Err(error) if error.is("UnitExists") => {
                // Fails for one that is alive, which the second try then reports.
                let _ = bus.call("ResetFailedUnit", "s", self.named());
                self.try_start(&mut bus, pid)
            }
            result => result,
        };
        started.map_err(|source| self.failed(source))
    }

    fn try_start(&self, bus: &mut Bus, pid: u32) -> Result<(), BusError> {
        let mut body = Writer::default();
        body.text(&self.name);
        body.text("replace");
        body.properties(&[
            ("Description", Value::Text(format!("Container {}", self.name.trim_end_matches(".scope")))),
            ("Slice", Value::Text(self.slice.clone())),
            ("Delegate", Value::Flag(true)),
            ("PIDs", Value::Pids(vec![pid])),
            ("DefaultDependencies", Value::Flag(false)),
            ("CollectMode", Value::Text("inactive-or-failed".to_owned())),
            ("CPUAccounting", Value::Flag(true)),
            ("MemoryAccounting", Value::Flag(true)),
            ("TasksAccounting", Value::Flag(true)),
            ("IOAccounting", Value::Flag(true)),
        ]);
        // No auxiliary units.
        body.array(8, |_| {});
        let job = bus.call("StartTransientUnit", "ssa(sv)a(sa(sv))", body.into_bytes())?;
        bus.finish(&self.name, &job)
    }

    /// Tells systemd those limits that it has a word for.
    pub(super) fn set(&self, resources: &LinuxResources, layout: Layout, create: bool) -> Result<(), Error> {
        let mut bus = Bus::open(DEADLINE).map_err(|source| self.failed(source))?;
        let version = version(&bus.property("Version").map_err(|source| self.failed(source))?);
        let properties = properties::of(resources, layout, version, create)?;
        if properties.is_empty() {
            return Ok(());
        }
        let mut body = Writer::default();
        body.text(&self.name);
        // For as long as the unit lives, and no longer.
        body.u32(1);
        body.properties(&properties);
        let set = bus.call("SetUnitProperties", "sba(sv)", body.into_bytes());
        set.map(drop).map_err(|source| self.failed(source))
    }

    /// Has systemd forget the scope. One that it doesn't know is forgotten already.
    pub(super) fn stop(&self, deadline: Duration) -> Result<(), Error> {
        let mut bus = Bus::open(DEADLINE).map_err(|source| self.failed(source))?;
        let mut body = Writer::default();
        body.text(&self.name);
        body.text("replace");
        let stopped = bus.call("StopUnit", "ss", body.into_bytes());
        match stopped.and_then(|job| if deadline.is_zero() { Ok(()) } else { bus.finish(&self.name, &job) }) {
            Err(error) if !error.is("NoSuchUnit") => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    fn named(&self) -> Vec<u8> {
        let mut body = Writer::default();
        body.text(&self.name);
        body.into_bytes()
    }

    fn failed(&self, source: BusError) -> Error {
        Error::Systemd { unit: self.name.clone(), source }
    }
}

/// `a-b.slice` is in `a.slice`: the path of a slice has every level. `-.slice` is the root.
fn expand(slice: &str) -> Option<String> {
    let stem = slice.strip_suffix(".slice")?;
    if stem == "-" {
        return Some(String::new());
    }
    if stem.is_empty() || stem.split('-').any(str::is_empty) {
        return None;
    }
    let ends = stem.match_indices('-').map(|(end, _)| end).chain([stem.len()]);
    Some(ends.map(|end| format!("{}.slice", &stem[..end])).collect::<Vec<_>>().join("/"))
}

/// Where systemd's tree of cgroups begins: its own cgroup, which it calls `init.scope`, is the first below.
pub(super) fn root() -> Result<String, Error> {
    let path = Path::new("/proc/1/cgroup");
    let failed = |source| Error::Mountinfo { path: path.to_owned(), source };
    Ok(root_in(&std::fs::read_to_string(path).map_err(failed)?))
}

fn root_in(text: &str) -> String {
    let of = |kind: &str| text.lines().find_map(|line| line.split_once(':')?.1.strip_prefix(kind));
    let path = of("name=systemd:").or_else(|| of(":")).unwrap_or("/");
    path.trim_start_matches('/').trim_end_matches("init.scope").trim_end_matches('/').to_owned()
}

/// This process's pid as the mounted procfs, and thus systemd, has it: the process may be in a pid namespace of its own.
pub(super) fn own_pid() -> Result<u32, Error> {
    let path = Path::new("/proc/self");
    let name =
        std::fs::read_link(path).map_err(|source| Error::Mountinfo { path: path.to_owned(), source })?;
    name.to_str().and_then(|name| name.parse().ok()).ok_or_else(|| Error::Contents { path: path.to_owned() })
}

/// `252`, `v252`, `252.39-1~deb12u1`; 0 when it can't be told.
fn version(text: &str) -> u32 {
    let digits: String = text.trim_start_matches('v').chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests;
