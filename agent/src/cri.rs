//! Kubernetes' CRI v1: the services' tables of contents. Each call is a file of its own beneath `cri/`.
//!
//! A call converts, asks the pods or the store, and converts back; it decides nothing. What this version
//! does not do answers UNIMPLEMENTED with a sentence that says so.

use sampan_proto::cri::{self, image_service_server::ImageService, runtime_service_server::RuntimeService};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::{context::Context, pods::Pods, stats::Collector, streaming::Streaming};

mod attach;
mod checkpoint_container;
mod checkpoint_pod;
mod container_stats;
mod container_status;
mod convert;
mod convert_metrics;
mod convert_stats;
mod convert_status;
mod create_container;
mod exec;
mod exec_sync;
mod get_container_events;
mod image_fs_info;
mod image_status;
mod info;
mod list_container_stats;
mod list_containers;
mod list_images;
mod list_metric_descriptors;
mod list_pod_sandbox;
mod list_pod_sandbox_metrics;
mod list_pod_sandbox_stats;
mod pod_sandbox_stats;
mod pod_sandbox_status;
mod port_forward;
mod pull_image;
mod remove_container;
mod remove_image;
mod remove_pod_sandbox;
mod reopen_container_log;
mod restore_pod;
mod run_pod_sandbox;
mod runtime_config;
mod start_container;
mod status;
mod stop_container;
mod stop_pod_sandbox;
mod update_container_resources;
mod update_pod_sandbox_resources;
mod update_runtime_config;
mod users;
mod version;

/// `runtime.v1.RuntimeService`.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// The pods it speaks of.
    pub pods: Pods,
    /// Where samples come from.
    pub collector: Collector,
    /// Where the URLs of streams lead.
    pub streaming: Streaming,
}

/// `runtime.v1.ImageService`.
#[derive(Debug, Clone)]
pub struct Images {
    /// The store it speaks of.
    pub context: std::sync::Arc<Context>,
}

type Reply<T> = Result<Response<T>, Status>;
type Items<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A list in messages that stay far below what clients take.
fn batches<T: Send + 'static, R: Send + 'static>(items: Vec<T>, message: fn(Vec<T>) -> R) -> Items<R> {
    /// Items of at most a few KiB.
    const BATCH: usize = 100;
    let mut rest = items.into_iter();
    let next = move || {
        let batch: Vec<T> = rest.by_ref().take(BATCH).collect();
        (!batch.is_empty()).then(|| Ok(message(batch)))
    };
    Box::pin(tokio_stream::iter(std::iter::from_fn(next)))
}

