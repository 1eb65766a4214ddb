//! What a pod and a container are asked to be: the domain's own words for CRI's configurations.
//!
//! These are kept in the records on disk, so a field may be added with a default but never change its meaning.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use oci_spec::runtime::PosixRlimit;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::network::PortMapping;

/// The length of a CPU period in microseconds, where a share of processors is asked for and no period.
pub(crate) const CPU_PERIOD: u64 = 100_000;

/// A pod's identity for its caller: unique among the pods of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodName {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.attempt`.
    pub attempt: u32,
}

/// A pod as asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodConfig {
    /// Its identity.
    pub name: PodName,
    /// Empty: none of its own; the pod's short id then.
    pub hostname: String,
    /// Where container logs go, relative paths of containers being beneath it.
    pub log_directory: Option<PathBuf>,
    /// Name resolution; `None`: as the host.
    pub dns: Option<Dns>,
    /// Names for `/etc/hosts` beside its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<(String, IpAddr)>,
    /// Published ports.
    pub ports: Vec<PortMapping>,
    /// Labels, verbatim.
    pub labels: BTreeMap<String, String>,
    /// Annotations, verbatim.
    pub annotations: BTreeMap<String, String>,
    /// The cgroup that the pod's containers are made in, without a slash at its end; `None`: one of the agent's own for
    /// this pod.
    pub cgroup_parent: Option<String>,
    /// Namespaced kernel parameters.
    pub sysctls: BTreeMap<String, String>,
    /// Network namespace.
    pub network: NetworkMode,
    /// Process namespace of the pod's containers, unless they say otherwise.
    pub pid: PidMode,
    /// IPC namespace.
    pub host_ipc: bool,
    /// Users of the pod's own; `None`: the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<IdMappings>,
    /// Limits of all containers together, put in force where the pod has a cgroup of the agent's own.
    #[serde(default)]
    pub resources: Resources,
    /// Whether its containers may be privileged.
    pub privileged: bool,
    /// The runtime handler asked for; empty: the default.
    pub runtime_handler: String,
    /// Goes away with its one container, as `sampan run --rm` wants.
    pub auto_remove: bool,
    /// Made by `sampan run`: pod and container are one thing to their user.
    pub standalone: bool,
}

/// `NAME:ADDRESS` for `/etc/hosts`; the address may have colons of its own.
pub(crate) fn host(text: &str) -> Result<(String, IpAddr)> {
    let wrong = || Error::Invalid(format!("{text:?} is not NAME:ADDRESS"));
    let (name, address) = text.split_once([':', '=']).ok_or_else(wrong)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(wrong());
    }
    let address = address.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| wrong())?;
    Ok((name.to_owned(), address))
}

/// The name and the value of `NAME=VALUE`.
pub(crate) fn environment_variable(pair: &str) -> Result<(String, String)> {
    match pair.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Error::Invalid(format!("the environment variable {pair:?} is not NAME=VALUE"))),
    }
}

/// Only parameters that a namespace of the pod has; others would change the host.
pub(crate) fn check_sysctls(asked: &BTreeMap<String, String>) -> Result<()> {
    const NAMESPACED: [&str; 4] = ["kernel.shm", "kernel.msg", "fs.mqueue.", "net."];
    const EXACT: [&str; 1] = ["kernel.sem"];
    for (name, value) in asked {
        let plain =
            name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b)) && !name.contains("..");
        let known =
            NAMESPACED.iter().any(|prefix| name.starts_with(prefix)) || EXACT.contains(&name.as_str());
        if !plain || !known {
            let problem = format!("sysctl {name:?} is not one that belongs to a pod's namespaces");
            return Err(Error::Invalid(problem));
        }
        if value.contains('\n') || value.contains('\0') {
            let problem = format!("the value of sysctl {name:?} has a line end or a zero byte");
            return Err(Error::Invalid(problem));
        }
    }
    Ok(())
}

/// Name resolution of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// Which network a pod lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// A namespace of its own with an address on the bridge.
    Pod,
    /// The host's.
    Host,
    /// A namespace of its own with loopback only.
    None,
}

/// Which processes a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PidMode {
    /// Its own.
    Container,
    /// Those of all containers of its pod.
    Pod,
    /// The host's.
    Host,
    /// Those of another container of the pod, named by id.
    Target(String),
}

