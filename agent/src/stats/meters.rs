//! Open meters of cgroups by their path, and processor rates between readings.
//!
//! A meter is opened at the first reading and kept, up to a number that leaves most descriptors of the process to
//! others; beyond it files are opened for each reading. A meter whose cgroup went away is dropped; when another
//! cgroup has the path by then, it is opened anew.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Resource, getrlimit};
use sampan_runtime::cgroup::{Cgroup, Error, Meter, Reading, Stats};

/// A rate over less than this is noise.
const SHORTEST: Duration = Duration::from_millis(100);
/// All files of a cgroup stay open this long for the next who asks for everything.
const LINGER: Duration = Duration::from_secs(10);
/// Descriptors of a cgroup whose files are all open.
const ALL_FILES: usize = 12;

/// One reading, with the rate since the one before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) reading: Reading,
    /// Billionths of a core; `None` before two readings.
    pub(super) nano_cores: Option<u64>,
}

/// All meters.
#[derive(Debug)]
pub(super) struct Meters {
    known: Mutex<HashMap<String, Arc<Mutex<Tracked>>>>,
    /// Descriptors that may be kept open.
    limit: usize,
}

#[derive(Debug, Default)]
struct Tracked {
    meter: Option<Meter>,
    /// Asked for everything of late.
    full: Option<(Instant, Cgroup)>,
    rate: Rate,
}

#[derive(Debug, Clone, Copy, Default)]
struct Rate {
    last: Option<(Instant, u64)>,
    nano_cores: Option<u64>,
}

impl Meters {
    /// Keeps at most half of the descriptors that the process may have.
    pub(super) fn new() -> Meters {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let limit = usize::try_from(descriptors / 2).unwrap_or(usize::MAX);
        Meters { known: Mutex::default(), limit }
    }

    /// The usual figures; `None` when there is no such cgroup.
    pub(super) fn read(&self, path: &str, buffer: &mut Vec<u8>) -> Option<Measured> {
        let (reading, nano_cores) = self.with(path, Meter::DESCRIPTORS, |tracked, keep| {
            let reading = tracked.metered(path, keep, |meter| meter.read(buffer))?;
            Some((reading, tracked.rate.next(reading.cpu_ns, Instant::now())))
        })?;
        Some(Measured { reading, nano_cores })
    }

    /// The usual figures and how many tasks there are.
    pub(super) fn read_with_tasks(&self, path: &str, buffer: &mut Vec<u8>) -> Option<(Measured, u64)> {
        let measured = self.read(path, buffer)?;
        let tasks = self.with(path, Meter::DESCRIPTORS, |tracked, keep| {
            tracked.metered(path, keep, |meter| meter.tasks(buffer))
        })?;
        Some((measured, tasks))
    }

    /// Everything that a cgroup's `stats` has.
    pub(super) fn stats(&self, path: &str) -> Option<Stats> {
        self.with(path, Meter::DESCRIPTORS + ALL_FILES, |tracked, keep| {
            let now = Instant::now();
            if let Some((used, cgroup)) = &mut tracked.full {
                if let Ok(stats) = cgroup.stats() {
                    *used = now;
                    return Some(stats);
                }
                tracked.full = None;
            }
            let cgroup = Cgroup::new(path).ok()?;
            let stats = cgroup.stats().ok()?;
            tracked.full = keep.then_some((now, cgroup));
            Some(stats)
        })
    }

    /// Keeps the rate of a cgroup fresh.
    pub(super) fn sample(&self, path: &str, buffer: &mut Vec<u8>) {
        self.with(path, Meter::DESCRIPTORS, |tracked, keep| {
            let used = tracked.metered(path, keep, |meter| meter.cpu_ns(buffer))?;
            tracked.rate.next(used, Instant::now())
        });
    }

    /// Forgets all but these, and closes what nobody asked for of late.
    pub(super) fn retain(&self, living: &HashSet<&str>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|path, _| living.contains(path.as_str()));
        for tracked in known.values() {
            let mut tracked = tracked.lock().unwrap_or_else(PoisonError::into_inner);
            tracked.full.take_if(|(used, _)| used.elapsed() > LINGER);
        }
    }

    /// Does `work` with what is known of a cgroup, and tells it whether this many descriptors for each are few enough.
    fn with<T>(&self, path: &str, files: usize, work: impl FnOnce(&mut Tracked, bool) -> T) -> T {
        let (tracked, keep) = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let tracked = match known.get(path) {
                Some(tracked) => tracked.clone(),
                None => known.entry(path.to_owned()).or_default().clone(),
            };
            (tracked, known.len().saturating_mul(files) <= self.limit)
        };
        let mut tracked = tracked.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut tracked, keep)
    }
}

