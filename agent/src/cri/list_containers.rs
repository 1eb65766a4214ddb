//! `ListContainers`: answered from memory; the conditions of a filter all have to hold.

use sampan_proto::cri;
use tonic::Status;

use super::{convert, convert_status};
use crate::pods::{Found, Pods};

pub(super) async fn call(
    pods: &Pods,
    request: cri::ListContainersRequest,
) -> Result<cri::ListContainersResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let passing = pods.containers().into_iter().filter(|found| passes(&filter, found));
    let mut containers: Vec<_> =
        passing.map(|found| convert_status::container_summary(&found.pod, &found.container)).collect();
    containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    Ok(cri::ListContainersResponse { containers })
}

fn passes(filter: &cri::ContainerFilter, found: &Found) -> bool {
    found.container.id.as_str().starts_with(&filter.id)
        && found.pod.record.id.as_str().starts_with(&filter.pod_sandbox_id)
        && filter
            .state
            .as_ref()
            .is_none_or(|state| state.state == convert_status::container_state(&found.container) as i32)
        && convert::selected(&found.container.config.labels, &filter.label_selector)
}
