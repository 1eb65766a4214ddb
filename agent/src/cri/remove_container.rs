//! `RemoveContainer`: kills it first when it runs. Success when it is missing.

use sampan_proto::cri;
use tonic::Status;

use crate::{error::Kind, pods::Pods};

pub(super) async fn call(
    pods: &Pods,
    request: cri::RemoveContainerRequest,
) -> Result<cri::RemoveContainerResponse, Status> {
    match pods.find_container(&request.container_id) {
        Ok(found) => pods.remove_container(&found).await?,
        Err(error) if error.kind() == Kind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(cri::RemoveContainerResponse {})
}
