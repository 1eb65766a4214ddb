//! The `memory` controller of version 2: limit, swap, reservation, and usage.
//!
//! A specification counts swap together with memory, as version 1 did; the file here wants swap alone.

use oci_spec::runtime::LinuxMemory;

use crate::cgroup::directory::{ControlFile, Directory, pairs};
use crate::cgroup::{Error, MemoryStats};

pub(super) fn concerned(memory: &LinuxMemory) -> bool {
    [memory.limit(), memory.swap(), memory.reservation()].iter().any(|value| value.is_some_and(|v| v != 0))
        || memory.swappiness().is_some()
        || memory.disable_oom_killer().is_some_and(|disable| disable)
}

pub(super) fn apply(directory: &Directory, memory: &LinuxMemory) -> Result<(), Error> {
    for (asked, controller, limit) in [
        (memory.swappiness().is_some(), "memory.swappiness", "memory.swappiness"),
        (memory.disable_oom_killer() == Some(true), "memory.oom_control", "memory.disableOOMKiller"),
    ] {
        if asked {
            return Err(Error::Unavailable { controller, limit });
        }
    }
    let limit = memory.limit().filter(|limit| *limit != 0);
    let swap = memory.swap().filter(|swap| *swap != 0).or(limit.filter(|limit| *limit == -1));
    let swap = swap.map(|swap| swap_alone(limit, swap)).transpose()?;
    if memory.check_before_update() == Some(true) {
        check(directory, "memory.limit", "memory.current", limit)?;
        let swap = swap.as_ref().and_then(|swap| swap.parse().ok());
        if directory.has("memory.swap.current") {
            check(directory, "memory.swap", "memory.swap.current", swap)?;
        }
    }
    if let Some(alone) = swap {
        if directory.has("memory.swap.max") {
            directory.write("memory.swap.max", &alone)?;
        } else if alone != "max" && alone != "0" {
            return Err(Error::Unavailable { controller: "memory.swap", limit: "memory.swap" });
        }
    }
    if let Some(limit) = limit {
        directory.write("memory.max", &value(limit))?;
    }
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        directory.write("memory.low", &value(reservation))?;
    }
    Ok(())
}

/// The kernel makes room for a limit below what is used by killing. This asks first.
fn check(directory: &Directory, limit: &'static str, file: &str, new: Option<i64>) -> Result<(), Error> {
    let Some(new) = new.and_then(|new| u64::try_from(new).ok()) else { return Ok(()) };
    match directory.open_file(file)?.number(&mut Vec::new())? {
        Some(used) if used > new => Err(Error::InUse { limit, new, used }),
        _ => Ok(()),
    }
}

fn value(bytes: i64) -> String {
    if bytes < 0 { "max".to_owned() } else { bytes.to_string() }
}

pub(in crate::cgroup) fn swap_alone(limit: Option<i64>, swap: i64) -> Result<String, Error> {
    if swap < 0 {
        return Ok("max".to_owned());
    }
    let invalid = |reason: String| Error::Invalid { limit: "memory.swap", reason };
    let limit = limit.filter(|limit| *limit > 0);
    let limit =
        limit.ok_or_else(|| invalid("a limit of memory and swap needs a limit of memory".to_owned()))?;
    match swap - limit {
        alone if alone < 0 => {
            Err(invalid(format!("{swap} is less than the memory limit, which it includes")))
        }
        alone => Ok(alone.to_string()),
    }
}

pub(in crate::cgroup) struct Reader {
    current: ControlFile,
    stat: ControlFile,
    max: ControlFile,
    events: Option<ControlFile>,
    swap: Option<ControlFile>,
}

impl Reader {
    pub(super) fn open(directory: &Directory) -> Result<Reader, Error> {
        let events = directory.open_file("memory.events")?;
        Ok(Reader { events: Some(events), ..Reader::open_usage(directory)? })
    }

    /// Of usage alone: kills are not counted.
    pub(in crate::cgroup) fn open_usage(directory: &Directory) -> Result<Reader, Error> {
        Ok(Reader {
            current: directory.open_file("memory.current")?,
            stat: directory.open_file("memory.stat")?,
            max: directory.open_file("memory.max")?,
            events: None,
            swap: directory.open_optional("memory.swap.current")?,
        })
    }

