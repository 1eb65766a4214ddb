//! The specification as a table: what is asked for, and what must stand in it.

use oci_spec::image::ConfigBuilder;

use super::*;
use crate::pods::config::NetworkMode;
use crate::pods::config::{PodName, Resources};

fn pod() -> PodConfig {
    PodConfig {
        name: PodName { name: "p".into(), uid: "u".into(), namespace: "n".into(), attempt: 0 },
        hostname: String::new(),
        log_directory: None,
        dns: None,
        hosts: vec![],
        ports: vec![],
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        cgroup_parent: None,
        sysctls: BTreeMap::new(),
        network: NetworkMode::Pod,
        pid: PidMode::Container,
        host_ipc: false,
        users: None,
        resources: Resources::default(),
        privileged: false,
        runtime_handler: String::new(),
        auto_remove: false,
        standalone: false,
    }
}

fn container() -> ContainerConfig {
    ContainerConfig {
        name: "c".into(),
        attempt: 0,
        image: "busybox".into(),
        image_ref: "busybox".into(),
        command: vec![],
        args: vec![],
        working_dir: String::new(),
        env: vec![],
        mounts: vec![],
        volumes: vec![],
        devices: vec![],
        tmpfs: BTreeMap::new(),
        rlimits: vec![],
        cdi_devices: vec![],
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_path: String::new(),
        resources: Resources::default(),
        security: Security::default(),
        stop_signal: None,
        stdin: false,
        tty: false,
        stdin_once: false,
    }
}

fn image() -> oci_spec::image::Config {
    ConfigBuilder::default()
        .entrypoint(vec!["/entry".to_owned()])
        .cmd(vec!["arg".to_owned()])
        .env(vec!["PATH=/image".to_owned(), "A=image".to_owned()])
        .working_dir("/srv".to_owned())
        .build()
        .unwrap()
}

fn build_with(pod: &PodConfig, container: &ContainerConfig, user: &UserIds) -> Result<Spec> {
    build(&Input {
        pod,
        container,
        image: Some(&image()),
        user,
        home: Some("/root"),
        hostname: "h",
        rootfs: Path::new("/r"),
        cgroup: "/sampan/p/c",
        volumes: &[],
        pod_files: &[("/etc/hosts", "/state/hosts".into()), ("/dev/shm", "/state/shm".into())],
        devices: &[],
        default_apparmor: None,
        open_files: &Rlimit { current: Some(1000), maximum: Some(2000) },
    })
}

fn spec(container: &ContainerConfig) -> Spec {
    build_with(&pod(), container, &UserIds::default()).unwrap()
}

#[test]
fn open_files_are_those_of_the_agents_start_unless_the_container_says_otherwise() {
    let limits = |container: &ContainerConfig| {
        let process = spec(container).process().clone().unwrap();
        let limits = process.rlimits().clone().unwrap_or_default();
        limits.iter().map(|limit| (limit.typ(), limit.soft(), limit.hard())).collect::<Vec<_>>()
    };
    let limit =
        |kind, soft: u64| PosixRlimitBuilder::default().typ(kind).soft(soft).hard(soft).build().unwrap();
    let (files, core) = (PosixRlimitType::RlimitNofile, PosixRlimitType::RlimitCore);
    let with = |limits: &[PosixRlimit]| ContainerConfig { rlimits: limits.to_vec(), ..container() };
    assert_eq!(limits(&container()), [(files, 1000, 2000)]);
    assert_eq!(limits(&with(&[limit(core, 5)])), [(core, 5, 5), (files, 1000, 2000)]);
    assert_eq!(limits(&with(&[limit(files, 5)])), [(files, 5, 5)]);
}

#[test]
fn command_and_arguments_replace_the_images_as_in_kubernetes() {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for (command, args, expected) in
        [("", "", "/entry arg"), ("", "x y", "/entry x y"), ("/c", "", "/c"), ("/c", "x", "/c x")]
    {
        let container = ContainerConfig { command: words(command), args: words(args), ..container() };
        let process = spec(&container).process().clone().unwrap();
        assert_eq!(process.args().as_ref().unwrap(), &words(expected), "{command:?} {args:?}");
    }
}

#[test]
fn no_command_at_all_is_refused_with_the_images_name() {
    let error = argv(&container(), None).unwrap_err();
    assert!(error.to_string().contains("busybox"), "{error}");
}

#[test]
fn the_requests_environment_beats_the_images() {
    let container =
        ContainerConfig { env: vec![("A".into(), "mine".into()), ("B".into(), "=".into())], ..container() };
    let process = spec(&container).process().clone().unwrap();
    let expected = ["PATH=/image", "HOSTNAME=h", "HOME=/root", "A=mine", "B=="];
    assert_eq!(process.env().as_ref().unwrap(), &expected);
    assert_eq!(process.cwd(), Path::new("/srv"));
}

