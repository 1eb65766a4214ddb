//! The `cpu` controller of version 1: shares, quota, period, burst, real time, and throttling counts.

use oci_spec::runtime::LinuxCpu;

use crate::cgroup::directory::{ControlFile, Directory, pairs};
use crate::cgroup::{CpuStats, Error};

pub(super) fn concerned(cpu: &LinuxCpu) -> bool {
    cpu.shares().is_some_and(|shares| shares != 0)
        || cpu.quota().is_some_and(|quota| quota != 0)
        || cpu.period().is_some_and(|period| period != 0)
        || cpu.idle().is_some()
        || cpu.burst().is_some()
        || cpu.realtime_runtime().is_some_and(|runtime| runtime != 0)
        || cpu.realtime_period().is_some_and(|period| period != 0)
}

pub(super) fn apply(directory: &Directory, cpu: &LinuxCpu) -> Result<(), Error> {
    if let Some(idle) = cpu.idle() {
        directory.write("cpu.idle", &idle.to_string())?;
    }
    // The kernel refuses shares for an idle cgroup, where they would mean nothing.
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0 && cpu.idle() != Some(1)) {
        directory.write("cpu.shares", &shares.to_string())?;
    }
    realtime(directory, cpu)?;
    let Some(burst) = cpu.burst() else { return bandwidth(directory, cpu) };
    // A burst is at most the quota, old or new: a smaller one goes first, a larger one last.
    if directory.read("cpu.cfs_burst_us")?.parse().is_ok_and(|old: u64| burst < old) {
        directory.write("cpu.cfs_burst_us", &burst.to_string())?;
        bandwidth(directory, cpu)
    } else {
        bandwidth(directory, cpu)?;
        directory.write("cpu.cfs_burst_us", &burst.to_string())
    }
}

fn realtime(directory: &Directory, cpu: &LinuxCpu) -> Result<(), Error> {
    let runtime = cpu.realtime_runtime().filter(|runtime| *runtime != 0);
    let period = cpu.realtime_period().filter(|period| *period != 0);
    if runtime.is_none() && period.is_none() {
        return Ok(());
    }
    if !directory.has("cpu.rt_runtime_us") {
        return Err(Error::Unavailable { controller: "cpu.rt_runtime_us", limit: "cpu.realtimeRuntime" });
    }
    let runtime = runtime.map(|runtime| runtime.to_string());
    pair(
        directory,
        ("cpu.rt_period_us", period.map(|period| period.to_string())),
        ("cpu.rt_runtime_us", runtime),
    )
}

fn bandwidth(directory: &Directory, cpu: &LinuxCpu) -> Result<(), Error> {
    let quota = cpu.quota().filter(|quota| *quota != 0).map(|quota| quota.to_string());
    let period = cpu.period().filter(|period| *period != 0).map(|period| period.to_string());
    pair(directory, ("cpu.cfs_period_us", period), ("cpu.cfs_quota_us", quota))
}

/// The kernel checks each of the two files against the other and the parent, so the right order depends on the old values.
fn pair(
    directory: &Directory,
    (period_name, period): (&str, Option<String>),
    (time_name, time): (&str, Option<String>),
) -> Result<(), Error> {
    let set = |name, value: &Option<String>| match value {
        Some(value) => directory.write(name, value),
        None => Ok(()),
    };
    match set(period_name, &period) {
        Ok(()) => set(time_name, &time),
        Err(_) if time.is_some() => {
            set(time_name, &time)?;
            set(period_name, &period)
        }
        Err(error) => Err(error),
    }
}

pub(super) struct Reader(ControlFile);

impl Reader {
    pub(super) fn open(directory: &Directory) -> Result<Reader, Error> {
        directory.open_file("cpu.stat").map(Reader)
    }

    pub(super) fn read(&self, buffer: &mut Vec<u8>, stats: &mut CpuStats) -> Result<(), Error> {
        for (name, value) in pairs(self.0.read(buffer)?) {
            match name {
                b"nr_periods" => stats.periods = value,
                b"nr_throttled" => stats.throttled_periods = value,
                b"throttled_time" => stats.throttled_ns = value,
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
    fn limits_go_to_their_files() {
        let fake = Fake::with(&[("cpu.shares", ""), ("cpu.cfs_quota_us", ""), ("cpu.cfs_period_us", "")]);
        let cpu =
            LinuxCpuBuilder::default().shares(512u64).quota(50_000i64).period(100_000u64).build().unwrap();
        assert!(concerned(&cpu));
        apply(&fake.directory(), &cpu).unwrap();
        assert_eq!(fake.text("cpu.shares"), "512");
        assert_eq!(fake.text("cpu.cfs_quota_us"), "50000");
        assert_eq!(fake.text("cpu.cfs_period_us"), "100000");
    }

    #[test]
    fn shares_of_an_idle_cgroup_are_not_written() {
        let fake = Fake::with(&[("cpu.shares", ""), ("cpu.idle", "")]);
        let cpu = LinuxCpuBuilder::default().shares(512u64).idle(1i64).build().unwrap();
        apply(&fake.directory(), &cpu).unwrap();
        assert_eq!((fake.text("cpu.shares"), fake.text("cpu.idle")), (String::new(), "1".into()));
    }

    #[test]
    fn real_time_without_the_kernels_support_is_unavailable() {
        let cpu = LinuxCpuBuilder::default().realtime_runtime(1000i64).build().unwrap();
        assert!(matches!(apply(&Fake::with(&[]).directory(), &cpu), Err(Error::Unavailable { .. })));
    }

    #[test]
    fn zero_means_unset() {
        let cpu = LinuxCpuBuilder::default().shares(0u64).quota(0i64).period(0u64).build().unwrap();
        assert!(!concerned(&cpu));
    }

    #[test]
    fn throttling_is_counted() {
        let fake =
            Fake::with(&[("cpu.stat", "nr_periods 12\nnr_throttled 3\nthrottled_time 4500\nnr_bursts 0\n")]);
        let mut stats = CpuStats::default();
        Reader::open(&fake.directory()).unwrap().read(&mut Vec::new(), &mut stats).unwrap();
        assert_eq!((stats.periods, stats.throttled_periods, stats.throttled_ns), (12, 3, 4500));
    }
}
