//! `Run`: a pod with one container, whole or not at all.

use std::collections::BTreeMap;

use sampan_proto::sampan;

use super::name;
use crate::{
    error::{Error, Result},
    network::{PortMapping, Protocol},
    pods::{
        Pods,
        config::{
            ContainerConfig, MountConfig, NetworkMode, PidMode, PodConfig, PodName, Propagation, Resources,
            SeccompProfile, Security,
        },
        storage,
    },
};

/// The namespace of pods that people run by hand.
const NAMESPACE: &str = "sampan";
/// The length of a CPU period in microseconds.
const CPU_PERIOD: u64 = 100_000;

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
    Ok(PodConfig {
        name: PodName { name: name.to_owned(), uid: String::new(), namespace: NAMESPACE.into(), attempt: 0 },
        hostname: request.hostname.clone(),
        log_directory: None,
        dns: None,
        ports: request.ports.iter().map(port).collect::<Result<_>>()?,
        labels: request.labels.clone().into_iter().collect(),
        annotations: BTreeMap::new(),
        cgroup_parent: None,
        sysctls: BTreeMap::new(),
        network: match request.network() {
            sampan::NetworkMode::Bridge => NetworkMode::Pod,
            sampan::NetworkMode::None => NetworkMode::None,
            sampan::NetworkMode::Host => NetworkMode::Host,
        },
        pid: PidMode::Container,
        host_ipc: false,
        users: None,
        resources: Resources::default(),
        privileged: request.privileged,
        runtime_handler: String::new(),
        auto_remove: request.auto_remove,
        standalone: true,
    })
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
    let quota = positive(request.cpu_millis).map(|millis| millis * CPU_PERIOD.cast_signed() / 1000);
    Ok(ContainerConfig {
        name: name.to_owned(),
        attempt: 0,
        image: request.image.clone(),
        image_ref: request.image.clone(),
        command: request.entrypoint.clone(),
        args: request.args.clone(),
        working_dir: request.working_dir.clone(),
        env: request.env.iter().map(|pair| environment(pair)).collect::<Result<_>>()?,
        mounts: request.volumes.iter().map(volume).collect::<Result<_>>()?,
        devices: vec![],
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
            memory_limit: positive(request.memory_bytes),
            pids_limit: positive(request.pids_limit),
            ..Resources::default()
        },
        security: Security {
            run_as_username: request.user.clone(),
            privileged: request.privileged,
            readonly_rootfs: request.read_only_rootfs,
            no_new_privileges: !request.privileged,
            seccomp: SeccompProfile::Default,
            ..Security::default()
        },
        stop_signal: None,
        stdin: request.stdin,
        tty: request.tty,
        stdin_once: request.stdin,
    })
}

/// `NAME=VALUE`.
pub(super) fn environment(pair: &str) -> Result<(String, String)> {
    match pair.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Error::Invalid(format!("the environment variable {pair:?} is not NAME=VALUE"))),
    }
}

fn volume(volume: &sampan::Volume) -> Result<MountConfig> {
    for path in [&volume.source, &volume.destination] {
        if !path.starts_with('/') {
            return Err(Error::Invalid(format!("the volume path {path:?} is not absolute")));
        }
    }
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
