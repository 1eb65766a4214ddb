//! What verbose answers add, as JSON: who debugs a node looks for a process, its specification and the agent's settings.
//!
//! The names are those that people know from other runtimes (`pid`, `runtimeSpec`); what else there is follows the records.

use serde_json::{Value, json};

use crate::{
    config::Config,
    context::{Context, blocking},
    pods::{Found, PodView, config::NetworkMode},
};

/// Of a pod: its record, its monitor's process and where its namespaces are.
pub(super) fn pod(pod: &PodView) -> String {
    let record = &pod.record;
    let namespaces: Vec<Value> = record
        .monitor_pid
        .map(|pid| {
            let host = record.config.network == NetworkMode::Host;
            let own =
                [("network", "net", !host), ("uts", "uts", !host), ("ipc", "ipc", !record.config.host_ipc)];
            let own = own.into_iter().filter(|(_, _, own)| *own);
            own.map(|(kind, file, _)| json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") }))
                .collect()
        })
        .unwrap_or_default();
    let mut info = json!(record);
    info["pid"] = json!(record.monitor_pid.unwrap_or(0));
    info["runtimeSpec"] = json!({
        "hostname": record.config.hostname,
        "annotations": record.config.annotations,
        "linux": { "namespaces": namespaces, "sysctl": record.config.sysctls },
    });
    info.to_string()
}

/// Of a container: its record and the specification that it was made by.
pub(super) async fn container(context: &Context, found: &Found) -> String {
    let path = context.pod_state(&found.pod.record.id).join(found.container.id.as_str()).join("config.json");
    let specification =
        blocking(move || std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok())).await;
    let mut info = json!(&*found.container);
    info["sandboxID"] = json!(found.pod.record.id);
    // The bundle goes with its pod's stop.
    info["runtimeSpec"] = specification.unwrap_or(Value::Null);
    info.to_string()
}

/// The settings that an operator looks for first. Credentials are in files of their own.
pub(super) fn config(config: &Config) -> String {
    let handlers = config.runtime.handlers.iter().map(|(name, handler)| (name.clone(), json!(handler.path)));
    json!({
        "root": config.root,
        "state": config.state,
        "socket": config.socket,
        "network": {
            "bridge": config.network.bridge,
            "subnets": config.network.subnets,
            "cniConfigurations": config.network.cni_configurations,
            "cniPlugins": config.network.cni_plugins,
        },
        "registry": { "settings": config.registry.settings, "insecure": config.registry.insecure },
        "cgroup": { "root": config.cgroup.root },
        "runtime": {
            "path": config.runtime.path,
            "handlers": handlers.collect::<serde_json::Map<_, _>>(),
            "cdiFolders": config.runtime.cdi_folders,
        },
        "streaming": { "address": config.streaming.address, "tls": config.streaming.certificate.is_some() },
        "metrics": { "address": config.metrics.address },
    })
    .to_string()
}
