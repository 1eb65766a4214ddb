//! `ListPodSandboxMetrics`: the metrics of the pods that are up.

use sampan_proto::cri;
use tonic::Status;

use super::convert_metrics;
use crate::stats::Collector;

pub(super) async fn call(
    collector: &Collector,
    _: cri::ListPodSandboxMetricsRequest,
) -> Result<cri::ListPodSandboxMetricsResponse, Status> {
    Ok(cri::ListPodSandboxMetricsResponse { pod_metrics: items(collector).await })
}

/// One item for each pod, for the list and for the stream.
pub(super) async fn items(collector: &Collector) -> Vec<cri::PodSandboxMetrics> {
    collector.figures().await.iter().map(convert_metrics::pod).collect()
}
