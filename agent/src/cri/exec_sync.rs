//! `ExecSync`: a command in a container, and what it printed.

use std::time::Duration;

use sampan_proto::cri;
use tonic::Status;

use crate::pods::Pods;

pub(super) async fn call(
    pods: &Pods,
    request: cri::ExecSyncRequest,
) -> Result<cri::ExecSyncResponse, Status> {
    let found = pods.find_container(&request.container_id)?;
    let seconds = u64::try_from(request.timeout).unwrap_or(0);
    let limit = (seconds > 0).then(|| Duration::from_secs(seconds));
    let output = pods.exec(&found, request.cmd, limit).await?;
    Ok(cri::ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code })
}