/// A container as asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// `metadata.name`: unique in its pod together with the attempt.
    pub name: String,
    /// `metadata.attempt`.
    pub attempt: u32,
    /// The image as the user named it.
    pub image: String,
    /// The image as the request named it: an id or a reference.
    pub image_ref: String,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's command when not empty.
    pub args: Vec<String>,
    /// Empty: the image's.
    pub working_dir: String,
    /// Over the image's own.
    pub env: Vec<(String, String)>,
    /// Host paths.
    pub mounts: Vec<MountConfig>,
    /// Where it has an anonymous volume, beside those that the image asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<PathBuf>,
    /// File systems in memory, by their place, with their options.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tmpfs: BTreeMap<PathBuf, Vec<String>>,
    /// Limits of each process.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<PosixRlimit>,
    /// Host devices.
    pub devices: Vec<DeviceConfig>,
    /// Devices that vendors describe (CDI), as `VENDOR/CLASS=NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cdi_devices: Vec<String>,
    /// Labels, verbatim.
    pub labels: BTreeMap<String, String>,
    /// Annotations, verbatim.
    pub annotations: BTreeMap<String, String>,
    /// Relative to the pod's log directory; empty: no log.
    pub log_path: String,
    /// Limits.
    pub resources: Resources,
    /// Who it runs as and what it may do.
    pub security: Security,
    /// Overrides the image's stop signal.
    pub stop_signal: Option<i32>,
    /// Whether its standard input can be written to, or has ended from the start.
    #[serde(default)]
    pub stdin: bool,
    /// Whether it has a terminal.
    #[serde(default)]
    pub tty: bool,
    /// The input ends with the first client that has attached to it.
    #[serde(default)]
    pub stdin_once: bool,
}

impl ContainerConfig {
    /// Whether another request asks for the same; what the agent has found out since does not count.
    pub(crate) fn same_request(&self, other: &ContainerConfig) -> bool {
        let asked = |config: &ContainerConfig| {
            let mut config = config.clone();
            for mount in &mut config.mounts {
                mount.source = None;
                if let Some(volume) = &mut mount.image {
                    volume.id.clear();
                }
            }
            config
        };
        asked(self) == asked(other)
    }
}

/// A host path in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountConfig {
    /// Where the container sees it.
    pub container_path: PathBuf,
    /// What it is on the host, as asked for; empty for an image.
    pub host_path: PathBuf,
    /// What is mounted, links followed; `None` as long as nobody has looked: the host path then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<PathBuf>,
    /// The image that is mounted in place of a host path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageVolume>,
    /// May not be written.
    pub readonly: bool,
    /// Mounts beneath it may not be written either.
    pub recursive_readonly: bool,
    /// Which mount events cross.
    pub propagation: Propagation,
    /// Further options, such as `noexec`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// The caller would have its SELinux label changed, which means nothing here.
    #[serde(default)]
    pub relabel: bool,
    /// How the container sees the owners of its files; `None`: as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owners: Option<IdMappings>,
}

/// Ids of users and groups, each by runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMappings {
    /// Of users.
    pub uids: Vec<IdRun>,
    /// Of groups.
    pub gids: Vec<IdRun>,
}

impl IdMappings {
    /// User and group outside that are root inside, if anybody is; nobody else.
    pub fn root(&self) -> (u32, u32) {
        let of = |runs: &[IdRun]| {
            let with_root = runs.iter().find(|run| run.inside == 0);
            with_root.map_or(NOBODY, |run| run.outside)
        };
        (of(&self.uids), of(&self.gids))
    }
}

/// Whom the kernel shows for one that has no number.
const NOBODY: u32 = 65_534;

/// Ids that follow each other outside and inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRun {
    /// The first one outside.
    pub outside: u32,
    /// The first one inside.
    pub inside: u32,
    /// How many; not 0.
    pub length: u32,
}

/// An image whose files a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolume {
    /// An id or a reference.
    pub image: String,
    /// As the pod's author wrote it; empty: nobody told.
    #[serde(default)]
    pub user_named: String,
    /// The id of the image that is mounted.
    #[serde(default)]
    pub id: String,
    /// Relative to the image's root; empty: all of it.
    pub sub_path: String,
}

/// Which mount events cross between host and container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// None.
    Private,
    /// The host's appear in the container (`rslave`).
    HostToContainer,
    /// Both ways (`rshared`); for privileged containers.
    Bidirectional,
}

/// A host device in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceConfig {
    /// Where the container sees it.
    pub container_path: PathBuf,
    /// What it is on the host.
    pub host_path: PathBuf,
    /// Some of `r`, `w` and `m`.
    pub permissions: String,
}