    pub(in crate::cgroup) fn read(&self, buffer: &mut Vec<u8>, stats: &mut MemoryStats) -> Result<(), Error> {
        stats.usage_bytes = self.current.number(buffer)?.unwrap_or(0);
        stats.limit_bytes = self.max.number(buffer)?;
        if let Some(swap) = &self.swap {
            stats.swap_bytes = swap.number(buffer)?.unwrap_or(0);
        }
        let mut inactive_file = 0;
        for (name, value) in pairs(self.stat.read(buffer)?) {
            match name {
                b"anon" => stats.rss_bytes = value,
                b"inactive_file" => inactive_file = value,
                b"pgfault" => stats.page_faults = value,
                b"pgmajfault" => stats.major_page_faults = value,
                _ => {}
            }
        }
        stats.working_set_bytes = stats.usage_bytes.saturating_sub(inactive_file);
        if let Some(events) = &self.events {
            stats.oom_kills = kills(events.read(buffer)?);
        }
        Ok(())
    }
}

pub(in crate::cgroup) fn oom_kills(directory: &Directory) -> Result<u64, Error> {
    match directory.open_optional("memory.events")? {
        Some(file) => Ok(kills(file.read(&mut Vec::new())?)),
        None => Ok(0),
    }
}

fn kills(text: &[u8]) -> u64 {
    pairs(text).find(|(name, _)| *name == b"oom_kill").map_or(0, |(_, count)| count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;
    use oci_spec::runtime::LinuxMemoryBuilder;

    #[test]
    fn swap_is_the_sum_less_memory() {
        for (limit, sum, text) in
            [(1 << 20, 3 << 20, "2097152"), (1 << 20, 1 << 20, "0"), (1 << 20, -1, "max")]
        {
            let fake = Fake::with(&[("memory.max", ""), ("memory.swap.max", "")]);
            let memory = LinuxMemoryBuilder::default().limit(limit).swap(sum).build().unwrap();
            apply(&fake.directory(), &memory).unwrap();
            assert_eq!(fake.text("memory.max"), "1048576");
            assert_eq!(fake.text("memory.swap.max"), text);
        }
    }

    #[test]
    fn sum_without_or_below_limit_is_refused() {
        let fake = Fake::with(&[("memory.max", ""), ("memory.swap.max", "")]);
        for memory in [
            LinuxMemoryBuilder::default().swap(1).build().unwrap(),
            LinuxMemoryBuilder::default().limit(2).swap(1).build().unwrap(),
        ] {
            assert!(apply(&fake.directory(), &memory).unwrap_err().is_invalid_argument());
        }
    }

    #[test]
    fn a_limit_below_usage_is_refused_when_asked_to_check() {
        let fake = Fake::with(&[("memory.max", ""), ("memory.current", "5000\n")]);
        let memory =
            |check| LinuxMemoryBuilder::default().limit(4096).check_before_update(check).build().unwrap();
        assert!(matches!(apply(&fake.directory(), &memory(true)), Err(Error::InUse { used: 5000, .. })));
        assert_eq!(fake.text("memory.max"), "");
        apply(&fake.directory(), &memory(false)).unwrap();
        assert_eq!(fake.text("memory.max"), "4096");
    }

    #[test]
    fn what_only_version_1_has_is_refused() {
        let fake = Fake::with(&[("memory.max", "")]);
        for memory in [
            LinuxMemoryBuilder::default().swappiness(10u64).build().unwrap(),
            LinuxMemoryBuilder::default().disable_oom_killer(true).build().unwrap(),
        ] {
            assert!(concerned(&memory));
            assert!(matches!(apply(&fake.directory(), &memory), Err(Error::Unavailable { .. })));
        }
        assert!(!concerned(
            &LinuxMemoryBuilder::default().kernel(1i64).disable_oom_killer(false).build().unwrap()
        ));
    }

    #[test]
    fn usage_is_read() {
        let fake = Fake::with(&[
            ("memory.current", "1000\n"),
            ("memory.max", "max\n"),
            ("memory.swap.current", "5\n"),
            ("memory.stat", "anon 300\nfile 600\ninactive_file 400\npgfault 7\npgmajfault 2\n"),
            ("memory.events", "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n"),
        ]);
        let mut stats = MemoryStats::default();
        Reader::open(&fake.directory()).unwrap().read(&mut Vec::new(), &mut stats).unwrap();
        assert_eq!((stats.usage_bytes, stats.working_set_bytes, stats.limit_bytes), (1000, 600, None));
        assert_eq!((stats.rss_bytes, stats.swap_bytes, stats.oom_kills), (300, 5, 1));
    }
}
