//! `UpdatePodSandboxResources`: new sums of a pod's resources. They are put in force on the pod's cgroup where that is
//! ours; one that the request has named as a parent is its maker's to set.

use sampan_proto::cri;
use tonic::Status;

use super::convert;
use crate::pods::Pods;

pub(super) async fn call(
    pods: &Pods,
    request: cri::UpdatePodSandboxResourcesRequest,
) -> Result<cri::UpdatePodSandboxResourcesResponse, Status> {
    let pod = pods.find(&request.pod_sandbox_id)?;
    if let Some(resources) = request.resources {
        let overhead = request.overhead.map(convert::resources).transpose()?.unwrap_or_default();
        let whole = convert::resources(resources)?.with_overhead(&overhead);
        pods.update_pod_resources(&pod.record.id, whole).await?;
    }
    Ok(cri::UpdatePodSandboxResourcesResponse {})
}
