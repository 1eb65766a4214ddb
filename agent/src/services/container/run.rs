//! `Run`: a pod with one container, whole or not at all.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType};
use sampan_proto::sampan;

use super::name;
use crate::{
    error::{Error, Result},
    network::{PortMapping, Protocol},
    pods::{
        Pods,
        config::{
            AppArmorProfile, CPU_PERIOD, ContainerConfig, DeviceConfig, Dns, MountConfig, NetworkMode,
            PidMode, PodConfig, PodName, Propagation, Resources, SeccompProfile, Security, check_sysctls,
            environment_variable, host,
        },
        signal, storage,
    },
};

/// The namespace of pods that people run by hand.
const NAMESPACE: &str = "sampan";

pub(super) async fn run(pods: &Pods, request: sampan::RunRequest) -> Result<sampan::RunResponse> {
    let name = if request.name.is_empty() { name::random() } else { checked_name(&request.name)? };
    let store = &pods.context().store;
    // Before anything is made: the commonest mistake costs nothing.
    let image = store
        .find(&request.image)?
        .ok_or_else(|| Error::NotFound { object: "image", id: request.image.clone() })?;
    let mut container_config = container(&name, &request)?;
    container_config.image_ref = image.id.to_string();
    let id = pods.run(pod(&name, &request)?).await?;
    let result = async {
        let container = pods.create_container(&id, container_config).await?;
        if !request.create_only {
            pods.start_container(&pods.find_container(container.as_str())?).await?;
        }
        Ok(container)
    };
    match result.await {
        Ok(container) => Ok(sampan::RunResponse {
            container_id: container.to_string(),
            pod_sandbox_id: id.to_string(),
            name,
        }),
        Err(error) => {
            if let Err(left) = pods.remove(&id).await {
                tracing::warn!(sandbox.id = %id, error = %left.chain(), "remains of a failed run are left");
            }
            Err(error)
        }
    }
}

/// What docker allows: letters and digits, then `_`, `.` and `-` too.
fn checked_name(name: &str) -> Result<String> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if first && rest && name.len() <= 128 {
        return Ok(name.to_owned());
    }
    Err(Error::Invalid(format!(
        "the name {name:?} does not start with a letter or digit and go on with letters, digits, '_', '.' and '-'"
    )))
}

fn pod(name: &str, request: &sampan::RunRequest) -> Result<PodConfig> {
    let sysctls = request.sysctls.clone().into_iter().collect();
    check_sysctls(&sysctls)?;
    Ok(PodConfig {
        name: PodName { name: name.to_owned(), uid: String::new(), namespace: NAMESPACE.into(), attempt: 0 },
        hostname: request.hostname.clone(),
        log_directory: None,
        dns: dns(&request.dns_servers)?,
        hosts: request.add_hosts.iter().map(|text| host(text)).collect::<Result<_>>()?,
        ports: request.ports.iter().map(port).collect::<Result<_>>()?,
        labels: request.labels.clone().into_iter().collect(),
        annotations: BTreeMap::new(),
        cgroup_parent: None,
        sysctls,
        network: match request.network() {
            sampan::NetworkMode::Bridge => NetworkMode::Pod,
            sampan::NetworkMode::None => NetworkMode::None,
            sampan::NetworkMode::Host => NetworkMode::Host,
        },
        pid: if request.host_pid { PidMode::Host } else { PidMode::Container },
        host_ipc: false,
        users: None,
        resources: Resources::default(),
        privileged: request.privileged,
        runtime_handler: String::new(),
        auto_remove: request.auto_remove,
        standalone: true,
    })
}

/// Name servers in place of the host's.
fn dns(servers: &[String]) -> Result<Option<Dns>> {
    for server in servers {
        let address = server.parse::<IpAddr>();
        address.map_err(|_| Error::Invalid(format!("the name server {server:?} is no address")))?;
    }
    Ok((!servers.is_empty()).then(|| Dns { servers: servers.to_vec(), ..Dns::default() }))
}

