//! `CheckpointPod`: running containers of a pod to a folder, all as they are at one moment; they go on.

use std::{collections::HashMap, path::PathBuf};

use sampan_proto::cri;
use tonic::Status;

use crate::pods::Pods;

pub(super) async fn call(
    pods: &Pods,
    request: cri::CheckpointPodRequest,
) -> Result<cri::CheckpointPodResponse, Status> {
    no_options(&request.options)?;
    let pod = pods.find(&request.pod_sandbox_id)?;
    pods.checkpoint_pod(pod, &request.container_ids, PathBuf::from(request.output_path)).await?;
    Ok(cri::CheckpointPodResponse {})
}

/// There is none that we know.
pub(super) fn no_options(options: &HashMap<String, String>) -> Result<(), Status> {
    match options.keys().min() {
        Some(name) => Err(Status::invalid_argument(format!("there is no option {name:?} for checkpoints"))),
        None => Ok(()),
    }
}
