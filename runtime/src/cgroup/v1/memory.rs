//! The `memory` controller of version 1: limit, memory+swap limit, reservation, and usage.
//!
//! Limits of kernel memory are accepted and not set: the kernel deprecated them (5.4) and the specification has them as
//! no longer recommended. A limit below what is used is refused by the kernel itself, with or without `checkBeforeUpdate`.
//! The kernel keeps `limit <= memory+swap limit` at every moment, so raising starts with the sum and lowering with the limit.

use oci_spec::runtime::LinuxMemory;

use crate::cgroup::directory::{ControlFile, Directory, pairs};
use crate::cgroup::{Error, MemoryStats};

const LIMIT: &str = "memory.limit_in_bytes";
const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";

pub(super) fn concerned(memory: &LinuxMemory) -> bool {
    [memory.limit(), memory.swap(), memory.reservation()].iter().any(|value| value.is_some_and(|v| v != 0))
        || memory.swappiness().is_some()
        || memory.disable_oom_killer().is_some()
}

pub(super) fn apply(directory: &Directory, memory: &LinuxMemory) -> Result<(), Error> {
    let limit = memory.limit().filter(|limit| *limit != 0);
    // An unlimited memory leaves no meaning to an old limit of the sum.
    let swap = memory.swap().filter(|swap| *swap != 0).or(limit.filter(|limit| *limit == -1));
    if let (Some(limit), Some(swap)) = (limit, swap)
        && swap != -1
        && (swap < limit || limit == -1)
    {
        let reason = format!("{swap} is less than the memory limit, which it includes");
        return Err(Error::Invalid { limit: "memory.swap", reason });
    }
    set(directory, limit, swap)?;
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        directory.write("memory.soft_limit_in_bytes", &reservation.to_string())?;
    }
    if let Some(swappiness) = memory.swappiness() {
        directory.write("memory.swappiness", &swappiness.to_string())?;
    }
    match memory.disable_oom_killer() {
        Some(true) => oom_killer(directory, "1"),
        // False is what every new cgroup has; only an update may find something else.
        Some(false) if oom_killer_is_disabled(directory)? => oom_killer(directory, "0"),
        _ => Ok(()),
    }
}

fn oom_killer(directory: &Directory, disabled: &str) -> Result<(), Error> {
    let before = if oom_killer_is_disabled(directory)? { "1" } else { "0" };
    directory.write_noting("memory.oom_control", disabled, before)
}

fn oom_killer_is_disabled(directory: &Directory) -> Result<bool, Error> {
    let text = directory.read("memory.oom_control")?;
    Ok(pairs(text.as_bytes()).any(|(name, value)| name == b"oom_kill_disable" && value == 1))
}

fn set(directory: &Directory, limit: Option<i64>, swap: Option<i64>) -> Result<(), Error> {
    let write = |name, value: Option<i64>| match value {
        Some(value) => directory.write(name, &value.to_string()),
        None => Ok(()),
    };
    let Some(sum) = swap else { return write(LIMIT, limit) };
    if !directory.has(WITH_SWAP) {
        // Kernels without swap accounting: no limit is what they give anyway, and "nothing beyond memory", which callers
        // say with every limit of memory, must not keep a host from limiting memory at all.
        if sum == -1 || limit == Some(sum) {
            return write(LIMIT, limit);
        }
        return Err(Error::Unavailable { controller: "memory.memsw", limit: "memory.swap" });
    }
    let current: u64 = directory.read(WITH_SWAP)?.parse().unwrap_or(u64::MAX);
    if u64::try_from(sum).map_or(true, |sum| sum > current) {
        write(WITH_SWAP, swap)?;
        write(LIMIT, limit)
    } else {
        write(LIMIT, limit)?;
        write(WITH_SWAP, swap)
    }
}

/// Anything above this means "no limit": the kernel shows the largest multiple of a page below 2^63.
pub(in crate::cgroup) const UNLIMITED: u64 = 1 << 62;

pub(in crate::cgroup) struct Reader {
    usage: ControlFile,
    stat: ControlFile,
    oom: Option<ControlFile>,
}

impl Reader {
    pub(super) fn open(directory: &Directory) -> Result<Reader, Error> {
        let oom = directory.open_file("memory.oom_control")?;
        Ok(Reader { oom: Some(oom), ..Reader::open_usage(directory)? })
    }

    /// Of usage alone: kills are not counted.
    pub(in crate::cgroup) fn open_usage(directory: &Directory) -> Result<Reader, Error> {
        Ok(Reader {
            usage: directory.open_file("memory.usage_in_bytes")?,
            stat: directory.open_file("memory.stat")?,
            oom: None,
        })
    }