/// Gives each call its span and its file.
macro_rules! call {
    ($request:ident, $name:literal, $call:expr) => {{
        let span = tracing::debug_span!("rpc", method = $name);
        let answer = tracing::Instrument::instrument($call($request.into_inner()), span).await?;
        Ok(Response::new(answer))
    }};
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, request: Request<cri::VersionRequest>) -> Reply<cri::VersionResponse> {
        call!(request, "Version", version::call)
    }

    async fn status(&self, request: Request<cri::StatusRequest>) -> Reply<cri::StatusResponse> {
        call!(request, "Status", |request| status::call(&self.pods, request))
    }

    async fn runtime_config(
        &self,
        request: Request<cri::RuntimeConfigRequest>,
    ) -> Reply<cri::RuntimeConfigResponse> {
        let cgroup = &self.pods.context().config.cgroup;
        call!(request, "RuntimeConfig", |_| runtime_config::call(cgroup))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Reply<cri::RunPodSandboxResponse> {
        call!(request, "RunPodSandbox", |request| run_pod_sandbox::call(&self.pods, request))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Reply<cri::StopPodSandboxResponse> {
        call!(request, "StopPodSandbox", |request| stop_pod_sandbox::call(&self.pods, request))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Reply<cri::RemovePodSandboxResponse> {
        call!(request, "RemovePodSandbox", |request| remove_pod_sandbox::call(&self.pods, request))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Reply<cri::PodSandboxStatusResponse> {
        call!(request, "PodSandboxStatus", |request| pod_sandbox_status::call(&self.pods, request))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Reply<cri::ListPodSandboxResponse> {
        call!(request, "ListPodSandbox", |request| list_pod_sandbox::call(&self.pods, request))
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Reply<cri::CreateContainerResponse> {
        call!(request, "CreateContainer", |request| create_container::call(&self.pods, request))
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Reply<cri::StartContainerResponse> {
        call!(request, "StartContainer", |request| start_container::call(&self.pods, request))
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Reply<cri::StopContainerResponse> {
        call!(request, "StopContainer", |request| stop_container::call(&self.pods, request))
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Reply<cri::RemoveContainerResponse> {
        call!(request, "RemoveContainer", |request| remove_container::call(&self.pods, request))
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Reply<cri::ListContainersResponse> {
        call!(request, "ListContainers", |request| list_containers::call(&self.pods, request))
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Reply<cri::ContainerStatusResponse> {
        call!(request, "ContainerStatus", |request| container_status::call(&self.pods, request))
    }

    async fn exec_sync(&self, request: Request<cri::ExecSyncRequest>) -> Reply<cri::ExecSyncResponse> {
        call!(request, "ExecSync", |request| exec_sync::call(&self.pods, request))
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Reply<cri::ContainerStatsResponse> {
        call!(request, "ContainerStats", |request| container_stats::call(
            &self.pods,
            &self.collector,
            request
        ))
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Reply<cri::ListContainerStatsResponse> {
        call!(request, "ListContainerStats", |request| list_container_stats::call(
            &self.pods,
            &self.collector,
            request
        ))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Reply<cri::PodSandboxStatsResponse> {
        call!(request, "PodSandboxStats", |request| pod_sandbox_stats::call(
            &self.pods,
            &self.collector,
            request
        ))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Reply<cri::ListPodSandboxStatsResponse> {
        call!(request, "ListPodSandboxStats", |request| list_pod_sandbox_stats::call(
            &self.pods,
            &self.collector,
            request
        ))
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Reply<cri::UpdateContainerResourcesResponse> {
        call!(request, "UpdateContainerResources", |request| update_container_resources::call(
            &self.pods, request
        ))
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Reply<cri::ReopenContainerLogResponse> {
        call!(request, "ReopenContainerLog", |request| reopen_container_log::call(&self.pods, request))
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Reply<cri::ExecResponse> {
        call!(request, "Exec", |request| exec::call(&self.pods, &self.streaming, request))
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Reply<cri::AttachResponse> {
        call!(request, "Attach", |request| attach::call(&self.pods, &self.streaming, request))
    }

    async fn port_forward(
        &self,
        request: Request<cri::PortForwardRequest>,
    ) -> Reply<cri::PortForwardResponse> {
        call!(request, "PortForward", |request| port_forward::call(&self.pods, &self.streaming, request))
    }

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Reply<cri::UpdateRuntimeConfigResponse> {
        call!(request, "UpdateRuntimeConfig", |request| update_runtime_config::call(&self.pods, request))
    }

    async fn checkpoint_container(
        &self,
        request: Request<cri::CheckpointContainerRequest>,
    ) -> Reply<cri::CheckpointContainerResponse> {
        call!(request, "CheckpointContainer", |request| checkpoint_container::call(&self.pods, request))
    }

    async fn checkpoint_pod(
        &self,
        request: Request<cri::CheckpointPodRequest>,
    ) -> Reply<cri::CheckpointPodResponse> {
        call!(request, "CheckpointPod", |request| checkpoint_pod::call(&self.pods, request))
    }

    async fn restore_pod(&self, request: Request<cri::RestorePodRequest>) -> Reply<cri::RestorePodResponse> {
        call!(request, "RestorePod", |request| restore_pod::call(&self.pods, request))
    }

    async fn list_metric_descriptors(
        &self,
        request: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Reply<cri::ListMetricDescriptorsResponse> {
        call!(request, "ListMetricDescriptors", list_metric_descriptors::call)
    }

    async fn list_pod_sandbox_metrics(
        &self,
        request: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Reply<cri::ListPodSandboxMetricsResponse> {
        call!(request, "ListPodSandboxMetrics", |request| list_pod_sandbox_metrics::call(
            &self.collector,
            request
        ))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Reply<cri::UpdatePodSandboxResourcesResponse> {
        call!(request, "UpdatePodSandboxResources", |request| update_pod_sandbox_resources::call(
            &self.pods, request
        ))
    }

    type StreamPodSandboxesStream = Items<cri::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Reply<Self::StreamPodSandboxesStream> {
        let filter = request.into_inner().filter;
        let list = list_pod_sandbox::call(&self.pods, cri::ListPodSandboxRequest { filter }).await?;
        Ok(Response::new(batches(list.items, |pod_sandboxes| cri::StreamPodSandboxesResponse {
            pod_sandboxes,
        })))
    }

    type StreamContainersStream = Items<cri::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Reply<Self::StreamContainersStream> {
        let filter = request.into_inner().filter;
        let list = list_containers::call(&self.pods, cri::ListContainersRequest { filter }).await?;
        Ok(Response::new(batches(list.containers, |containers| cri::StreamContainersResponse { containers })))
    }

    type StreamContainerStatsStream = Items<cri::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Reply<Self::StreamContainerStatsStream> {
        let filter = request.into_inner().filter;
        let list = list_container_stats::call(
            &self.pods,
            &self.collector,
            cri::ListContainerStatsRequest { filter },
        )
        .await?;
        Ok(Response::new(batches(list.stats, |container_stats| cri::StreamContainerStatsResponse {
            container_stats,
        })))
    }

    type StreamPodSandboxStatsStream = Items<cri::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Reply<Self::StreamPodSandboxStatsStream> {
        let filter = request.into_inner().filter;
        let list = list_pod_sandbox_stats::call(
            &self.pods,
            &self.collector,
            cri::ListPodSandboxStatsRequest { filter },
        )
        .await?;
        Ok(Response::new(batches(list.stats, |pod_sandbox_stats| cri::StreamPodSandboxStatsResponse {
            pod_sandbox_stats,
        })))
    }

    type StreamPodSandboxMetricsStream = Items<cri::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Reply<Self::StreamPodSandboxMetricsStream> {
        let items = list_pod_sandbox_metrics::items(&self.collector).await;
        Ok(Response::new(batches(items, |pod_sandbox_metrics| cri::StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        })))
    }

    type GetContainerEventsStream = Items<cri::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Reply<Self::GetContainerEventsStream> {
        Ok(Response::new(get_container_events::call(self.pods.context().clone())))
    }
}

#[tonic::async_trait]
impl ImageService for Images {
    async fn list_images(&self, request: Request<cri::ListImagesRequest>) -> Reply<cri::ListImagesResponse> {
        call!(request, "ListImages", |request| list_images::call(&self.context.store, request))
    }

    type StreamImagesStream = Items<cri::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Reply<Self::StreamImagesStream> {
        let filter = request.into_inner().filter;
        let list = list_images::call(&self.context.store, cri::ListImagesRequest { filter }).await?;
        Ok(Response::new(batches(list.images, |images| cri::StreamImagesResponse { images })))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Reply<cri::ImageStatusResponse> {
        call!(request, "ImageStatus", |request| image_status::call(&self.context.store, request))
    }

    async fn pull_image(&self, request: Request<cri::PullImageRequest>) -> Reply<cri::PullImageResponse> {
        call!(request, "PullImage", |request| pull_image::call(&self.context, request))
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Reply<cri::RemoveImageResponse> {
        call!(request, "RemoveImage", |request| remove_image::call(&self.context.store, request))
    }

    async fn image_fs_info(
        &self,
        request: Request<cri::ImageFsInfoRequest>,
    ) -> Reply<cri::ImageFsInfoResponse> {
        call!(request, "ImageFsInfo", |request| image_fs_info::call(&self.context, request))
    }
}
