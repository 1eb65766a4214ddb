//! `Inspect`: all that is known of a container, in the shape that docker taught people.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt};

use oci_spec::runtime::PosixRlimit;
use sampan_runtime::cgroup::Cgroup;
use serde_json::{Value, json};

use crate::{
    context::Context,
    error::Result,
    pods::{
        Found,
        config::{
            AppArmorProfile, DeviceConfig, NetworkMode, PidMode, Propagation, SeccompProfile, Security,
        },
        record::{ContainerPhase, ContainerRecord, PodRecord},
    },
    services::{merged, time},
};

const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

pub(super) fn inspect(context: &Context, found: &Found) -> Result<Value> {
    let (pod, container) = (&found.pod.record, &*found.container);
    let config = &container.config;
    let layers = context.store.snapshots().directories(container.id.as_str());
    let graph_driver = layers.map_or(Value::Null, |layers| {
        let lower: Vec<String> = layers.lower.iter().map(|path| path.display().to_string()).collect();
        json!({
            "Name": "overlay2",
            "Data": {
                "LowerDir": lower.join(":"),
                "UpperDir": layers.upper,
                "WorkDir": layers.work,
                "MergedDir": layers.merged,
            },
        })
    });
    let image = context.store.find(&container.image_id).ok().flatten();
    let image = image.and_then(|image| super::super::image::configuration(context, &image).ok());
    // Without its image, removed by force, it is what it was run with alone.
    let image =
        image.as_ref().and_then(|image| image.get("config")?.as_object().cloned()).unwrap_or_default();
    let mut merged = merged::merge(&image, &pod.config, config);
    merged.insert("Image".into(), config.image.clone().into());
    merged.insert("Hostname".into(), hostname(pod).into());
    Ok(json!({
        "Id": container.id,
        "Name": config.name,
        "Created": time(container.created_at),
        "Path": container.argv.first(),
        "Args": container.argv.get(1..).unwrap_or_default(),
        "State": state(container),
        "Image": container.image_id,
        "LogPath": container.log_path,
        "PodSandboxId": pod.id,
        "Config": merged,
        "User": { "Uid": container.user.uid, "Gid": container.user.gid, "AdditionalGids": container.user.groups },
        "HostConfig": host_config(pod, container),
        "GraphDriver": graph_driver,
        "Mounts": mounts(container),
        "NetworkSettings": network(pod),
        "Namespaces": namespaces(container),
        "Cgroups": cgroups(container),
    }))
}

/// As the pod's processes see it.
fn hostname(pod: &PodRecord) -> String {
    match pod.config.hostname.as_str() {
        "" => pod.id.short().to_owned(),
        hostname => hostname.to_owned(),
    }
}

fn state(container: &ContainerRecord) -> Value {
    const NEVER: &str = "0001-01-01T00:00:00Z";
    let exit = container.exit.as_ref();
    let status = match container.phase {
        ContainerPhase::Creating | ContainerPhase::Created => "created",
        ContainerPhase::Running => "running",
        ContainerPhase::Exited => "exited",
    };
    let code = exit.map_or(0, |exit| exit.code);
    json!({
        "Status": status,
        "Running": container.phase == ContainerPhase::Running,
        "Paused": false,
        "OOMKilled": exit.is_some_and(|exit| exit.reason == "OOMKilled"),
        "Pid": container.pid.unwrap_or(0),
        "ExitCode": code,
        "exit_code": code,
        "Reason": exit.map_or("", |exit| &exit.reason),
        "Error": exit.map_or("", |exit| &exit.message),
        "StartedAt": if container.started_at == 0 { NEVER.into() } else { time(container.started_at) },
        "FinishedAt": exit.map_or(NEVER.into(), |exit| time(exit.finished_at)),
    })
}

fn host_config(pod: &PodRecord, container: &ContainerRecord) -> Value {
    let resources = &container.config.resources;
    let nano_cpus = match (resources.cpu_quota, resources.cpu_period) {
        (Some(quota), Some(period)) if quota > 0 && period > 0 => {
            quota.saturating_mul(1_000_000_000) / period.cast_signed()
        }
        _ => 0,
    };
    let binds: Vec<String> = container
        .config
        .mounts
        .iter()
        .map(|mount| {
            let access = if mount.readonly { ":ro" } else { "" };
            format!("{}:{}{access}", mount.host_path.display(), mount.container_path.display())
        })
        .collect();
    let hosts = pod.config.hosts.iter().map(|(name, address)| format!("{name}:{address}"));
    let tmpfs: BTreeMap<_, _> =
        container.config.tmpfs.iter().map(|(path, options)| (path, options.join(","))).collect();
    json!({
        "NetworkMode": network_mode(pod.config.network),
        "AutoRemove": pod.config.auto_remove,
        "Binds": binds,
        "PortBindings": ports(pod),
        "Privileged": container.config.security.privileged,
        "ReadonlyRootfs": container.config.security.readonly_rootfs,
        "Memory": resources.memory_limit.unwrap_or(0),
        "NanoCpus": nano_cpus,
        "CpuPeriod": resources.cpu_period.unwrap_or(0),
        "CpuQuota": resources.cpu_quota.unwrap_or(0),
        "CpuShares": resources.cpu_shares.unwrap_or(0),
        "CpusetCpus": resources.cpuset_cpus,
        "CpusetMems": resources.cpuset_mems,
        "MemorySwap": resources.memory_swap_limit.unwrap_or(0),
        "CapAdd": container.config.security.add_capabilities,
        "CapDrop": container.config.security.drop_capabilities,
        "SecurityOpt": security_options(&container.config.security),
        "Tmpfs": tmpfs,
        "Ulimits": container.config.rlimits.iter().map(ulimit).collect::<Vec<_>>(),
        "Devices": container.config.devices.iter().map(device).collect::<Vec<_>>(),
        "Sysctls": pod.config.sysctls,
        "ExtraHosts": hosts.collect::<Vec<_>>(),
        "Dns": pod.config.dns.as_ref().map_or(&[][..], |dns| &dns.servers),
        "PidMode": if pod.config.pid == PidMode::Host { "host" } else { "" },
        "PidsLimit": resources.pids_limit,
    })
}

