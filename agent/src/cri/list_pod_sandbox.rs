//! `ListPodSandbox`: answered from memory; the conditions of a filter all have to hold.

use sampan_proto::cri;
use tonic::Status;

use super::{convert, convert_status};
use crate::pods::{PodView, Pods};

pub(super) async fn call(
    pods: &Pods,
    request: cri::ListPodSandboxRequest,
) -> Result<cri::ListPodSandboxResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let mut items: Vec<_> = pods
        .list()
        .iter()
        .filter(|pod| passes(&filter, pod))
        .map(|pod| convert_status::pod_summary(pod))
        .collect();
    items.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
    Ok(cri::ListPodSandboxResponse { items })
}

fn passes(filter: &cri::PodSandboxFilter, pod: &PodView) -> bool {
    pod.record.id.as_str().starts_with(&filter.id)
        && filter.state.as_ref().is_none_or(|state| state.state == convert_status::pod_state(pod) as i32)
        && convert::selected(&pod.record.config.labels, &filter.label_selector)
}
