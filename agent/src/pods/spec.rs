//! Pod, container and image → OCI runtime specification. A pure function: no file is read and nothing is done.
//!
//! The specification it makes is 1.2; defaults are those of `docs/decisions` (strict capabilities, everything
//! known to leak masked, cgroups read-only). What needs the image's files (users) was resolved before.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
};

use oci_spec::runtime::{
    Capability, Linux, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxCpuBuilder,
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    LinuxHugepageLimitBuilder, LinuxIdMapping, LinuxIdMappingBuilder, LinuxMemoryBuilder, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
    Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder,
    RootBuilder, Spec, SpecBuilder, User, UserBuilder,
};
use rustix::process::Rlimit;

use super::config::{
    AppArmorProfile, ContainerConfig, IdRun, MountConfig, PidMode, PodConfig, Propagation, Resources,
    Security,
};
use super::record::UserIds;
use crate::error::{Error, Result};

/// What a specification is made of.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    pub(crate) pod: &'a PodConfig,
    pub(crate) container: &'a ContainerConfig,
    pub(crate) image: Option<&'a oci_spec::image::Config>,
    pub(crate) user: &'a UserIds,
    /// The user's home, for `HOME`.
    pub(crate) home: Option<&'a str>,
    pub(crate) hostname: &'a str,
    /// The mounted root file system.
    pub(crate) rootfs: &'a Path,
    pub(crate) cgroup: &'a str,
    /// Files of the pod that appear in `/etc`, by their place in the container, and its `/dev/shm`.
    pub(crate) pod_files: &'a [(&'static str, PathBuf)],
    /// Anonymous volumes.
    pub(crate) volumes: &'a [MountConfig],
    /// Devices of the host, with their numbers looked up.
    pub(crate) devices: &'a [HostDevice],
    /// The default AppArmor profile, if it is loaded.
    pub(crate) default_apparmor: Option<&'a str>,
    /// How many files each process may have open, unless the container says otherwise.
    pub(crate) open_files: &'a Rlimit,
}

/// A host device and its numbers.
#[derive(Debug, Clone)]
pub(crate) struct HostDevice {
    pub(crate) path: PathBuf,
    pub(crate) block: bool,
    pub(crate) major: i64,
    pub(crate) minor: i64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) permissions: String,
}

/// The strictest default of the runtimes in use.
const DEFAULT_CAPABILITIES: [Capability; 9] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::Kill,
];

const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// A folder for each processor, and in it what tells how hot it is: a way to see what others compute.
const PROCESSORS: &str = "/sys/devices/system/cpu";

fn masked_paths(processors: &Path) -> Vec<String> {
    let of_processor = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let number = entry.file_name().to_str()?.strip_prefix("cpu")?.to_owned();
        let path = entry.path().join("thermal_throttle");
        let is_one = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        (is_one && path.is_dir()).then(|| path.to_str().map(str::to_owned)).flatten()
    };
    // A machine that tells nothing of its processors has nothing there to be masked.
    let mut throttles: Vec<String> =
        std::fs::read_dir(processors).into_iter().flatten().filter_map(of_processor).collect();
    throttles.sort();
    MASKED_PATHS.iter().map(|path| (*path).to_owned()).chain(throttles).collect()
}

const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Builds the specification.
///
/// # Errors
/// No command to run, a capability that does not exist, or a path that is not absolute.
pub(crate) fn build(input: &Input<'_>) -> Result<Spec> {
    let security = &input.container.security;
    let root = RootBuilder::default().path(input.rootfs).readonly(security.readonly_rootfs).build();
    let mut spec = SpecBuilder::default()
        .version("1.2.0")
        .root(root.map_err(internal)?)
        .process(process(input)?)
        .mounts(mounts(input)?)
        .linux(linux(input)?)
        .annotations(input.container.annotations.clone().into_iter().collect::<HashMap<_, _>>())
        .build()
        .map_err(internal)?;
    // Names are the pod's, as its UTS namespace is; the builder has an idea of its own.
    spec.set_hostname(None).set_domainname(None);
    Ok(spec)
}

