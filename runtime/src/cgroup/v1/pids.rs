//! The `pids` controller: how many tasks there are and may be. Both versions have the same files.

use oci_spec::runtime::LinuxPids;

use crate::cgroup::directory::{ControlFile, Directory};
use crate::cgroup::{Error, PidsStats};

pub(in crate::cgroup) fn apply(directory: &Directory, pids: &LinuxPids) -> Result<(), Error> {
    match limit(pids) {
        Some(limit) => directory.write("pids.max", &limit.to_string()),
        None => directory.write("pids.max", "max"),
    }
}

/// None is no limit. 0 is one (config-linux.md, PIDs), and no different from 1, which systemd takes: nobody can fork.
pub(in crate::cgroup) fn limit(pids: &LinuxPids) -> Option<u64> {
    u64::try_from(pids.limit()).ok().map(|limit| limit.max(1))
}

/// No task of the cgroup can fork any more.
pub(in crate::cgroup) fn forbid_forks(directory: &Directory) -> Result<(), Error> {
    directory.write("pids.max", "0")
}

pub(in crate::cgroup) struct Reader {
    current: ControlFile,
    max: ControlFile,
}

impl Reader {
    pub(in crate::cgroup) fn open(directory: &Directory) -> Result<Reader, Error> {
        Ok(Reader { current: directory.open_file("pids.current")?, max: directory.open_file("pids.max")? })
    }

    pub(in crate::cgroup) fn read(&self, buffer: &mut Vec<u8>, stats: &mut PidsStats) -> Result<(), Error> {
        stats.current = self.current.number(buffer)?.unwrap_or(0);
        stats.limit = self.max.number(buffer)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;
    use oci_spec::runtime::LinuxPidsBuilder;

    #[test]
    fn only_negative_limits_mean_none() {
        for (limit, text) in [(100, "100"), (-1, "max"), (0, "1")] {
            let fake = Fake::with(&[("pids.max", "")]);
            apply(&fake.directory(), &LinuxPidsBuilder::default().limit(limit).build().unwrap()).unwrap();
            assert_eq!(fake.text("pids.max"), text);
        }
    }

    #[test]
    fn current_and_limit_are_read() {
        let fake = Fake::with(&[("pids.current", "4\n"), ("pids.max", "max\n")]);
        let mut stats = PidsStats::default();
        Reader::open(&fake.directory()).unwrap().read(&mut Vec::new(), &mut stats).unwrap();
        assert_eq!(stats, PidsStats { current: 4, limit: None });
    }
}
