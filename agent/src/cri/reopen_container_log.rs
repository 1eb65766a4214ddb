//! `ReopenContainerLog`: after kubelet has moved the file away. When it fails, no file has been made.

use sampan_proto::cri;
use tonic::Status;

use crate::pods::Pods;

pub(super) async fn call(
    pods: &Pods,
    request: cri::ReopenContainerLogRequest,
) -> Result<cri::ReopenContainerLogResponse, Status> {
    let found = pods.find_container(&request.container_id)?;
    pods.reopen_log(&found).await?;
    Ok(cri::ReopenContainerLogResponse {})
}