/// The command line: the request's command and arguments over the image's entrypoint and command, as
/// Kubernetes has it: a command given without arguments drops the image's arguments too.
pub(crate) fn argv(
    container: &ContainerConfig,
    image: Option<&oci_spec::image::Config>,
) -> Result<Vec<String>> {
    let entrypoint = image.and_then(|image| image.entrypoint().clone()).unwrap_or_default();
    let cmd = image.and_then(|image| image.cmd().clone()).unwrap_or_default();
    let (first, rest) = match (container.command.is_empty(), container.args.is_empty()) {
        (false, _) => (&container.command, &container.args),
        (true, false) => (&entrypoint, &container.args),
        (true, true) => (&entrypoint, &cmd),
    };
    let argv: Vec<String> = first.iter().chain(rest).cloned().collect();
    if argv.first().is_none_or(String::is_empty) {
        return Err(Error::Invalid(format!(
            "container {:?} has no command: image {:?} sets neither entrypoint nor command, and the request gives none",
            container.name, container.image
        )));
    }
    Ok(argv)
}

/// The capabilities of a container: the default set, with the request's additions and removals.
pub(crate) fn capabilities(security: &Security) -> Result<HashSet<Capability>> {
    if security.privileged {
        return Ok(all_capabilities());
    }
    let mut set: HashSet<Capability> = DEFAULT_CAPABILITIES.into_iter().collect();
    if security.drop_capabilities.iter().any(|name| name.eq_ignore_ascii_case("ALL")) {
        set.clear();
    }
    if security.add_capabilities.iter().any(|name| name.eq_ignore_ascii_case("ALL")) {
        set.extend(all_capabilities());
    }
    for name in security.drop_capabilities.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")) {
        set.remove(&capability(name)?);
    }
    for name in security.add_capabilities.iter().chain(&security.ambient_capabilities) {
        if !name.eq_ignore_ascii_case("ALL") {
            set.insert(capability(name)?);
        }
    }
    Ok(set)
}

fn capability(name: &str) -> Result<Capability> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    bare.parse().map_err(|_| Error::Invalid(format!("there is no capability {name:?}")))
}

fn all_capabilities() -> HashSet<Capability> {
    use Capability::*;
    HashSet::from([
        AuditControl,
        AuditRead,
        AuditWrite,
        BlockSuspend,
        Bpf,
        CheckpointRestore,
        Chown,
        DacOverride,
        DacReadSearch,
        Fowner,
        Fsetid,
        IpcLock,
        IpcOwner,
        Kill,
        Lease,
        LinuxImmutable,
        MacAdmin,
        MacOverride,
        Mknod,
        NetAdmin,
        NetBindService,
        NetBroadcast,
        NetRaw,
        Perfmon,
        Setfcap,
        Setgid,
        Setpcap,
        Setuid,
        SysAdmin,
        SysBoot,
        SysChroot,
        SysModule,
        SysNice,
        SysPacct,
        SysPtrace,
        SysRawio,
        SysResource,
        SysTime,
        SysTtyConfig,
        Syslog,
        WakeAlarm,
    ])
}

fn process(input: &Input<'_>) -> Result<Process> {
    let container = input.container;
    let argv = argv(container, input.image)?;
    let image_dir = input.image.and_then(|image| image.working_dir().clone()).unwrap_or_default();
    let cwd = [container.working_dir.as_str(), image_dir.as_str(), "/"];
    let cwd = cwd.into_iter().find(|dir| !dir.is_empty()).unwrap_or("/");
    if !cwd.starts_with('/') {
        return Err(Error::Invalid(format!("the working directory {cwd:?} is not an absolute path")));
    }
    let builder = ProcessBuilder::default()
        .terminal(container.tty)
        .user(user(input.user)?)
        .args(argv)
        .env(environment(input)?)
        .cwd(cwd)
        .capabilities(process_capabilities(input)?)
        .oom_score_adj(i32::try_from(container.resources.oom_score_adj).unwrap_or(0).clamp(-1000, 1000))
        .no_new_privileges(container.security.no_new_privileges);
    let builder = match apparmor(input) {
        Some(profile) => builder.apparmor_profile(profile),
        None => builder,
    };
    builder.rlimits(rlimits(input)?).build().map_err(internal)
}

/// The container's own, and for open files what the agent was started with: the agent's own limit is for an agent.
fn rlimits(input: &Input<'_>) -> Result<Vec<PosixRlimit>> {
    let mut limits = input.container.rlimits.clone();
    if let Rlimit { current: Some(soft), maximum: Some(hard) } = *input.open_files
        && limits.iter().all(|limit| limit.typ() != PosixRlimitType::RlimitNofile)
    {
        let limit = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(soft).hard(hard);
        limits.push(limit.build().map_err(internal)?);
    }
    Ok(limits)
}

