//! `ContainerStatus`: a container at one moment.

use std::collections::HashMap;

use sampan_proto::cri;
use tonic::Status;

use super::convert;
use crate::pods::Pods;

pub(super) async fn call(
    pods: &Pods,
    request: cri::ContainerStatusRequest,
) -> Result<cri::ContainerStatusResponse, Status> {
    let found = pods.find_container(&request.container_id)?;
    let mut info = HashMap::new();
    if request.verbose {
        let record =
            serde_json::to_string(&*found.container).map_err(|error| Status::internal(error.to_string()))?;
        info.insert("info".into(), record);
    }
    Ok(cri::ContainerStatusResponse { status: Some(convert::container_status(&found.container)), info })
}