fn port(port: &sampan::PublishedPort) -> Result<PortMapping> {
    let number = |what: &str, number: u32| {
        let fitting = u16::try_from(number).ok().filter(|number| *number != 0);
        fitting.ok_or_else(|| Error::Invalid(format!("{what} {number} is not 1 to 65535")))
    };
    Ok(PortMapping {
        protocol: match port.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => return Err(Error::Invalid(format!("the protocol {other:?} is not tcp, udp or sctp"))),
        },
        host_ip: match port.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| Error::Invalid(format!("{text:?} is no address")))?),
        },
        host_port: number("host port", port.host_port)?,
        container_port: number("container port", port.container_port)?,
    })
}

fn container(name: &str, request: &sampan::RunRequest) -> Result<ContainerConfig> {
    let positive = |number: i64| (number > 0).then_some(number);
    let (named, anonymous): (Vec<_>, Vec<_>) =
        request.volumes.iter().partition(|volume| !volume.source.is_empty());
    let stop_signal = match request.stop_signal.as_str() {
        "" => None,
        text => {
            Some(signal::parse(text).ok_or_else(|| Error::Invalid(format!("there is no signal {text:?}")))?)
        }
    };
    let quota = positive(request.cpu_millis).map(|millis| millis * CPU_PERIOD.cast_signed() / 1000);
    Ok(ContainerConfig {
        name: name.to_owned(),
        attempt: 0,
        image: request.image.clone(),
        image_ref: request.image.clone(),
        command: request.entrypoint.clone(),
        args: request.args.clone(),
        working_dir: request.working_dir.clone(),
        env: request.env.iter().map(|pair| environment_variable(pair)).collect::<Result<_>>()?,
        mounts: named.into_iter().map(volume).collect::<Result<_>>()?,
        volumes: anonymous.into_iter().map(anonymous_volume).collect::<Result<_>>()?,
        devices: request.devices.iter().map(device).collect::<Result<_>>()?,
        tmpfs: request.tmpfs.iter().map(tmpfs).collect::<Result<_>>()?,
        rlimits: request.ulimits.iter().map(rlimit).collect::<Result<_>>()?,
        cdi_devices: vec![],
        labels: request.labels.clone().into_iter().collect(),
        annotations: positive(request.storage_bytes)
            .map(|bytes| (storage::ANNOTATION.to_owned(), bytes.to_string()))
            .into_iter()
            .collect(),
        log_path: "container.log".into(),
        resources: Resources {
            cpu_period: quota.map(|_| CPU_PERIOD),
            cpu_quota: quota,
            cpu_shares: (request.cpu_shares > 0).then_some(request.cpu_shares),
            memory_limit: positive(request.memory_bytes),
            memory_swap_limit: swap(request)?,
            cpuset_cpus: request.cpuset_cpus.clone(),
            cpuset_mems: request.cpuset_mems.clone(),
            pids_limit: positive(request.pids_limit),
            ..Resources::default()
        },
        security: Security {
            run_as_username: request.user.clone(),
            privileged: request.privileged,
            readonly_rootfs: request.read_only_rootfs,
            no_new_privileges: request.no_new_privileges.unwrap_or(!request.privileged),
            add_capabilities: request.add_capabilities.clone(),
            drop_capabilities: request.drop_capabilities.clone(),
            seccomp: match request.seccomp.as_str() {
                "" => SeccompProfile::Default,
                "unconfined" => SeccompProfile::Unconfined,
                path => {
                    absolute("seccomp profile", [&request.seccomp])?;
                    SeccompProfile::Localhost(path.into())
                }
            },
            apparmor: match request.apparmor.as_str() {
                "" => AppArmorProfile::Default,
                "unconfined" => AppArmorProfile::Unconfined,
                name => AppArmorProfile::Localhost(name.to_owned()),
            },
            ..Security::default()
        },
        stop_signal,
        stdin: request.stdin,
        tty: request.tty,
        stdin_once: request.stdin,
    })
}