/// A privileged container is confined by what it names and by nothing else.
fn apparmor<'a>(input: &Input<'a>) -> Option<&'a str> {
    match &input.container.security.apparmor {
        AppArmorProfile::Localhost(name) => Some(name),
        AppArmorProfile::Unconfined => None,
        AppArmorProfile::Default => input.default_apparmor.filter(|_| !input.container.security.privileged),
    }
}

fn user(ids: &UserIds) -> Result<User> {
    UserBuilder::default()
        .uid(ids.uid)
        .gid(ids.gid)
        .additional_gids(ids.groups.clone())
        .build()
        .map_err(internal)
}

/// PATH, HOSTNAME and HOME first, then the image's variables, then the request's; a later one replaces an
/// earlier one in its place.
fn environment(input: &Input<'_>) -> Result<Vec<String>> {
    let mut env: Vec<String> = vec![DEFAULT_PATH.into(), format!("HOSTNAME={}", input.hostname)];
    if input.container.tty {
        env.push("TERM=xterm".into());
    }
    let mut set = |pair: String| {
        let name = pair.split('=').next().unwrap_or_default();
        let same = |other: &&mut String| other.split('=').next() == Some(name);
        match env.iter_mut().find(same) {
            Some(place) => *place = pair.clone(),
            None => env.push(pair.clone()),
        }
    };
    set(format!("HOME={}", input.home.unwrap_or("/")));
    for pair in input.image.and_then(|image| image.env().clone()).unwrap_or_default() {
        set(pair);
    }
    for (name, value) in &input.container.env {
        set(format!("{name}={value}"));
    }
    // Tools write it into files of lines (CVE-2022-4318).
    match env.iter().find(|pair| pair.starts_with("HOME=") && pair.contains(['\n', '\r'])) {
        Some(home) => {
            Err(Error::Invalid(format!("{home:?} has a line end, which no directory's name may have")))
        }
        None => Ok(env),
    }
}

/// Root gets the set at once; another user can reach it through files with capabilities only, as in Docker,
/// except for what is ambient.
fn process_capabilities(input: &Input<'_>) -> Result<LinuxCapabilities> {
    let security = &input.container.security;
    let set = capabilities(security)?;
    let ambient: HashSet<Capability> =
        security.ambient_capabilities.iter().map(|name| capability(name)).collect::<Result<_>>()?;
    let held = if input.user.uid == 0 { set.clone() } else { ambient.clone() };
    LinuxCapabilitiesBuilder::default()
        .bounding(set)
        .effective(held.clone())
        .permitted(held)
        .inheritable(ambient.clone())
        .ambient(ambient)
        .build()
        .map_err(internal)
}

fn mount(destination: impl AsRef<Path>, typ: &str, source: &str, options: &[&str]) -> Result<Mount> {
    MountBuilder::default()
        .destination(destination.as_ref())
        .typ(typ)
        .source(source)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
        .map_err(internal)
}

fn mounts(input: &Input<'_>) -> Result<Vec<Mount>> {
    let privileged = input.container.security.privileged;
    let ro = if privileged { "rw" } else { "ro" };
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        // One of the container's own also where it has the host's network: beneath the host's lie debugfs and others,
        // which a bind mount would bring along.
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", ro])?,
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", ro])?,
    ];
    if input.pod.users.is_some() && input.pod.network == super::config::NetworkMode::Host {
        // Only who owns a network namespace may mount its sysfs. What lies beneath the host's is closed with it.
        all[4] = mount("/sys", "bind", "/sys", &["rbind", "nosuid", "noexec", "nodev", "rro"])?;
    }
    // Parents before children, whatever order the request has them in, and the pod's own files in what it has at /etc or /dev.
    let mut wanted: BTreeMap<&Path, Mount> = BTreeMap::new();
    for (destination, source) in input.pod_files {
        let mut options = vec!["rbind", "nosuid", "nodev"];
        match *destination {
            "/dev/shm" => options.push("noexec"),
            // What the image's own files would be.
            _ if input.container.security.readonly_rootfs => options.push("ro"),
            _ => {}
        }
        if input.pod.users.is_some() {
            // They are the host root's on the host, and are the pod's root's there.
            options.push("ridmap");
        }
        let file = mount(destination, "bind", &source.to_string_lossy(), &options)?;
        wanted.insert(Path::new(destination), file);
    }
    for request in input.volumes.iter().chain(&input.container.mounts) {
        wanted.insert(&request.container_path, bind(request)?);
    }
    for (path, options) in &input.container.tmpfs {
        wanted.insert(path, memory(path, options)?);
    }
    all.extend(wanted.into_values());
    Ok(all)
}

