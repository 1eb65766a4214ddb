//! `Status`: is the node fit for pods, and what can its runtime do.

use std::collections::HashMap;

use sampan_proto::cri;
use tonic::Status;

use super::info;
use crate::{config::RUNTIME_HANDLER, pods::Pods};

pub(super) async fn call(pods: &Pods, request: cri::StatusRequest) -> Result<cri::StatusResponse, Status> {
    let condition =
        |kind: &str| cri::RuntimeCondition { r#type: kind.into(), status: true, ..Default::default() };
    let mut network = condition("NetworkReady");
    if let Err(error) = pods.context().network_ready().await {
        // The reason that kubelet knows from every runtime.
        network.status = false;
        network.reason = "NetworkPluginNotReady".into();
        network.message = error.chain();
    }
    let maps_layers = sampan_runtime::mount::maps_layers();
    let handler = |name: &str, able| {
        let features = cri::RuntimeHandlerFeatures {
            recursive_read_only_mounts: able,
            user_namespaces: able && maps_layers,
        };
        cri::RuntimeHandler { name: name.into(), features: Some(features) }
    };
    let built_in = ["", RUNTIME_HANDLER].map(|name| handler(name, true));
    // What others can do is not known here; too little said costs a feature, too much a pod.
    let others = pods.context().config.runtime.handlers.keys().map(|name| handler(name, false));
    let mut info = HashMap::new();
    if request.verbose {
        info.insert("config".into(), info::config(&pods.context().config));
    }
    Ok(cri::StatusResponse {
        status: Some(cri::RuntimeStatus { conditions: vec![condition("RuntimeReady"), network] }),
        info,
        runtime_handlers: built_in.into_iter().chain(others).collect(),
        features: Some(cri::RuntimeFeatures {
            supplemental_groups_policy: true,
            mount_options: true,
            user_namespaces_host_network: maps_layers,
        }),
    })
}