    pub(in crate::cgroup) fn read(&self, buffer: &mut Vec<u8>, stats: &mut MemoryStats) -> Result<(), Error> {
        stats.usage_bytes = self.usage.number(buffer)?.unwrap_or(0);
        let mut inactive_file = 0;
        for (name, value) in pairs(self.stat.read(buffer)?) {
            match name {
                b"hierarchical_memory_limit" => {
                    stats.limit_bytes = Some(value).filter(|limit| *limit < UNLIMITED);
                }
                b"total_rss" => stats.rss_bytes = value,
                b"total_swap" => stats.swap_bytes = value,
                b"total_inactive_file" => inactive_file = value,
                b"total_pgfault" => stats.page_faults = value,
                b"total_pgmajfault" => stats.major_page_faults = value,
                _ => {}
            }
        }
        stats.working_set_bytes = stats.usage_bytes.saturating_sub(inactive_file);
        if let Some(oom) = &self.oom {
            stats.oom_kills = kills(oom.read(buffer)?);
        }
        Ok(())
    }
}

pub(super) fn oom_kills(directory: &Directory) -> Result<u64, Error> {
    Ok(kills(directory.open_file("memory.oom_control")?.read(&mut Vec::new())?))
}

/// The count came to `oom_control` with Linux 4.13.
fn kills(text: &[u8]) -> u64 {
    pairs(text).find(|(name, _)| *name == b"oom_kill").map_or(0, |(_, count)| count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;
    use oci_spec::runtime::LinuxMemoryBuilder;

    fn limits(limit: i64, swap: i64) -> LinuxMemory {
        LinuxMemoryBuilder::default().limit(limit).swap(swap).build().unwrap()
    }

    #[test]
    fn limit_and_sum_are_written() {
        let fake = Fake::with(&[(LIMIT, ""), (WITH_SWAP, "")]);
        apply(&fake.directory(), &limits(1 << 20, 1 << 21)).unwrap();
        assert_eq!((fake.text(LIMIT), fake.text(WITH_SWAP)), ("1048576".into(), "2097152".into()));
    }

    #[test]
    fn unlimited_memory_lifts_the_sum_too() {
        let fake = Fake::with(&[(LIMIT, ""), (WITH_SWAP, "")]);
        apply(&fake.directory(), &LinuxMemoryBuilder::default().limit(-1).build().unwrap()).unwrap();
        assert_eq!((fake.text(LIMIT), fake.text(WITH_SWAP)), ("-1".into(), "-1".into()));
    }

    #[test]
    fn sum_below_limit_is_refused() {
        let fake = Fake::with(&[(LIMIT, ""), (WITH_SWAP, "")]);
        assert!(apply(&fake.directory(), &limits(2 << 20, 1 << 20)).unwrap_err().is_invalid_argument());
    }

    #[test]
    fn swap_limit_without_accounting_is_an_error_only_when_it_allows_some() {
        let fake = Fake::with(&[(LIMIT, "")]);
        apply(&fake.directory(), &limits(1 << 20, -1)).unwrap();
        apply(&fake.directory(), &limits(2 << 20, 2 << 20)).unwrap();
        assert_eq!(fake.text(LIMIT), "2097152");
        assert!(matches!(
            apply(&fake.directory(), &limits(1 << 20, 1 << 21)),
            Err(Error::Unavailable { controller: "memory.memsw", .. })
        ));
    }

    #[test]
    fn working_set_is_usage_less_inactive_file() {
        let fake = Fake::with(&[
            ("memory.usage_in_bytes", "1000\n"),
            (
                "memory.stat",
                "cache 1\ninactive_file 999\nhierarchical_memory_limit 9223372036854771712\n\
                 total_rss 300\ntotal_swap 5\ntotal_inactive_file 400\ntotal_pgfault 7\ntotal_pgmajfault 2\n",
            ),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
        ]);
        let mut stats = MemoryStats::default();
        Reader::open(&fake.directory()).unwrap().read(&mut Vec::new(), &mut stats).unwrap();
        let expected = MemoryStats {
            usage_bytes: 1000,
            working_set_bytes: 600,
            limit_bytes: None,
            rss_bytes: 300,
            swap_bytes: 5,
            page_faults: 7,
            major_page_faults: 2,
            oom_kills: 3,
        };
        assert_eq!(stats, expected);
        assert_eq!(oom_kills(&fake.directory()).unwrap(), 3);
    }
}
