//! `ContainerService`: containers as a person thinks of them.

use std::time::Duration;

use sampan_proto::sampan::{self, container_service_server::ContainerService};
use tonic::{Request, Status, Streaming};

use super::{Feed, Reply};
use crate::{
    error::Error,
    pods::{
        Found, Pods,
        record::{ContainerPhase, PodPhase},
    },
};

mod inspect;
pub(crate) mod logs;
mod name;
mod run;
mod session;

/// The service.
#[derive(Debug, Clone)]
pub struct Containers {
    /// The pods it speaks of.
    pub pods: Pods,
}

/// Seconds between stop signal and kill when the client names none, as docker has it.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

#[tonic::async_trait]
impl ContainerService for Containers {
    async fn run(&self, request: Request<sampan::RunRequest>) -> Reply<sampan::RunResponse> {
        // A task of its own: a client that goes away half-way leaves a whole container or none.
        let (pods, request) = (self.pods.clone(), request.into_inner());
        let running = tokio::spawn(async move { run::run(&pods, request).await });
        let response = running.await.map_err(|error| Status::internal(error.to_string()))??;
        Ok(response.into())
    }

    async fn start(&self, request: Request<sampan::StartRequest>) -> Reply<sampan::StartResponse> {
        let found = self.pods.find_container_by_name(&request.into_inner().container)?;
        self.pods.start_container(&found).await?;
        Ok(sampan::StartResponse {}.into())
    }

    type AttachStream = Feed<sampan::AttachResponse>;

    async fn attach(&self, request: Request<Streaming<sampan::AttachRequest>>) -> Reply<Self::AttachStream> {
        Ok(session::attach(&self.pods, request.into_inner()).await?.into())
    }

    type ExecStream = Feed<sampan::ExecResponse>;

    async fn exec(&self, request: Request<Streaming<sampan::ExecRequest>>) -> Reply<Self::ExecStream> {
        Ok(session::exec(&self.pods, request.into_inner()).await?.into())
    }

    type PortForwardStream = Feed<sampan::PortForwardResponse>;

    async fn port_forward(
        &self,
        request: Request<Streaming<sampan::PortForwardRequest>>,
    ) -> Reply<Self::PortForwardStream> {
        Ok(session::port_forward(&self.pods, request.into_inner()).await?.into())
    }

    async fn list(&self, request: Request<sampan::ListRequest>) -> Reply<sampan::ListResponse> {
        let all = request.into_inner().all;
        let shown = |found: &Found| all || found.container.phase == ContainerPhase::Running;
        let mut containers: Vec<_> =
            self.pods.containers().iter().filter(|found| shown(found)).map(summary).collect();
        containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        Ok(sampan::ListResponse { containers }.into())
    }

    async fn inspect(&self, request: Request<sampan::InspectRequest>) -> Reply<sampan::InspectResponse> {
        let found = self.pods.find_container_by_name(&request.into_inner().container)?;
        let json = inspect::inspect(self.pods.context(), &found)?.to_string();
        Ok(sampan::InspectResponse { json }.into())
    }

    async fn wait(&self, request: Request<sampan::WaitRequest>) -> Reply<sampan::WaitResponse> {
        let found = self.pods.find_container_by_name(&request.into_inner().container)?;
        let mut view = self.pods.watch(&found.pod.record.id)?;
        let id = found.container.id.clone();
        let over = |view: &std::sync::Arc<crate::pods::PodView>| {
            view.gone || view.containers.get(&id).is_none_or(|container| container.exit.is_some())
        };
        let ended = self.pods.context().ending.run_until_cancelled(view.wait_for(over)).await;
        let last = ended.ok_or(Error::Ending)?.map_err(|_| gone(&id))?.clone();
        let exit =
            last.containers.get(&id).and_then(|container| container.exit.clone()).ok_or_else(|| gone(&id))?;
        let oom_killed = exit.reason == "OOMKilled";
        Ok(sampan::WaitResponse { exit_code: exit.code, oom_killed, finished_at: exit.finished_at }.into())
    }

    type LogsStream = Feed<sampan::LogsResponse>;

    async fn logs(&self, request: Request<sampan::LogsRequest>) -> Reply<Self::LogsStream> {
        let request = request.into_inner();
        let found = self.pods.find_container_by_name(&request.container)?;
        Ok(logs::follow(&self.pods, &found, &request)?.into())
    }

    async fn stop(&self, request: Request<sampan::StopRequest>) -> Reply<sampan::StopResponse> {
        let request = request.into_inner();
        let found = self.pods.find_container_by_name(&request.container)?;
        let grace = u64::try_from(request.timeout_seconds).map_or(DEFAULT_GRACE, Duration::from_secs);
        self.pods.stop_container(&found, grace).await?;
        if found.pod.record.config.standalone {
            self.pods.stop(&found.pod.record.id).await?;
        }
        Ok(sampan::StopResponse {}.into())
    }

    async fn remove(&self, request: Request<sampan::RemoveRequest>) -> Reply<sampan::RemoveResponse> {
        let request = request.into_inner();
        let found = self.pods.find_container_by_name(&request.container)?;
        if found.container.phase == ContainerPhase::Running && !request.force {
            return Err(Error::Precondition(format!(
                "container {:?} is running; stop it first, or force the removal",
                request.container
            ))
            .into());
        }
        if found.pod.record.config.standalone {
            self.pods.remove(&found.pod.record.id).await?;
        } else {
            self.pods.remove_container(&found).await?;
        }
        Ok(sampan::RemoveResponse {}.into())
    }
}

fn gone(id: &crate::pods::ContainerId) -> Error {
    Error::NotFound { object: "container", id: id.to_string() }
}

/// A container as `ps` shows it.
fn summary(found: &Found) -> sampan::ContainerSummary {
    let (pod, container) = (&found.pod.record, &found.container);
    let exit = container.exit.as_ref();
    let attachment = pod.attachment.as_ref().filter(|_| pod.phase == PodPhase::Ready);
    sampan::ContainerSummary {
        id: container.id.to_string(),
        pod_sandbox_id: pod.id.to_string(),
        name: container.config.name.clone(),
        image: container.config.image.clone(),
        command: container.argv.clone(),
        state: match container.phase {
            ContainerPhase::Creating | ContainerPhase::Created => sampan::State::Created,
            ContainerPhase::Running => sampan::State::Running,
            ContainerPhase::Exited => sampan::State::Exited,
        } as i32,
        exit_code: exit.map_or(0, |exit| exit.code),
        created_at: container.created_at,
        started_at: container.started_at,
        finished_at: exit.map_or(0, |exit| exit.finished_at),
        ports: attachment
            .map(|attachment| attachment.ports.iter().map(published_port).collect())
            .unwrap_or_default(),
        addresses: attachment
            .map(|attachment| attachment.addresses.iter().map(|address| address.addr().to_string()).collect())
            .unwrap_or_default(),
        labels: container.config.labels.clone().into_iter().collect(),
    }
}

fn published_port(port: &crate::network::PortMapping) -> sampan::PublishedPort {
    sampan::PublishedPort {
        host_ip: port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        host_port: port.host_port.into(),
        container_port: port.container_port.into(),
        protocol: port.protocol.to_string(),
    }
}