#[test]
fn capabilities_follow_add_and_drop() {
    let set = |add: &[&str], drop: &[&str]| {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        capabilities(&Security {
            add_capabilities: names(add),
            drop_capabilities: names(drop),
            ..Security::default()
        })
    };
    assert_eq!(set(&[], &[]).unwrap().len(), 9);
    assert_eq!(set(&[], &["ALL"]).unwrap().len(), 0);
    assert_eq!(set(&["NET_ADMIN"], &["all"]).unwrap(), HashSet::from([Capability::NetAdmin]));
    assert_eq!(set(&["CAP_SYS_TIME"], &["CHOWN"]).unwrap().len(), 9);
    assert_eq!(set(&["ALL"], &["SYS_ADMIN"]).unwrap().len(), 40);
    assert!(set(&["FLY"], &[]).unwrap_err().to_string().contains("FLY"));
}

#[test]
fn only_root_holds_capabilities_from_the_start() {
    let user = UserIds { uid: 1000, gid: 1000, groups: vec![] };
    let spec = build_with(&pod(), &container(), &user).unwrap();
    let held = spec.process().clone().unwrap().capabilities().clone().unwrap();
    assert_eq!(held.bounding().as_ref().unwrap().len(), 9);
    assert!(held.effective().as_ref().unwrap().is_empty());
    assert!(held.inheritable().as_ref().unwrap().is_empty());
    assert!(held.ambient().as_ref().unwrap().is_empty());
}

fn mount_at(path: &str, readonly: bool) -> MountConfig {
    MountConfig {
        options: Vec::new(),
        owners: None,
        image: None,
        container_path: path.into(),
        host_path: "/h".into(),
        source: None,
        relabel: false,
        readonly,
        recursive_readonly: false,
        propagation: Propagation::Private,
    }
}

#[test]
fn requested_mounts_come_sorted_and_hide_the_pods_files() {
    let container = ContainerConfig {
        mounts: vec![mount_at("/a/b", true), mount_at("/a", false), mount_at("/etc/hosts", false)],
        ..container()
    };
    let spec = spec(&container);
    let mounts = spec.mounts().as_ref().unwrap();
    let at = |path: &str| mounts.iter().position(|m| m.destination() == Path::new(path)).unwrap();
    assert!(at("/a") < at("/a/b"));
    assert!(mounts[at("/a/b")].options().as_ref().unwrap().contains(&"ro".to_owned()));
    let hosts: Vec<_> = mounts.iter().filter(|m| m.destination() == Path::new("/etc/hosts")).collect();
    assert_eq!(hosts.len(), 1);
    assert_eq!(hosts[0].source().as_deref(), Some(Path::new("/h")));
}

#[test]
fn volumes_do_not_hide_the_pods_own_files() {
    let container =
        ContainerConfig { mounts: vec![mount_at("/etc", false), mount_at("/dev", false)], ..container() };
    let spec = spec(&container);
    let mounts = spec.mounts().as_ref().unwrap();
    let last = |path: &str| mounts.iter().rposition(|m| m.destination() == Path::new(path)).unwrap();
    assert!(last("/etc") < last("/etc/hosts"));
    assert!(last("/dev") < last("/dev/shm"));
}

#[test]
fn privileged_masks_nothing_and_allows_every_device() {
    let security = Security { privileged: true, ..Security::default() };
    let spec = spec(&ContainerConfig { security, ..container() });
    let linux = spec.linux().clone().unwrap();
    assert!(linux.masked_paths().as_ref().unwrap().is_empty());
    let rules = linux.resources().clone().unwrap().devices().clone().unwrap();
    assert!(rules.len() == 1 && rules[0].allow());
}

#[test]
fn a_memory_limit_allows_no_swap_beyond_it() {
    let resources = Resources { memory_limit: Some(64 << 20), ..Resources::default() };
    let spec = spec(&ContainerConfig { resources, ..container() });
    let memory = spec.linux().clone().unwrap().resources().clone().unwrap().memory().unwrap();
    assert_eq!((memory.limit(), memory.swap()), (Some(64 << 20), Some(64 << 20)));
}

#[test]
fn a_shared_process_namespace_is_not_made_again() {
    let kinds = |pid| {
        let pod = PodConfig { pid, ..pod() };
        let spec = build_with(&pod, &container(), &UserIds::default()).unwrap();
        let namespaces = spec.linux().clone().unwrap().namespaces().clone().unwrap();
        namespaces.iter().map(|namespace| namespace.typ()).collect::<Vec<_>>()
    };
    assert!(kinds(PidMode::Container).contains(&LinuxNamespaceType::Pid));
    assert!(!kinds(PidMode::Pod).contains(&LinuxNamespaceType::Pid));
    assert!(!kinds(PidMode::Host).contains(&LinuxNamespaceType::Pid));
}

#[test]
fn side_channels_of_every_processor_are_masked() {
    let processors = tempfile::tempdir().unwrap();
    for folder in
        ["cpu0/thermal_throttle", "cpu11/thermal_throttle", "cpu2/topology", "cpufreq/thermal_throttle"]
    {
        std::fs::create_dir_all(processors.path().join(folder)).unwrap();
    }
    let masked = masked_paths(processors.path());
    let of = |name: &str| processors.path().join(name).to_str().unwrap().to_owned();
    let (fixed, found) = masked.split_at(MASKED_PATHS.len());
    assert!(fixed.iter().any(|path| path == "/sys/devices/virtual/powercap"));
    assert_eq!(found, [of("cpu0/thermal_throttle"), of("cpu11/thermal_throttle")]);
    assert_eq!(masked_paths(Path::new("/nonexistent")).len(), MASKED_PATHS.len());
}
