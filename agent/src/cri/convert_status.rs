//! Pods and containers → CRI's messages, as lists and statuses show them.

use sampan_proto::cri;

use super::{convert::stop_signal, users};
use crate::pods::{
    PodView,
    config::{IdMappings, IdRun, MountConfig, NetworkMode, PidMode, PodConfig, Propagation, Resources},
    record::{ContainerPhase, ContainerRecord, PodPhase},
};

/// A pod as lists show it.
pub(super) fn pod_summary(view: &PodView) -> cri::PodSandbox {
    let config = &view.record.config;
    cri::PodSandbox {
        id: view.record.id.to_string(),
        metadata: Some(pod_metadata(view)),
        state: pod_state(view) as i32,
        created_at: view.record.created_at,
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
        runtime_handler: config.runtime_handler.clone(),
    }
}

/// A pod's identity.
pub(super) fn pod_metadata(view: &PodView) -> cri::PodSandboxMetadata {
    let name = &view.record.config.name;
    cri::PodSandboxMetadata {
        name: name.name.clone(),
        uid: name.uid.clone(),
        namespace: name.namespace.clone(),
        attempt: name.attempt,
    }
}

/// Ready or not.
pub(super) fn pod_state(view: &PodView) -> cri::PodSandboxState {
    match view.record.phase {
        PodPhase::Ready => cri::PodSandboxState::SandboxReady,
        PodPhase::Creating | PodPhase::Stopped | PodPhase::Removing => cri::PodSandboxState::SandboxNotready,
    }
}

/// A pod in full.
pub(super) fn pod_status(view: &PodView) -> cri::PodSandboxStatus {
    let config = &view.record.config;
    let addresses = view.record.attachment.as_ref().map(|attachment| attachment.addresses.as_slice());
    let mut addresses = addresses.unwrap_or_default().iter().map(|address| address.addr().to_string());
    let network = cri::PodSandboxNetworkStatus {
        ip: addresses.next().unwrap_or_default(),
        additional_ips: addresses.map(|ip| cri::PodIp { ip }).collect(),
    };
    cri::PodSandboxStatus {
        id: view.record.id.to_string(),
        metadata: Some(pod_metadata(view)),
        state: pod_state(view) as i32,
        created_at: view.record.created_at,
        network: Some(network),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace { options: Some(namespace_options(config)) }),
        }),
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
        runtime_handler: config.runtime_handler.clone(),
    }
}

fn namespace_options(config: &PodConfig) -> cri::NamespaceOption {
    let (pid, target_id) = match &config.pid {
        PidMode::Pod => (cri::NamespaceMode::Pod, String::new()),
        PidMode::Container => (cri::NamespaceMode::Container, String::new()),
        PidMode::Host => (cri::NamespaceMode::Node, String::new()),
        PidMode::Target(id) => (cri::NamespaceMode::Target, id.clone()),
    };
    let host = |host: bool| if host { cri::NamespaceMode::Node } else { cri::NamespaceMode::Pod };
    cri::NamespaceOption {
        network: host(config.network == NetworkMode::Host) as i32,
        pid: pid as i32,
        ipc: host(config.host_ipc) as i32,
        target_id,
        userns_options: config.users.as_ref().map(users::told),
    }
}

/// A container's state.
pub(super) fn container_state(container: &ContainerRecord) -> cri::ContainerState {
    match container.phase {
        ContainerPhase::Creating | ContainerPhase::Created => cri::ContainerState::ContainerCreated,
        ContainerPhase::Running => cri::ContainerState::ContainerRunning,
        ContainerPhase::Exited => cri::ContainerState::ContainerExited,
    }
}

/// A container's identity in its pod.
pub(super) fn container_metadata(container: &ContainerRecord) -> cri::ContainerMetadata {
    cri::ContainerMetadata { name: container.config.name.clone(), attempt: container.config.attempt }
}

fn image_spec(container: &ContainerRecord) -> cri::ImageSpec {
    cri::ImageSpec {
        image: container.config.image.clone(),
        user_specified_image: container.config.image.clone(),
        ..Default::default()
    }
}

/// A container as lists show it.
pub(super) fn container_summary(pod: &PodView, container: &ContainerRecord) -> cri::Container {
    cri::Container {
        id: container.id.to_string(),
        pod_sandbox_id: pod.record.id.to_string(),
        metadata: Some(container_metadata(container)),
        image: Some(image_spec(container)),
        image_ref: container.image_id.clone(),
        state: container_state(container) as i32,
        created_at: container.created_at,
        labels: container.config.labels.clone().into_iter().collect(),
        annotations: container.config.annotations.clone().into_iter().collect(),
        image_id: container.image_id.clone(),
    }
}

