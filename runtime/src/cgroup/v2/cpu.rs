//! The `cpu` controller of version 2: weight, bandwidth, and processor time.
//!
//! Shares become a weight by the quadratic fit that runc and crun use today: it maps the smallest, the default and
//! the largest number of shares (2, 1024, 262144) to the smallest, the default and the largest weight (1, 100, 10000).

use oci_spec::runtime::LinuxCpu;

use crate::cgroup::directory::{ControlFile, Directory, pairs};
use crate::cgroup::{CpuStats, Error};

pub(super) fn concerned(cpu: &LinuxCpu) -> bool {
    cpu.shares().is_some_and(|shares| shares != 0)
        || cpu.quota().is_some_and(|quota| quota != 0)
        || cpu.period().is_some_and(|period| period != 0)
        || cpu.idle().is_some()
        || cpu.burst().is_some()
        || has_realtime(cpu)
}

fn has_realtime(cpu: &LinuxCpu) -> bool {
    cpu.realtime_runtime().is_some_and(|runtime| runtime != 0)
        || cpu.realtime_period().is_some_and(|period| period != 0)
}

pub(super) fn apply(directory: &Directory, cpu: &LinuxCpu) -> Result<(), Error> {
    if has_realtime(cpu) {
        return Err(Error::Unavailable { controller: "cpu.rt_runtime_us", limit: "cpu.realtimeRuntime" });
    }
    if let Some(idle) = cpu.idle() {
        directory.write("cpu.idle", &idle.to_string())?;
    }
    // The kernel refuses a weight for an idle cgroup, where it would mean nothing.
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0 && cpu.idle() != Some(1)) {
        directory.write("cpu.weight", &weight(shares).to_string())?;
    }
    let Some(burst) = cpu.burst() else { return bandwidth(directory, cpu) };
    // A burst is at most the quota, old or new: a smaller one goes first, a larger one last.
    if directory.read("cpu.max.burst")?.parse().is_ok_and(|old: u64| burst < old) {
        directory.write("cpu.max.burst", &burst.to_string())?;
        bandwidth(directory, cpu)
    } else {
        bandwidth(directory, cpu)?;
        directory.write("cpu.max.burst", &burst.to_string())
    }
}

fn bandwidth(directory: &Directory, cpu: &LinuxCpu) -> Result<(), Error> {
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_none() && period.is_none() {
        return Ok(());
    }
    let quota = match quota {
        Some(quota) if quota > 0 => quota.to_string(),
        Some(_) => "max".to_owned(),
        None => directory.read("cpu.max")?.split(' ').next().unwrap_or("max").to_owned(),
    };
    let period = period.map_or(String::new(), |period| format!(" {period}"));
    directory.write("cpu.max", &(quota + &period))
}

pub(in crate::cgroup) fn weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as u64
}

pub(in crate::cgroup) struct Reader(ControlFile);

impl Reader {
    pub(in crate::cgroup) fn open(directory: &Directory) -> Result<Reader, Error> {
        directory.open_file("cpu.stat").map(Reader)
    }

    pub(in crate::cgroup) fn read(&self, buffer: &mut Vec<u8>, stats: &mut CpuStats) -> Result<(), Error> {
        for (name, value) in pairs(self.0.read(buffer)?) {
            match name {
                b"usage_usec" => stats.usage_ns = value.saturating_mul(1000),
                b"user_usec" => stats.user_ns = value.saturating_mul(1000),
                b"system_usec" => stats.system_ns = value.saturating_mul(1000),
                b"nr_periods" => stats.periods = value,
                b"nr_throttled" => stats.throttled_periods = value,
                b"throttled_usec" => stats.throttled_ns = value.saturating_mul(1000),
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
    use oci_spec::runtime::LinuxCpuBuilder;

    #[test]
    fn shares_map_to_weights_at_both_ends_and_the_default() {
        for (shares, expected) in [(1, 1), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares} shares");
        }
        assert!(weight(512) < 100 && weight(2048) > 100);
    }

    #[test]
    fn quota_and_period_share_a_file() {
        let fake = Fake::with(&[("cpu.max", "")]);
        apply(
            &fake.directory(),
            &LinuxCpuBuilder::default().quota(50_000i64).period(100_000u64).build().unwrap(),
        )
        .unwrap();
        assert_eq!(fake.text("cpu.max"), "50000 100000");
    }

    #[test]
    fn period_alone_keeps_the_quota() {
        let fake = Fake::with(&[("cpu.max", "max 100000")]);
        apply(&fake.directory(), &LinuxCpuBuilder::default().period(20_000u64).build().unwrap()).unwrap();
        assert!(fake.text("cpu.max").starts_with("max 20000"));
    }

    #[test]
    fn microseconds_become_nanoseconds() {
        let fake = Fake::with(&[("cpu.stat", "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_throttled 2\n")]);
        let mut stats = CpuStats::default();
        Reader::open(&fake.directory()).unwrap().read(&mut Vec::new(), &mut stats).unwrap();
        assert_eq!(
            (stats.usage_ns, stats.user_ns, stats.system_ns, stats.throttled_periods),
            (9000, 5000, 4000, 2)
        );
    }
}
