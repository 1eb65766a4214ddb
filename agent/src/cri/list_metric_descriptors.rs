//! `ListMetricDescriptors`: what the metrics of `ListPodSandboxMetrics` are.

use sampan_proto::cri;
use tonic::Status;

use super::convert_metrics;

pub(super) async fn call(
    _: cri::ListMetricDescriptorsRequest,
) -> Result<cri::ListMetricDescriptorsResponse, Status> {
    Ok(cri::ListMetricDescriptorsResponse { descriptors: convert_metrics::descriptors() })
}
