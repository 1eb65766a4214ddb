//! `ContainerStatus`: a container at one moment.

use std::collections::HashMap;

use sampan_proto::cri;
use tonic::Status;

use super::{convert_status, info};
use crate::pods::Pods;

pub(super) async fn call(
    pods: &Pods,
    request: cri::ContainerStatusRequest,
) -> Result<cri::ContainerStatusResponse, Status> {
    let found = pods.find_container(&request.container_id)?;
    let mut info = HashMap::new();
    if request.verbose {
        info.insert("info".into(), info::container(pods.context(), &found).await);
    }
    Ok(cri::ContainerStatusResponse {
        status: Some(convert_status::container_status(&found.container)),
        info,
    })
}