fn security_options(security: &Security) -> Vec<String> {
    let seccomp = match &security.seccomp {
        SeccompProfile::Default => None,
        SeccompProfile::Unconfined => Some("unconfined".to_owned()),
        SeccompProfile::Localhost(path) => Some(path.display().to_string()),
    };
    let apparmor = match &security.apparmor {
        AppArmorProfile::Default => None,
        AppArmorProfile::Unconfined => Some("unconfined"),
        AppArmorProfile::Localhost(name) => Some(name.as_str()),
    };
    let options = [
        Some(format!("no-new-privileges={}", security.no_new_privileges)),
        seccomp.map(|profile| format!("seccomp={profile}")),
        apparmor.map(|profile| format!("apparmor={profile}")),
    ];
    options.into_iter().flatten().collect()
}

fn ulimit(limit: &PosixRlimit) -> Value {
    let name = json!(limit.typ());
    let name = name.as_str().map(|name| name.trim_start_matches("RLIMIT_").to_ascii_lowercase());
    json!({ "Name": name, "Soft": limit.soft(), "Hard": limit.hard() })
}

fn device(device: &DeviceConfig) -> Value {
    json!({
        "PathOnHost": device.host_path,
        "PathInContainer": device.container_path,
        "CgroupPermissions": device.permissions,
    })
}

fn network_mode(mode: NetworkMode) -> &'static str {
    match mode {
        NetworkMode::Pod => "bridge",
        NetworkMode::Host => "host",
        NetworkMode::None => "none",
    }
}

fn mounts(container: &ContainerRecord) -> Vec<Value> {
    let mount = |kind: &'static str, mount: &crate::pods::config::MountConfig| {
        let propagation = match mount.propagation {
            Propagation::Private => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        };
        json!({
            "Type": kind,
            "Source": mount.source.as_ref().unwrap_or(&mount.host_path),
            "Destination": mount.container_path,
            "RW": !mount.readonly,
            "Propagation": propagation,
        })
    };
    let binds = container.config.mounts.iter().map(|bind| mount("bind", bind));
    binds.chain(container.volumes.iter().map(|volume| mount("volume", volume))).collect()
}

/// `80/tcp` → where it is published.
fn ports(pod: &PodRecord) -> BTreeMap<String, Vec<Value>> {
    let mut ports: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for port in &pod.config.ports {
        let host_ip = port.host_ip.map_or_else(|| "0.0.0.0".to_owned(), |ip| ip.to_string());
        let published = json!({ "HostIp": host_ip, "HostPort": port.host_port.to_string() });
        ports.entry(format!("{}/{}", port.container_port, port.protocol)).or_default().push(published);
    }
    ports
}

fn network(pod: &PodRecord) -> Value {
    let Some(attachment) = &pod.attachment else {
        return json!({ "IPAddress": "", "GlobalIPv6Address": "", "Ports": ports(pod) });
    };
    let first = |v4: bool| attachment.addresses.iter().find(|address| address.addr().is_ipv4() == v4);
    let text = |v4| first(v4).map_or_else(String::new, |address| address.addr().to_string());
    json!({
        "IPAddress": text(true),
        "IPPrefixLen": first(true).map_or(0, |address| address.prefix_len()),
        "GlobalIPv6Address": text(false),
        "GlobalIPv6PrefixLen": first(false).map_or(0, |address| address.prefix_len()),
        "MacAddress": attachment.mac,
        "HostInterface": attachment.host_interface,
        "SandboxKey": pod.monitor_pid.map(|pid| format!("/proc/{pid}/ns/net")),
        "Ports": ports(pod),
    })
}

/// Each namespace of the container next to the host's: equal inodes mean that it is shared.
fn namespaces(container: &ContainerRecord) -> Value {
    let Some(pid) = container.pid else { return json!({}) };
    let inode = |path: &str| fs::metadata(path).map(|metadata| metadata.ino()).ok();
    let namespace = |name: &&str| {
        let path = format!("/proc/{pid}/ns/{name}");
        let own = inode(&path)?;
        Some((
            (*name).to_owned(),
            json!({ "inode": own, "host_inode": inode(&format!("/proc/self/ns/{name}")), "path": path }),
        ))
    };
    NAMESPACES.iter().filter_map(namespace).collect::<serde_json::Map<_, _>>().into()
}

fn cgroups(container: &ContainerRecord) -> Value {
    let paths = Cgroup::new(&container.cgroup).map(|cgroup| cgroup.paths()).unwrap_or_default();
    json!(paths)
}
