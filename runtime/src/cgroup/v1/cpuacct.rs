//! The `cpuacct` controller: processor time. It has no limits.

use crate::cgroup::directory::{ControlFile, Directory, pairs};
use crate::cgroup::{CpuStats, Error};

/// Processor time in nanoseconds and nothing else.
pub(in crate::cgroup) fn open_usage(directory: &Directory) -> Result<ControlFile, Error> {
    directory.open_file("cpuacct.usage")
}

/// `cpuacct.stat` counts in USER_HZ, which is 100 on every architecture we build for.
const NS_PER_TICK: u64 = 10_000_000;

pub(super) struct Reader {
    usage: ControlFile,
    stat: ControlFile,
}

impl Reader {
    pub(super) fn open(directory: &Directory) -> Result<Reader, Error> {
        Ok(Reader { usage: open_usage(directory)?, stat: directory.open_file("cpuacct.stat")? })
    }

    pub(super) fn read(&self, buffer: &mut Vec<u8>, stats: &mut CpuStats) -> Result<(), Error> {
        stats.usage_ns = self.usage.number(buffer)?.unwrap_or(0);
        for (name, ticks) in pairs(self.stat.read(buffer)?) {
            match name {
                b"user" => stats.user_ns = ticks.saturating_mul(NS_PER_TICK),
                b"system" => stats.system_ns = ticks.saturating_mul(NS_PER_TICK),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;

    #[test]
    fn ticks_become_nanoseconds() {
        let fake = Fake::with(&[("cpuacct.usage", "123456789\n"), ("cpuacct.stat", "user 7\nsystem 5\n")]);
        let mut stats = CpuStats::default();
        Reader::open(&fake.directory()).unwrap().read(&mut Vec::new(), &mut stats).unwrap();
        assert_eq!((stats.usage_ns, stats.user_ns, stats.system_ns), (123_456_789, 70_000_000, 50_000_000));
    }
}
