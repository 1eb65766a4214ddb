//! `RunPodSandbox`: namespaces, a monitor and an address.

use sampan_proto::cri;
use tonic::Status;

use super::convert;
use crate::pods::Pods;

pub(super) async fn call(
    pods: &Pods,
    request: cri::RunPodSandboxRequest,
) -> Result<cri::RunPodSandboxResponse, Status> {
    let config = request.config.ok_or_else(|| Status::invalid_argument("the request has no config"))?;
    let id = pods.run(convert::pod_config(config, request.runtime_handler)?).await?;
    Ok(cri::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
}