fn memory(path: &Path, options: &[String]) -> Result<Mount> {
    absolute(path)?;
    let usual = ["noexec", "nosuid", "nodev"];
    let options: Vec<&str> = usual.into_iter().chain(options.iter().map(String::as_str)).collect();
    mount(path, "tmpfs", "tmpfs", &options)
}

fn absolute(path: &Path) -> Result<()> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(Error::Invalid(format!("the mount path {path:?} is not absolute")))
}

fn bind(request: &MountConfig) -> Result<Mount> {
    absolute(&request.container_path)?;
    let propagation = match request.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match (request.readonly, request.recursive_readonly) {
        (true, true) => Some("rro"),
        (true, false) => Some("ro"),
        // Not "rw", which would open what the host has mounted read-only.
        (false, _) => None,
    };
    let own = ["rbind", propagation].into_iter().chain(access).map(str::to_owned);
    let builder = MountBuilder::default()
        .destination(&request.container_path)
        .typ("bind")
        .source(request.source.as_ref().unwrap_or(&request.host_path))
        .options(own.chain(request.options.iter().cloned()).collect::<Vec<_>>());
    let builder = match &request.owners {
        // An image's layers were given the pod's users as they were mounted; the overlay of them can't be.
        Some(owners) if request.image.is_none() => {
            builder.uid_mappings(runs(&owners.uids)?).gid_mappings(runs(&owners.gids)?)
        }
        _ => builder,
    };
    builder.build().map_err(internal)
}

fn runs(runs: &[IdRun]) -> Result<Vec<LinuxIdMapping>> {
    let mapping = |run: &IdRun| {
        LinuxIdMappingBuilder::default()
            .host_id(run.outside)
            .container_id(run.inside)
            .size(run.length)
            .build()
            .map_err(internal)
    };
    runs.iter().map(mapping).collect()
}

fn linux(input: &Input<'_>) -> Result<Linux> {
    let security = &input.container.security;
    let or_default = |asked: &Option<Vec<String>>, default: fn() -> Vec<String>| match asked {
        _ if security.privileged => Vec::new(),
        Some(paths) => paths.clone(),
        None => default(),
    };
    let shared = input.container.mounts.iter().any(|mount| mount.propagation == Propagation::Bidirectional);
    let slave = input.container.mounts.iter().any(|mount| mount.propagation == Propagation::HostToContainer);
    let propagation = match (shared, slave) {
        (true, _) => "rshared",
        (false, true) => "rslave",
        (false, false) => "rprivate",
    };
    LinuxBuilder::default()
        .namespaces(namespaces(input)?)
        .resources(resources(input)?)
        .cgroups_path(input.cgroup)
        .devices(devices(input)?)
        .masked_paths(or_default(&security.masked_paths, || masked_paths(Path::new(PROCESSORS))))
        .readonly_paths(or_default(&security.readonly_paths, || READONLY_PATHS.map(str::to_owned).to_vec()))
        .rootfs_propagation(propagation)
        .build()
        .map_err(internal)
}

/// Mount and cgroup namespaces are the container's own; network, IPC and UTS are those its monitor lives in.
fn namespaces(input: &Input<'_>) -> Result<Vec<LinuxNamespace>> {
    let mut kinds = vec![LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup];
    if pid_mode(input.pod, input.container) == PidMode::Container {
        kinds.push(LinuxNamespaceType::Pid);
    }
    let new = |kind| LinuxNamespaceBuilder::default().typ(kind).build().map_err(internal);
    kinds.into_iter().map(new).collect()
}

/// Whose processes a container sees: its own choice, else its pod's.
pub(crate) fn pid_mode(pod: &PodConfig, container: &ContainerConfig) -> PidMode {
    container.security.pid.clone().unwrap_or_else(|| pod.pid.clone())
}

fn resources(input: &Input<'_>) -> Result<LinuxResources> {
    let mut resources = limits(&input.container.resources)?;
    resources.set_devices(Some(device_rules(input)?));
    Ok(resources)
}

