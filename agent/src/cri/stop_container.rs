//! `StopContainer`: the stop signal, then the kill. Success when it is missing or has ended.

use std::time::Duration;

use sampan_proto::cri;
use tonic::Status;

use crate::{error::Kind, pods::Pods};

pub(super) async fn call(
    pods: &Pods,
    request: cri::StopContainerRequest,
) -> Result<cri::StopContainerResponse, Status> {
    let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
    match pods.find_container(&request.container_id) {
        Ok(found) => pods.stop_container(&found, grace).await?,
        Err(error) if error.kind() == Kind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(cri::StopContainerResponse {})
}
