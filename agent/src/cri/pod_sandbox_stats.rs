//! `PodSandboxStats`: what one pod uses.

use sampan_proto::cri;
use tonic::Status;

use super::convert_stats;
use crate::{pods::Pods, stats::Collector};

pub(super) async fn call(
    pods: &Pods,
    collector: &Collector,
    request: cri::PodSandboxStatsRequest,
) -> Result<cri::PodSandboxStatsResponse, Status> {
    let pod = pods.find(&request.pod_sandbox_id)?;
    let samples = collector.pods(vec![pod]).await;
    let stats = samples.first().map(|sample| convert_stats::pod(pods.context(), sample));
    Ok(cri::PodSandboxStatsResponse { stats })
}
