//! `UpdateContainerResources`: new limits for a container, all of them or none. A value of 0 leaves a limit as it is.

use sampan_proto::cri;
use tonic::Status;

use super::convert;
use crate::pods::Pods;

pub(super) async fn call(
    pods: &Pods,
    request: cri::UpdateContainerResourcesRequest,
) -> Result<cri::UpdateContainerResourcesResponse, Status> {
    let found = pods.find_container(&request.container_id)?;
    if let Some(linux) = request.linux {
        pods.update_resources(&found, convert::resources(linux)?).await?;
    }
    Ok(cri::UpdateContainerResourcesResponse {})
}
