//! `Exec`: a URL where a command runs with its client's streams.

use sampan_proto::cri;
use tonic::Status;

use super::attach::check;
use crate::{
    pods::Pods,
    streaming::{Command, Job, Streaming},
};

pub(super) async fn call(
    pods: &Pods,
    streaming: &Streaming,
    request: cri::ExecRequest,
) -> Result<cri::ExecResponse, Status> {
    if request.cmd.is_empty() {
        return Err(Status::invalid_argument("cmd is empty; name the command to run"));
    }
    let command = Command {
        container: request.container_id,
        argv: Some(request.cmd),
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    let command = check(pods, command)?;
    Ok(cri::ExecResponse { url: streaming.url(Job::Command(command))? })
}
