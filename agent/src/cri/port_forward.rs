//! `PortForward`: a URL where a client connects to ports of a pod.

use sampan_proto::cri;
use tonic::Status;

use crate::{
    error::Error,
    pods::{Pods, record::PodPhase},
    streaming::{Job, Streaming},
};

pub(super) async fn call(
    pods: &Pods,
    streaming: &Streaming,
    request: cri::PortForwardRequest,
) -> Result<cri::PortForwardResponse, Status> {
    let port = |port: i32| {
        let known = u16::try_from(port).ok().filter(|port| *port > 0);
        known.ok_or_else(|| Status::invalid_argument(format!("{port} is not a port: 1 to 65535")))
    };
    let ports = request.port.into_iter().map(port).collect::<Result<Vec<_>, _>>()?;
    let pod = pods.find(&request.pod_sandbox_id)?;
    if pod.record.phase != PodPhase::Ready {
        return Err(Error::Precondition(format!("pod {} is not running", pod.record.id.short())).into());
    }
    let job = Job::PortForward { pod: pod.record.id.to_string(), ports };
    Ok(cri::PortForwardResponse { url: streaming.url(job)? })
}
