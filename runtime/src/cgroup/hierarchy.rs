//! Which cgroup hierarchies are mounted and where.
//!
//! Read from the mount table once a process: hierarchies don't come and go on a running node.
//! Of several mounts of one hierarchy the first counts.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::Error;
use crate::mountinfo::Entry;

/// How the host arranges its cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Every controller is in a version 1 hierarchy.
    V1,
    /// Version 1 controllers, and a version 2 hierarchy without the ones that matter here beside them.
    Hybrid,
    /// The unified hierarchy alone.
    V2,
}

/// One mounted version 1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) root: PathBuf,
    /// `cpu`, `cpuacct`, …, or `name=systemd` for one without controllers.
    pub(super) controllers: Vec<String>,
}

impl Hierarchy {
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// All hierarchies of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchies {
    pub(super) v1: Vec<Hierarchy>,
    pub(super) unified: Option<PathBuf>,
}

impl Hierarchies {
    /// Those of this process's mount namespace, read at the first call.
    pub(super) fn of_host() -> Result<Arc<Hierarchies>, Error> {
        static HOST: OnceLock<Arc<Hierarchies>> = OnceLock::new();
        if let Some(known) = HOST.get() {
            return Ok(known.clone());
        }
        // The kernel's own list is short, and says after how many the long table of mounts has no more to tell.
        let count =
            std::fs::read_to_string("/proc/self/cgroup").map_or(usize::MAX, |text| text.lines().count());
        let found = Arc::new(Hierarchies::find(Path::new("/proc/self/mountinfo"), count)?);
        Ok(HOST.get_or_init(|| found).clone())
    }

    /// Reads a table of mounts until it has found so many hierarchies. Line by line: with many overlays it has
    /// megabytes, and every monitor reads it.
    fn find(path: &Path, count: usize) -> Result<Hierarchies, Error> {
        let failed = |source| Error::Mountinfo { path: path.to_owned(), source };
        let mut reader = BufReader::with_capacity(4096, std::fs::File::open(path).map_err(failed)?);
        let mut found = Hierarchies { v1: Vec::new(), unified: None };
        let mut devices = Vec::new();
        let mut line = String::new();
        while devices.len() < count {
            line.clear();
            if reader.read_line(&mut line).map_err(failed)? == 0 {
                break;
            }
            let Some(mount) = CgroupMount::parse(&line) else { continue };
            if devices.contains(&mount.device) {
                continue;
            }
            devices.push(mount.device.clone());
            match mount.controllers {
                None => found.unified = found.unified.or(Some(mount.point)),
                Some(controllers) => found.v1.push(Hierarchy { root: mount.point, controllers }),
            }
        }
        if found.v1.is_empty() && found.unified.is_none() {
            return Err(Error::NotMounted);
        }
        Ok(found)
    }

    pub(super) fn layout(&self) -> Layout {
        let controllers = self.v1.iter().flat_map(|hierarchy| &hierarchy.controllers);
        match (&self.unified, controllers.filter(|name| !name.starts_with("name=")).count()) {
            (Some(_), 0) => Layout::V2,
            (Some(_), _) => Layout::Hybrid,
            (None, _) => Layout::V1,
        }
    }

    /// The version 1 hierarchy that carries `controller`.
    pub(super) fn with(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1.iter().find(|hierarchy| hierarchy.has(controller))
    }

    /// The version 1 hierarchy in which an exec gets a cgroup of its own: one that can hold forks back, if there is one.
    ///
    /// The freezer measures nothing, so nobody watches it for cgroups that come and go. In the other hierarchies kubelet
    /// does, and takes each for a container.
    pub(super) fn of_processes(&self) -> Option<&Hierarchy> {
        self.with("freezer").or_else(|| self.with("pids")).or_else(|| self.v1.first())
    }
}

struct CgroupMount {
    device: String,
    point: PathBuf,
    /// None for cgroup2.
    controllers: Option<Vec<String>>,
}

impl CgroupMount {
    fn parse(line: &str) -> Option<CgroupMount> {
        let entry = Entry::parse(line).filter(|entry| matches!(entry.kind, "cgroup" | "cgroup2"))?;
        let controllers = (entry.kind == "cgroup").then(|| {
            let named = |option: &&str| option.starts_with("name=") || CONTROLLERS.contains(option);
            entry.options.split(',').filter(named).map(str::to_owned).collect()
        });
        Some(CgroupMount { device: entry.device.to_owned(), point: entry.path(), controllers })
    }
}

/// Every controller that version 1 ever had; the other words among a mount's options are flags.
const CONTROLLERS: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
    "rdma",
    "misc",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Result<Hierarchies, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Hierarchies::find(file.path(), usize::MAX)
    }

    #[test]
    fn unified_alone_is_v2() {
        let found = table("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n")
            .unwrap();
        assert_eq!(found.layout(), Layout::V2);
        assert_eq!(found.unified.as_deref(), Some(Path::new("/sys/fs/cgroup")));
    }

    #[test]
    fn named_hierarchy_beside_unified_is_still_v2() {
        let text = "30 23 0:26 / /cg/u rw - cgroup2 cgroup2 rw\n31 23 0:27 / /cg/s rw - cgroup none rw,name=systemd\n";
        assert_eq!(table(text).unwrap().layout(), Layout::V2);
    }

    #[test]
    fn co_mounted_controllers_share_a_hierarchy() {
        let text = "31 30 0:27 / /cg/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                    32 30 0:28 / /cg/memory rw - cgroup cgroup rw,memory\n\
                    33 30 0:27 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
        let found = table(text).unwrap();
        assert_eq!(found.layout(), Layout::V1);
        assert_eq!(found.v1.len(), 2, "a second mount of a hierarchy doesn't count");
        assert_eq!(found.with("cpuacct").unwrap().root, Path::new("/cg/cpu,cpuacct"));
        assert!(found.with("pids").is_none());
    }

    #[test]
    fn execs_have_cgroups_where_nothing_is_measured() {
        let pids = "32 30 0:28 / /cg/pids rw - cgroup cgroup rw,pids\n";
        let freezer = "33 30 0:29 / /cg/freezer rw - cgroup cgroup rw,freezer\n";
        let both = table(&format!("{pids}{freezer}")).unwrap();
        assert_eq!(both.of_processes().unwrap().root, Path::new("/cg/freezer"));
        assert_eq!(table(pids).unwrap().of_processes().unwrap().root, Path::new("/cg/pids"));
    }

    #[test]
    fn v1_and_unified_are_hybrid() {
        let text = "32 30 0:28 / /cg/memory rw - cgroup cgroup rw,memory\n41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(table(text).unwrap().layout(), Layout::Hybrid);
    }

    #[test]
    fn escaped_mount_points_are_decoded() {
        let found = table("32 30 0:28 / /cg/my\\040dir rw - cgroup cgroup rw,memory\n").unwrap();
        assert_eq!(found.v1[0].root, Path::new("/cg/my dir"));
    }

    #[test]
    fn no_cgroups_is_an_error() {
        assert!(matches!(table("22 1 8:1 / / rw - ext4 /dev/vda rw\n"), Err(Error::NotMounted)));
    }
}