impl DeviceConfig {
    /// No permissions stand for all.
    pub(crate) fn new(
        host_path: String,
        container_path: String,
        permissions: String,
    ) -> Result<DeviceConfig> {
        if let Some(other) = permissions.chars().find(|access| !"rwm".contains(*access)) {
            let problem = format!("{other:?} is no permission for device {host_path}: there are r, w and m");
            return Err(Error::Invalid(problem));
        }
        Ok(DeviceConfig {
            container_path: container_path.into(),
            host_path: host_path.into(),
            permissions: if permissions.is_empty() { "rwm".into() } else { permissions },
        })
    }
}

/// Limits of a container; `None`: no limit, or the kernel's default.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Microseconds a period.
    pub cpu_quota: Option<i64>,
    /// Relative weight, 1024 being one core's worth.
    pub cpu_shares: Option<u64>,
    /// Bytes.
    pub memory_limit: Option<i64>,
    /// Bytes of memory and swap together; -1: unlimited.
    pub memory_swap_limit: Option<i64>,
    /// -1000 to 1000.
    pub oom_score_adj: i64,
    /// Such as `0-3,7`.
    pub cpuset_cpus: String,
    /// Such as `0`.
    pub cpuset_mems: String,
    /// Most processes and threads.
    pub pids_limit: Option<i64>,
    /// Page size (`2MB`) and bytes.
    pub hugepages: Vec<(String, u64)>,
    /// cgroup v2 files and values.
    pub unified: BTreeMap<String, String>,
}

impl Resources {
    /// Takes over what `other` sets.
    pub(crate) fn merge(&mut self, other: &Resources) {
        let Resources {
            cpu_period,
            cpu_quota,
            cpu_shares,
            memory_limit,
            memory_swap_limit,
            oom_score_adj,
            cpuset_cpus,
            cpuset_mems,
            pids_limit,
            hugepages,
            unified,
        } = other.clone();
        self.cpu_period = cpu_period.or(self.cpu_period);
        self.cpu_quota = cpu_quota.or(self.cpu_quota);
        self.cpu_shares = cpu_shares.or(self.cpu_shares);
        self.memory_swap_limit = memory_swap_limit.or_else(|| self.swap_limit_for(memory_limit));
        self.memory_limit = memory_limit.or(self.memory_limit);
        self.pids_limit = pids_limit.or(self.pids_limit);
        if oom_score_adj != 0 {
            self.oom_score_adj = oom_score_adj;
        }
        for (own, new) in [(&mut self.cpuset_cpus, cpuset_cpus), (&mut self.cpuset_mems, cpuset_mems)] {
            if !new.is_empty() {
                *own = new;
            }
        }
        for (size, limit) in hugepages {
            self.hugepages.retain(|(own, _)| *own != size);
            self.hugepages.push((size, limit));
        }
        self.unified.extend(unified);
    }

    /// The sum of what containers may use and what their pod needs beside them.
    pub(crate) fn with_overhead(mut self, overhead: &Resources) -> Resources {
        let whole = |own: Option<i64>, more: Option<i64>| match (own, more) {
            (Some(own @ 1..), Some(more @ 1..)) => Some(own.saturating_add(more)),
            // Nothing is added to what has no limit.
            (own, _) => own,
        };
        self.memory_limit = whole(self.memory_limit, overhead.memory_limit);
        self.memory_swap_limit = whole(self.memory_swap_limit, overhead.memory_limit);
        if self.cpu_period == overhead.cpu_period || overhead.cpu_period.is_none() {
            self.cpu_quota = whole(self.cpu_quota, overhead.cpu_quota);
        }
        self.cpu_shares = self.cpu_shares.map(|own| own.saturating_add(overhead.cpu_shares.unwrap_or(0)));
        self
    }

    /// Most bytes in swap, as far as there is a limit.
    pub(crate) fn swap_limit(&self) -> Option<u64> {
        if let Some(swap) = self.unified.get("memory.swap.max") {
            return swap.trim().parse().ok();
        }
        match (self.memory_limit, self.memory_swap_limit) {
            (Some(memory @ 1..), Some(sum)) if sum >= memory => u64::try_from(sum - memory).ok(),
            // None is allowed unless it is asked for.
            (Some(1..), None) => Some(0),
            _ => None,
        }
    }

    /// The sum's limit once memory has another limit: what may be swapped stays the same.
    fn swap_limit_for(&self, memory_limit: Option<i64>) -> Option<i64> {
        match (self.memory_swap_limit, self.memory_limit, memory_limit) {
            (Some(sum @ 1..), Some(old @ 1..), Some(new @ 1..)) => Some(new.saturating_add(sum - old)),
            // Without a limit of memory there is none of the sum.
            (Some(1..), _, Some(..=0)) => None,
            (unchanged, _, _) => unchanged,
        }
    }
}

