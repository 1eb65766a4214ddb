//! `ListContainerStats`: what the living containers use.

use sampan_proto::cri;
use tonic::Status;

use super::{convert, convert_stats};
use crate::{
    pods::{Found, Pods},
    stats::Collector,
};

pub(super) async fn call(
    pods: &Pods,
    collector: &Collector,
    request: cri::ListContainerStatsRequest,
) -> Result<cri::ListContainerStatsResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let passing = pods.containers().into_iter().filter(|found| passes(&filter, found)).collect();
    let samples = collector.containers(passing).await;
    let stats = samples.iter().map(|sample| convert_stats::container(pods.context(), sample)).collect();
    Ok(cri::ListContainerStatsResponse { stats })
}

fn passes(filter: &cri::ContainerStatsFilter, found: &Found) -> bool {
    found.container.id.as_str().starts_with(&filter.id)
        && found.pod.record.id.as_str().starts_with(&filter.pod_sandbox_id)
        && convert::selected(&found.container.config.labels, &filter.label_selector)
}
