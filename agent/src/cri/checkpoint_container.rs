//! `CheckpointContainer`: a running container to an archive; it goes on.

use std::{path::PathBuf, time::Duration};

use sampan_proto::cri;
use tonic::Status;

use crate::pods::Pods;

pub(super) async fn call(
    pods: &Pods,
    request: cri::CheckpointContainerRequest,
) -> Result<cri::CheckpointContainerResponse, Status> {
    let found = pods.find_container(&request.container_id)?;
    let limit = match u64::try_from(request.timeout) {
        Ok(0) => None,
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => return Err(Status::invalid_argument("timeout is negative")),
    };
    pods.checkpoint_container(found, PathBuf::from(request.location), limit).await?;
    Ok(cri::CheckpointContainerResponse {})
}
