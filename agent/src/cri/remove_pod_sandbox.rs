//! `RemovePodSandbox`: a pod goes with its containers. Success when it is missing.

use sampan_proto::cri;
use tonic::Status;

use crate::{error::Kind, pods::Pods};

pub(super) async fn call(
    pods: &Pods,
    request: cri::RemovePodSandboxRequest,
) -> Result<cri::RemovePodSandboxResponse, Status> {
    match pods.find(&request.pod_sandbox_id) {
        Ok(pod) => pods.remove(&pod.record.id).await?,
        Err(error) if error.kind() == Kind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(cri::RemovePodSandboxResponse {})
}