/// The limit of memory and swap together, which has to leave room for the memory.
fn swap(request: &sampan::RunRequest) -> Result<Option<i64>> {
    match (request.memory_swap_bytes, request.memory_bytes) {
        (0, _) => Ok(None),
        (-1, _) => Ok(Some(-1)),
        (_, ..=0) => Err(Error::Invalid("a limit of memory and swap needs one of memory".to_owned())),
        (sum, memory) if sum < memory => {
            Err(Error::Invalid(format!("memory and swap together, {sum}, are less than memory, {memory}")))
        }
        (sum, _) => Ok(Some(sum)),
    }
}

fn device(device: &sampan::Device) -> Result<DeviceConfig> {
    absolute("device", [&device.source, &device.destination])?;
    let sampan::Device { source, destination, permissions } = device.clone();
    DeviceConfig::new(source, destination, permissions)
}

fn absolute<'a>(what: &str, paths: impl IntoIterator<Item = &'a String>) -> Result<()> {
    match paths.into_iter().find(|path| !path.starts_with('/')) {
        Some(path) => Err(Error::Invalid(format!("the {what}'s path {path:?} is not absolute"))),
        None => Ok(()),
    }
}

fn anonymous_volume(volume: &sampan::Volume) -> Result<PathBuf> {
    absolute("volume", [&volume.destination])?;
    let path = PathBuf::from(&volume.destination);
    let problem = match path.parent() {
        None => "the root itself can't be a volume",
        Some(_) if volume.read_only => "an anonymous volume that is read-only would be of no use",
        Some(_) => return Ok(path),
    };
    Err(Error::Invalid(format!("{problem}: {:?}", volume.destination)))
}

fn tmpfs(tmpfs: &sampan::Tmpfs) -> Result<(PathBuf, Vec<String>)> {
    absolute("tmpfs", [&tmpfs.destination])?;
    Ok((tmpfs.destination.clone().into(), tmpfs.options.clone()))
}

fn rlimit(limit: &sampan::Ulimit) -> Result<PosixRlimit> {
    let sampan::Ulimit { name, soft, hard } = limit;
    let kind = serde_json::from_value(format!("RLIMIT_{}", name.to_ascii_uppercase()).into());
    let kind: PosixRlimitType = kind.map_err(|_| Error::Invalid(format!("there is no limit {name:?}")))?;
    if soft > hard {
        return Err(Error::Invalid(format!("the soft limit of {name} is above the hard one")));
    }
    let limit = PosixRlimitBuilder::default().typ(kind).soft(*soft).hard(*hard).build();
    limit.map_err(|error| Error::Invalid(format!("the limit of {name}: {error}")))
}

fn volume(volume: &sampan::Volume) -> Result<MountConfig> {
    absolute("volume", [&volume.source, &volume.destination])?;
    Ok(MountConfig {
        options: Vec::new(),
        owners: None,
        container_path: volume.destination.clone().into(),
        host_path: volume.source.clone().into(),
        source: None,
        relabel: false,
        image: None,
        readonly: volume.read_only,
        recursive_readonly: false,
        propagation: Propagation::Private,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dockers() {
        for name in ["web", "a", "0x", "a_b.c-d"] {
            assert!(checked_name(name).is_ok(), "{name}");
        }
        for name in ["", "-a", "a b", "a/b", "é", &"x".repeat(129)] {
            assert!(checked_name(name).is_err(), "{name}");
        }
        for _ in 0..100 {
            checked_name(&name::random()).unwrap();
        }
    }

    #[test]
    fn half_a_core_is_half_a_period() {
        let request = sampan::RunRequest { cpu_millis: 500, ..Default::default() };
        let resources = container("x", &request).unwrap().resources;
        assert_eq!((resources.cpu_period, resources.cpu_quota), (Some(100_000), Some(50_000)));
    }
}