/// A pod's containers in full, the newest first: of several tries at one container, kubelet's evented PLEG takes the first
/// for the present one.
pub(super) fn container_statuses(pod: &PodView) -> Vec<cri::ContainerStatus> {
    let mut statuses: Vec<_> = pod.containers.values().map(|container| container_status(container)).collect();
    statuses.sort_by_key(|status| std::cmp::Reverse(status.created_at));
    statuses
}

/// A container in full.
pub(super) fn container_status(container: &ContainerRecord) -> cri::ContainerStatus {
    let exit = container.exit.as_ref();
    let config = &container.config;
    cri::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(container_metadata(container)),
        state: container_state(container) as i32,
        created_at: container.created_at,
        started_at: container.started_at,
        finished_at: exit.map_or(0, |exit| exit.finished_at),
        exit_code: exit.map_or(0, |exit| exit.code),
        image: Some(image_spec(container)),
        image_ref: container.image_id.clone(),
        reason: exit.map_or_else(String::new, |exit| exit.reason.clone()),
        message: exit.map_or_else(String::new, |exit| exit.message.clone()),
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
        mounts: config.mounts.iter().map(mount_status).collect(),
        log_path: container.log_path.as_ref().map_or_else(String::new, |path| path.display().to_string()),
        resources: Some(cri::ContainerResources {
            linux: Some(resources_status(&config.resources)),
            windows: None,
        }),
        image_id: container.image_id.clone(),
        user: Some(cri::ContainerUser {
            linux: Some(cri::LinuxContainerUser {
                uid: container.user.uid.into(),
                gid: container.user.gid.into(),
                supplemental_groups: container.user.groups.iter().map(|group| i64::from(*group)).collect(),
            }),
        }),
        stop_signal: signal_status(container.stop_signal) as i32,
    }
}

fn mount_status(mount: &MountConfig) -> cri::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => cri::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
    };
    let image = mount.image.as_ref().map(|volume| cri::ImageSpec {
        image: volume.image.clone(),
        user_specified_image: volume.user_named.clone(),
        image_ref: volume.id.clone(),
        ..Default::default()
    });
    let mappings = |runs: fn(&IdMappings) -> &Vec<IdRun>| {
        let runs = mount.owners.as_ref().map(runs).into_iter().flatten();
        runs.map(|run| cri::IdMapping { host_id: run.outside, container_id: run.inside, length: run.length })
            .collect()
    };
    cri::Mount {
        container_path: mount.container_path.display().to_string(),
        host_path: mount.host_path.display().to_string(),
        image,
        image_sub_path: mount.image.as_ref().map(|volume| volume.sub_path.clone()).unwrap_or_default(),
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_readonly,
        propagation: propagation as i32,
        mount_options: mount.options.clone(),
        uid_mappings: mappings(|owners| &owners.uids),
        gid_mappings: mappings(|owners| &owners.gids),
        selinux_relabel: mount.relabel,
    }
}

fn resources_status(resources: &Resources) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        cpu_period: resources.cpu_period.map_or(0, u64::cast_signed),
        cpu_quota: resources.cpu_quota.unwrap_or(0),
        cpu_shares: resources.cpu_shares.map_or(0, u64::cast_signed),
        memory_limit_in_bytes: resources.memory_limit.unwrap_or(0),
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepages
            .iter()
            .map(|(page_size, limit)| cri::HugepageLimit { page_size: page_size.clone(), limit: *limit })
            .collect(),
        unified: resources.unified.clone().into_iter().collect(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit.unwrap_or(0),
    }
}

fn signal_status(number: i32) -> cri::Signal {
    let fits = |value: &i32| stop_signal(*value).is_ok_and(|signal| signal == number);
    (1..=65)
        .find(fits)
        .and_then(|value| cri::Signal::try_from(value).ok())
        .unwrap_or(cri::Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stop_signal_of_cri_is_a_signal_and_comes_back() {
        for number in 1..=65 {
            let signal = stop_signal(number).unwrap_or_else(|error| panic!("{number}: {error}"));
            assert_eq!(stop_signal(signal_status(signal) as i32).unwrap(), signal);
        }
        assert!(stop_signal(66).is_err());
    }
}
