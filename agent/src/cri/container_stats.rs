//! `ContainerStats`: what one container uses.

use sampan_proto::cri;
use tonic::Status;

use super::convert_stats;
use crate::{pods::Pods, stats::Collector};

pub(super) async fn call(
    pods: &Pods,
    collector: &Collector,
    request: cri::ContainerStatsRequest,
) -> Result<cri::ContainerStatsResponse, Status> {
    let found = pods.find_container(&request.container_id)?;
    let id = found.container.id.clone();
    let samples = collector.containers(vec![found]).await;
    let sample = samples.first().ok_or_else(|| {
        Status::failed_precondition(format!("container {} has ended and uses nothing", id.short()))
    })?;
    Ok(cri::ContainerStatsResponse { stats: Some(convert_stats::container(pods.context(), sample)) })
}
