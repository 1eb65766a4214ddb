//! `RestorePod`: a pod of what `CheckpointPod` has written; its containers wait for their start.

use std::path::PathBuf;

use sampan_proto::cri;
use tonic::Status;

use super::{checkpoint_pod::no_options, convert};
use crate::pods::Pods;

pub(super) async fn call(
    pods: &Pods,
    request: cri::RestorePodRequest,
) -> Result<cri::RestorePodResponse, Status> {
    no_options(&request.options)?;
    let path = PathBuf::from(request.checkpoint_path);
    if !path.is_absolute() {
        return Err(Status::invalid_argument(format!("checkpoint_path {path:?} is not absolute")));
    }
    let handler = request.runtime_handler;
    let config = request.config.map(|config| convert::pod_config(config, handler)).transpose()?;
    let unset_seccomp = pods.context().config.runtime.seccomp_when_unset;
    let containers = request.container_configs.into_iter();
    let containers = containers
        .map(|config| convert::container_config(config, unset_seccomp))
        .collect::<Result<_, _>>()?;
    let restored = pods.restore_pod(path, config, containers).await?;
    let container = |(name, id): (String, crate::pods::ContainerId)| cri::RestoredContainer {
        name,
        container_id: id.to_string(),
    };
    Ok(cri::RestorePodResponse {
        pod_sandbox_id: restored.id.to_string(),
        restored_containers: restored.containers.into_iter().map(container).collect(),
    })
}
