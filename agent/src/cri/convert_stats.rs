//! Samples → CRI's messages.

use std::collections::{BTreeMap, HashMap};

use sampan_proto::cri;
use sampan_runtime::cgroup::{MemoryStats, Pressure, Reading, Stall, Stalls};

use super::convert_status;
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
    let swap_limit = record.config.resources.swap_limit();
    let swap = sample.reading.memory.swap_bytes;
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: record.id.to_string(),
            metadata: Some(convert_status::container_metadata(record)),
            labels: pairs(&record.config.labels),
            annotations: pairs(&record.config.annotations),
        }),
        cpu: Some(cpu(sample.at, &sample.reading, sample.nano_cores)),
        memory: Some(memory(sample.at, &sample.reading)),
        writable_layer: sample.layer.map(|layer| cri::FilesystemUsage {
            timestamp: layer.at,
            fs_id: Some(cri::FilesystemIdentifier { mountpoint: snapshots(context) }),
            used_bytes: value(layer.usage.bytes),
            inodes_used: value(layer.usage.inodes),
        }),
        swap: Some(cri::SwapUsage {
            timestamp: sample.at,
            swap_available_bytes: swap_limit.and_then(|limit| value(limit.saturating_sub(swap))),
            swap_usage_bytes: value(swap),
        }),
        io: Some(io(sample.at, &sample.reading)),
    }
}

fn pairs(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Where writable layers are, as `ImageFsInfo` names it.
pub(super) fn snapshots(context: &Context) -> String {
    context.config.root.join("snapshots").display().to_string()
}

fn cpu(timestamp: i64, reading: &Reading, nano_cores: Option<u64>) -> cri::CpuUsage {
    cri::CpuUsage {
        timestamp,
        usage_core_nano_seconds: value(reading.cpu_ns),
        usage_nano_cores: nano_cores.and_then(value),
        psi: psi(reading, |pressure| pressure.cpu),
    }
}

fn memory(timestamp: i64, reading: &Reading) -> cri::MemoryUsage {
    let stats: &MemoryStats = &reading.memory;
    let available = stats.limit_bytes.map(|limit| limit.saturating_sub(stats.working_set_bytes));
    cri::MemoryUsage {
        timestamp,
        working_set_bytes: value(stats.working_set_bytes),
        available_bytes: available.and_then(value),
        usage_bytes: value(stats.usage_bytes),
        rss_bytes: value(stats.rss_bytes),
        page_faults: value(stats.page_faults),
        major_page_faults: value(stats.major_page_faults),
        psi: psi(reading, |pressure| pressure.memory),
    }
}

fn io(timestamp: i64, reading: &Reading) -> cri::IoUsage {
    cri::IoUsage { timestamp, psi: psi(reading, |pressure| pressure.io) }
}

fn psi(reading: &Reading, of: impl FnOnce(&Pressure) -> Option<Stalls>) -> Option<cri::PsiStats> {
    let stalls = reading.pressure.as_ref().and_then(of)?;
    let data = |stall: Stall| cri::PsiData {
        total: stall.total_us.saturating_mul(1000),
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    Some(cri::PsiStats { full: Some(data(stalls.full)), some: Some(data(stalls.some)) })
}

/// What one pod uses.
pub(super) fn pod(context: &Context, sample: &PodSample) -> cri::PodSandboxStats {
    let config = &sample.pod.record.config;
    let reading = sample.reading.as_ref();
    cri::PodSandboxStats {
        attributes: Some(cri::PodSandboxAttributes {
            id: sample.pod.record.id.to_string(),
            metadata: Some(convert_status::pod_metadata(&sample.pod)),
            labels: pairs(&config.labels),
            annotations: pairs(&config.annotations),
        }),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: reading.map(|reading| cpu(sample.at, reading, sample.nano_cores)),
            memory: reading.map(|reading| memory(sample.at, reading)),
            network: network(sample.at, &sample.interfaces),
            process: Some(cri::ProcessUsage { timestamp: sample.at, process_count: value(sample.tasks) }),
            containers: sample.containers.iter().map(|sample| container(context, sample)).collect(),
            io: reading.map(|reading| io(sample.at, reading)),
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
