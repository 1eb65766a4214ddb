//! `StartContainer`: lets a created container go.

use sampan_proto::cri;
use tonic::Status;

use crate::pods::Pods;

pub(super) async fn call(
    pods: &Pods,
    request: cri::StartContainerRequest,
) -> Result<cri::StartContainerResponse, Status> {
    pods.start_container(&pods.find_container(&request.container_id)?).await?;
    Ok(cri::StartContainerResponse {})
}
