//! `CreateContainer`: all of a container but its start.

use std::path::PathBuf;

use sampan_proto::cri;
use tonic::Status;

use super::{convert, users};
use crate::pods::{Pods, record::ContainerPhase};

pub(super) async fn call(
    pods: &Pods,
    request: cri::CreateContainerRequest,
) -> Result<cri::CreateContainerResponse, Status> {
    let config = request.config.ok_or_else(|| Status::invalid_argument("the request has no config"))?;
    let pod = pods.find(&request.pod_sandbox_id)?;
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    if let Some(namespaces) = security.and_then(|security| security.namespace_options.as_ref()) {
        users::of_container(namespaces, pod.record.config.users.as_ref())?;
    }
    let unset_seccomp = pods.context().config.runtime.seccomp_when_unset;
    let mut config = convert::container_config(config, unset_seccomp)?;
    // A debug container may ask for more than its pod did when it began; what
    // the orchestrator says of the pod now counts.
    let pod_security =
        request.sandbox_config.and_then(|pod| pod.linux).and_then(|linux| linux.security_context);
    let may_be_privileged =
        pod.record.config.privileged || pod_security.is_some_and(|security| security.privileged);
    if config.security.privileged && !may_be_privileged {
        return Err(Status::invalid_argument("a privileged container needs a privileged pod"));
    }
    if let Some(crate::pods::config::PidMode::Target(id)) = &mut config.security.pid {
        let target = pods.find_container(id)?;
        if target.pod.record.id != pod.record.id {
            return Err(Status::invalid_argument(format!("target container {id:?} is in another pod")));
        }
        if target.container.phase != ContainerPhase::Running {
            return Err(Status::failed_precondition(format!("target container {id:?} is not running")));
        }
        // The monitor knows whole ids only.
        *id = target.container.id.to_string();
    }
    // Whoever names a file as the image wants what CheckpointContainer has written there back.
    let archive = PathBuf::from(&config.image_ref);
    let id = match archive.is_absolute() {
        true => pods.restore_container(&pod.record.id, config, archive).await?,
        false => pods.create_container(&pod.record.id, config).await?,
    };
    Ok(cri::CreateContainerResponse { container_id: id.to_string() })
}
