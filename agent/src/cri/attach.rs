//! `Attach`: a URL where a client joins the streams of a running container.

use sampan_proto::cri;
use tonic::Status;

use crate::{
    error::Error,
    pods::{Pods, record::ContainerPhase},
    streaming::{Command, Job, Streaming},
};

pub(super) async fn call(
    pods: &Pods,
    streaming: &Streaming,
    request: cri::AttachRequest,
) -> Result<cri::AttachResponse, Status> {
    let command = Command {
        container: request.container_id,
        argv: None,
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    let command = check(pods, command)?;
    Ok(cri::AttachResponse { url: streaming.url(Job::Command(command))? })
}

/// What must be true before a URL is worth anything; the container's id comes back whole.
pub(super) fn check(pods: &Pods, command: Command) -> Result<Command, Status> {
    if command.tty && command.stderr {
        return Err(Status::invalid_argument(
            "tty and stderr cannot both be true: a terminal has one output; ask for stdout alone",
        ));
    }
    if !(command.stdin || command.stdout || command.stderr) {
        return Err(Status::invalid_argument("one of stdin, stdout, or stderr must be set"));
    }
    let container = pods.find_container(&command.container)?.container;
    if container.phase != ContainerPhase::Running {
        return Err(Error::Precondition(format!("container {} is not running", container.id.short())).into());
    }
    Ok(Command { container: container.id.to_string(), ..command })
}
