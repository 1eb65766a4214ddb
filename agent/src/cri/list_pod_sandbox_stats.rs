//! `ListPodSandboxStats`: what the pods that are up use.

use sampan_proto::cri;
use tonic::Status;

use super::{convert, convert_stats, convert_status};
use crate::{
    pods::{PodView, Pods},
    stats::Collector,
};

pub(super) async fn call(
    pods: &Pods,
    collector: &Collector,
    request: cri::ListPodSandboxStatsRequest,
) -> Result<cri::ListPodSandboxStatsResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let passing = pods.list().into_iter().filter(|pod| passes(&filter, pod)).collect();
    let samples = collector.pods(passing).await;
    let stats = samples.iter().map(|sample| convert_stats::pod(pods.context(), sample)).collect();
    Ok(cri::ListPodSandboxStatsResponse { stats })
}

fn passes(filter: &cri::PodSandboxStatsFilter, pod: &PodView) -> bool {
    pod.record.id.as_str().starts_with(&filter.id)
        && convert_status::pod_state(pod) == cri::PodSandboxState::SandboxReady
        && convert::selected(&pod.record.config.labels, &filter.label_selector)
}