impl Tracked {
    /// Reads with the meter that is open, or with a new one.
    fn metered<T>(
        &mut self,
        path: &str,
        keep: bool,
        mut read: impl FnMut(&Meter) -> Result<T, Error>,
    ) -> Option<T> {
        if let Some(Ok(value)) = self.meter.as_ref().map(&mut read) {
            return Some(value);
        }
        let meter = Cgroup::new(path).and_then(|cgroup| cgroup.meter()).ok();
        let value = meter.as_ref().and_then(|meter| read(meter).ok());
        self.meter = meter.filter(|_| keep && value.is_some());
        value
    }
}

impl Rate {
    fn next(&mut self, used_ns: u64, now: Instant) -> Option<u64> {
        match self.last {
            Some((then, _)) if now.duration_since(then) < SHORTEST => {}
            // The cgroup is another one than before.
            Some((_, before)) if before > used_ns => {
                *self = Rate { last: Some((now, used_ns)), nano_cores: None };
            }
            Some((then, before)) => {
                self.nano_cores = Some(nano_cores(used_ns - before, now.duration_since(then)));
                self.last = Some((now, used_ns));
            }
            None => self.last = Some((now, used_ns)),
        }
        self.nano_cores
    }
}

fn nano_cores(used_ns: u64, elapsed: Duration) -> u64 {
    let nanos = u128::from(used_ns) * 1_000_000_000 / elapsed.as_nanos().max(1);
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// A cgroup with a process in it.
    struct Group {
        cgroup: Cgroup,
        child: Child,
    }

    impl Group {
        fn new(path: &str) -> Group {
            let cgroup = Cgroup::new(path).unwrap();
            cgroup.create().unwrap();
            #[allow(clippy::disallowed_methods)] // a real process, in a test
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            for folder in cgroup.paths().values() {
                std::fs::write(folder.join("cgroup.procs"), child.id().to_string()).unwrap();
            }
            Group { cgroup, child }
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.cgroup.remove(Duration::from_secs(5)).unwrap();
        }
    }

    fn unique() -> String {
        format!("/sampan-meters-{:016x}", rand::random::<u64>())
    }

    fn open_files(meters: &Meters) -> usize {
        let known = meters.known.lock().unwrap();
        known.values().filter(|tracked| tracked.lock().unwrap().meter.is_some()).count()
    }

    #[test]
    fn half_a_core_for_two_seconds_is_half_a_billion() {
        assert_eq!(nano_cores(1_000_000_000, Duration::from_secs(2)), 500_000_000);
    }

    #[test]
    fn a_rate_needs_two_readings_that_are_apart() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        assert_eq!(rate.next(1_000, start), None);
        assert_eq!(rate.next(9_000, start + Duration::from_millis(50)), None);
        assert_eq!(rate.next(500_001_000, start + Duration::from_secs(1)), Some(500_000_000));
        assert_eq!(
            rate.next(0, start + Duration::from_secs(2)),
            None,
            "counters that fell are another cgroup's"
        );
    }

    #[test]
    fn a_cgroup_that_went_away_is_nothing_and_one_in_its_place_is_read() {
        let (path, meters, mut buffer) = (unique(), Meters::new(), Vec::new());
        assert!(meters.read(&path, &mut buffer).is_none());
        let group = Group::new(&path);
        let (measured, tasks) = meters.read_with_tasks(&path, &mut buffer).unwrap();
        assert_eq!(measured.nano_cores, None, "one reading makes no rate");
        assert_eq!((tasks, open_files(&meters)), (1, 1));
        assert_eq!(meters.stats(&path).unwrap().pids.current, 1);
        drop(group);
        assert!(meters.read(&path, &mut buffer).is_none() && meters.stats(&path).is_none());
        assert_eq!(open_files(&meters), 0);
        let _group = Group::new(&path);
        assert!(meters.read(&path, &mut buffer).is_some());
        meters.retain(&HashSet::new());
        assert!(meters.known.lock().unwrap().is_empty());
    }

    #[test]
    fn beyond_the_limit_nothing_stays_open() {
        let (path, mut buffer) = (unique(), Vec::new());
        let meters = Meters { known: Mutex::default(), limit: 0 };
        let _group = Group::new(&path);
        assert!(meters.read(&path, &mut buffer).is_some() && meters.stats(&path).is_some());
        assert_eq!(open_files(&meters), 0);
    }
}
