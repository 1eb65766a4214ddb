//! `PodSandboxStatus`: a pod and its containers at one moment.

use std::collections::HashMap;

use sampan_proto::cri;
use tonic::Status;

use super::{convert_status, info};
use crate::{context::now, pods::Pods};

pub(super) async fn call(
    pods: &Pods,
    request: cri::PodSandboxStatusRequest,
) -> Result<cri::PodSandboxStatusResponse, Status> {
    // Before the state is read: what happens meanwhile must not seem to be told already.
    let timestamp = now();
    let pod = pods.find(&request.pod_sandbox_id)?;
    let mut info = HashMap::new();
    if request.verbose {
        info.insert("info".into(), info::pod(&pod));
    }
    Ok(cri::PodSandboxStatusResponse {
        status: Some(convert_status::pod_status(&pod)),
        info,
        containers_statuses: convert_status::container_statuses(&pod),
        timestamp,
    })
}