/// All limits but those of devices.
pub(crate) fn limits(asked: &Resources) -> Result<LinuxResources> {
    let mut builder = LinuxResourcesBuilder::default();
    let mut cpu = LinuxCpuBuilder::default();
    if let Some(period) = asked.cpu_period {
        cpu = cpu.period(period);
    }
    if let Some(quota) = asked.cpu_quota {
        cpu = cpu.quota(quota);
    }
    if let Some(shares) = asked.cpu_shares {
        cpu = cpu.shares(shares);
    }
    if !asked.cpuset_cpus.is_empty() {
        cpu = cpu.cpus(&*asked.cpuset_cpus);
    }
    if !asked.cpuset_mems.is_empty() {
        cpu = cpu.mems(&*asked.cpuset_mems);
    }
    builder = builder.cpu(cpu.build().map_err(internal)?);
    if let (None, Some(1..)) = (asked.memory_limit, asked.memory_swap_limit) {
        return Err(Error::Invalid(
            "a limit of memory and swap together needs a limit of memory too: memory_limit_in_bytes is not set".into(),
        ));
    }
    if let Some(limit) = asked.memory_limit {
        // No swap beyond the limit unless it is asked for, as kubelet and Kubernetes' users expect.
        let swap = asked.memory_swap_limit.unwrap_or(limit);
        let memory = LinuxMemoryBuilder::default().limit(limit).swap(swap).build().map_err(internal)?;
        builder = builder.memory(memory);
    }
    if let Some(limit) = asked.pids_limit {
        builder = builder.pids(LinuxPidsBuilder::default().limit(limit).build().map_err(internal)?);
    }
    if !asked.hugepages.is_empty() {
        let limit = |(size, limit): &(String, u64)| {
            LinuxHugepageLimitBuilder::default()
                .page_size(size)
                .limit(i64::try_from(*limit).unwrap_or(i64::MAX))
                .build()
                .map_err(internal)
        };
        builder = builder.hugepage_limits(asked.hugepages.iter().map(limit).collect::<Result<Vec<_>>>()?);
    }
    if !asked.unified.is_empty() {
        builder = builder.unified(asked.unified.clone().into_iter().collect::<HashMap<_, _>>());
    }
    builder.build().map_err(internal)
}

/// Deny all, then allow making any node and using the harmless ones; the runtime adds its own defaults' nodes.
fn device_rules(input: &Input<'_>) -> Result<Vec<LinuxDeviceCgroup>> {
    use LinuxDeviceType::{A, B, C};
    let rule = |allow, typ, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut builder = LinuxDeviceCgroupBuilder::default().allow(allow).typ(typ).access(access);
        if let Some(major) = major {
            builder = builder.major(major);
        }
        if let Some(minor) = minor {
            builder = builder.minor(minor);
        }
        builder.build().map_err(internal)
    };
    if input.container.security.privileged {
        return Ok(vec![rule(true, A, None, None, "rwm")?]);
    }
    let mut rules = vec![
        rule(false, A, None, None, "rwm")?,
        rule(true, C, None, None, "m")?,
        rule(true, B, None, None, "m")?,
        rule(true, C, Some(1), Some(3), "rwm")?,
        rule(true, C, Some(1), Some(5), "rwm")?,
        rule(true, C, Some(1), Some(7), "rwm")?,
        rule(true, C, Some(1), Some(8), "rwm")?,
        rule(true, C, Some(1), Some(9), "rwm")?,
        rule(true, C, Some(5), Some(0), "rwm")?,
        rule(true, C, Some(5), Some(2), "rwm")?,
        rule(true, C, Some(136), None, "rwm")?,
    ];
    for device in input.devices {
        let typ = if device.block { B } else { C };
        rules.push(rule(true, typ, Some(device.major), Some(device.minor), &device.permissions)?);
    }
    Ok(rules)
}

fn devices(input: &Input<'_>) -> Result<Vec<LinuxDevice>> {
    let node = |device: &HostDevice| {
        LinuxDeviceBuilder::default()
            .path(&device.path)
            .typ(if device.block { LinuxDeviceType::B } else { LinuxDeviceType::C })
            .major(device.major)
            .minor(device.minor)
            .file_mode(device.mode)
            .uid(device.uid)
            .gid(device.gid)
            .build()
            .map_err(internal)
    };
    input.devices.iter().map(node).collect()
}

fn internal(error: oci_spec::OciSpecError) -> Error {
    Error::Internal(format!("build the specification: {error}"))
}

#[cfg(test)]
mod tests;
