//! `PodSandboxStatus`: a pod and its containers at one moment.

use std::collections::HashMap;

use sampan_proto::cri;
use tonic::Status;

use super::convert;
use crate::{context::now, pods::Pods};

pub(super) async fn call(
    pods: &Pods,
    request: cri::PodSandboxStatusRequest,
) -> Result<cri::PodSandboxStatusResponse, Status> {
    let pod = pods.find(&request.pod_sandbox_id)?;
    let mut info = HashMap::new();
    if request.verbose {
        let record =
            serde_json::to_string(&pod.record).map_err(|error| Status::internal(error.to_string()))?;
        info.insert("info".into(), record);
    }
    Ok(cri::PodSandboxStatusResponse {
        status: Some(convert::pod_status(&pod)),
        info,
        containers_statuses: pod
            .containers
            .values()
            .map(|container| convert::container_status(container))
            .collect(),
        timestamp: now(),
    })
}
