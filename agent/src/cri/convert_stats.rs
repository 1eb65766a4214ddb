//! Samples → CRI's messages.

use sampan_proto::cri;
use sampan_runtime::cgroup::{CpuStats, MemoryStats};

use super::convert;
use crate::{
    context::Context,
    network::InterfaceStats,
    stats::{ContainerSample, PodSample},
};

fn value(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

/// What one container uses.
pub(super) fn container(context: &Context, sample: &ContainerSample) -> cri::ContainerStats {
    let record = &sample.found.container;
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: record.id.to_string(),
            metadata: Some(convert::container_metadata(record)),
            labels: record.config.labels.clone().into_iter().collect(),
            annotations: record.config.annotations.clone().into_iter().collect(),
        }),
        cpu: Some(cpu(sample.at, &sample.stats.cpu, sample.nano_cores)),
        memory: Some(memory(sample.at, &sample.stats.memory)),
        writable_layer: Some(cri::FilesystemUsage {
            timestamp: sample.at,
            fs_id: Some(cri::FilesystemIdentifier { mountpoint: snapshots(context) }),
            used_bytes: value(sample.layer.bytes),
            inodes_used: value(sample.layer.inodes),
        }),
        swap: Some(cri::SwapUsage {
            timestamp: sample.at,
            swap_available_bytes: None,
            swap_usage_bytes: value(sample.stats.memory.swap_bytes),
        }),
        io: Some(cri::IoUsage { timestamp: sample.at, psi: None }),
    }
}

/// Where writable layers are, as `ImageFsInfo` names it.
pub(super) fn snapshots(context: &Context) -> String {
    context.config.root.join("snapshots").display().to_string()
}

fn cpu(timestamp: i64, stats: &CpuStats, nano_cores: Option<u64>) -> cri::CpuUsage {
    cri::CpuUsage {
        timestamp,
        usage_core_nano_seconds: value(stats.usage_ns),
        usage_nano_cores: nano_cores.and_then(value),
        psi: None,
    }
}

fn memory(timestamp: i64, stats: &MemoryStats) -> cri::MemoryUsage {
    let available = stats.limit_bytes.map(|limit| limit.saturating_sub(stats.working_set_bytes));
    cri::MemoryUsage {
        timestamp,
        working_set_bytes: value(stats.working_set_bytes),
        available_bytes: available.and_then(value),
        usage_bytes: value(stats.usage_bytes),
        rss_bytes: value(stats.rss_bytes),
        page_faults: value(stats.page_faults),
        major_page_faults: value(stats.major_page_faults),
        psi: None,
    }
}

/// What one pod uses.
pub(super) fn pod(context: &Context, sample: &PodSample) -> cri::PodSandboxStats {
    let config = &sample.pod.record.config;
    let stats = sample.stats.as_ref();
    let pids = stats.map_or(0, |stats| stats.pids.current);
    cri::PodSandboxStats {
        attributes: Some(cri::PodSandboxAttributes {
            id: sample.pod.record.id.to_string(),
            metadata: Some(convert::pod_metadata(&sample.pod)),
            labels: config.labels.clone().into_iter().collect(),
            annotations: config.annotations.clone().into_iter().collect(),
        }),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: stats.map(|stats| cpu(sample.at, &stats.cpu, sample.nano_cores)),
            memory: stats.map(|stats| memory(sample.at, &stats.memory)),
            network: network(sample.at, &sample.interfaces),
            process: Some(cri::ProcessUsage { timestamp: sample.at, process_count: value(pids) }),
            containers: sample.containers.iter().map(|sample| container(context, sample)).collect(),
            io: Some(cri::IoUsage { timestamp: sample.at, psi: None }),
        }),
        windows: None,
    }
}

/// The pod's own interface first and apart, as kubelet reads it; loopback is not counted.
fn network(timestamp: i64, interfaces: &[InterfaceStats]) -> Option<cri::NetworkUsage> {
    let usage = |interface: &InterfaceStats| cri::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: value(interface.rx_bytes),
        rx_errors: value(interface.rx_errors),
        tx_bytes: value(interface.tx_bytes),
        tx_errors: value(interface.tx_errors),
    };
    let mut own = interfaces.iter().filter(|interface| interface.name != "lo").map(usage);
    let default_interface = Some(own.next()?);
    Some(cri::NetworkUsage { timestamp, default_interface, interfaces: own.collect() })
}