/// Who a container runs as and what it may do.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// Numeric user.
    pub run_as_user: Option<i64>,
    /// Numeric group; only together with a user.
    pub run_as_group: Option<i64>,
    /// `USER` or `USER:GROUP` by name or number; used when no number is given.
    pub run_as_username: String,
    /// More groups.
    pub supplemental_groups: Vec<i64>,
    /// Leaves out the groups that the image's `/etc/group` has for the user.
    pub strict_groups: bool,
    /// All capabilities, all devices, nothing masked, no seccomp.
    pub privileged: bool,
    /// The root file system may not be written.
    pub readonly_rootfs: bool,
    /// `exec` never gains privileges.
    pub no_new_privileges: bool,
    /// Added to the default set; `ALL` is understood.
    pub add_capabilities: Vec<String>,
    /// Taken from it; `ALL` is understood.
    pub drop_capabilities: Vec<String>,
    /// Added, and kept across exec for users other than root.
    pub ambient_capabilities: Vec<String>,
    /// Hidden paths; `None`: the default ones.
    pub masked_paths: Option<Vec<String>>,
    /// Paths that may not be written; `None`: the default ones.
    pub readonly_paths: Option<Vec<String>>,
    /// The system call filter.
    pub seccomp: SeccompProfile,
    /// The AppArmor profile.
    pub apparmor: AppArmorProfile,
    /// Process namespace; `None`: the pod's choice.
    pub pid: Option<PidMode>,
}

/// A system call filter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeccompProfile {
    /// The agent's allow-list.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// A profile in JSON on the host.
    Localhost(PathBuf),
}

/// An AppArmor profile.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppArmorProfile {
    /// `sampan-default` where it is loaded.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// One that is loaded on the host, by its name.
    Localhost(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_that_reach_the_host_are_refused() {
        let one = |name: &str, value: &str| check_sysctls(&[(name.to_owned(), value.to_owned())].into());
        for (name, value) in [("net.ipv4.ip_forward", "1"), ("kernel.shmmax", "1"), ("kernel.sem", "1 2 3 4")]
        {
            assert!(one(name, value).is_ok(), "{name}");
        }
        for (name, value) in [
            ("kernel.core_pattern", "|/x"),
            ("net.a+b", "1"),
            ("net.ipv4.x", "1\n2"),
            ("net/../kernel/core_pattern", "x"),
        ] {
            assert!(one(name, value).is_err(), "{name}");
        }
    }

    fn memory(limit: i64, sum: Option<i64>) -> Resources {
        Resources { memory_limit: Some(limit), memory_swap_limit: sum, ..Resources::default() }
    }

    #[test]
    fn overhead_is_added_to_what_has_a_limit() {
        let overhead = Resources { memory_limit: Some(10), cpu_shares: Some(2), ..Resources::default() };
        assert_eq!(memory(64, Some(96)).with_overhead(&overhead), memory(74, Some(106)));
        assert_eq!(memory(-1, None).with_overhead(&overhead), memory(-1, None));
        assert_eq!(Resources::default().with_overhead(&overhead), Resources::default());
    }

    #[test]
    fn swap_is_limited_by_the_sum_by_nothing_or_by_a_file_of_its_own() {
        assert_eq!(memory(64, Some(96)).swap_limit(), Some(32));
        assert_eq!(memory(64, None).swap_limit(), Some(0));
        assert_eq!(memory(64, Some(-1)).swap_limit(), None);
        assert_eq!(Resources::default().swap_limit(), None);
        let with = |value: &str| Resources {
            unified: [("memory.swap.max".to_owned(), value.to_owned())].into(),
            ..memory(64, None)
        };
        assert_eq!((with("1000").swap_limit(), with("max").swap_limit()), (Some(1000), None));
    }

    #[test]
    fn another_memory_limit_leaves_what_may_be_swapped() {
        for (before, after) in [
            (memory(64, Some(64)), memory(128, Some(128))),
            (memory(64, Some(96)), memory(128, Some(160))),
            (memory(256, Some(256)), memory(128, Some(128))),
            (memory(64, Some(-1)), memory(128, Some(-1))),
            (memory(64, None), memory(128, None)),
        ] {
            let mut resources = before;
            resources.merge(&memory(128, None));
            assert_eq!(resources, after);
        }
        let mut resources = memory(64, Some(64));
        resources.merge(&memory(-1, None));
        assert_eq!(resources, memory(-1, None));
        resources.merge(&memory(32, Some(40)));
        assert_eq!(resources, memory(32, Some(40)));
    }
}
