//! `StopPodSandbox`: everything of a pod ends but its record. Success when it is missing.

use sampan_proto::cri;
use tonic::Status;

use crate::{error::Kind, pods::Pods};

pub(super) async fn call(
    pods: &Pods,
    request: cri::StopPodSandboxRequest,
) -> Result<cri::StopPodSandboxResponse, Status> {
    match pods.find(&request.pod_sandbox_id) {
        Ok(pod) => pods.stop(&pod.record.id).await?,
        Err(error) if error.kind() == Kind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(cri::StopPodSandboxResponse {})
}
