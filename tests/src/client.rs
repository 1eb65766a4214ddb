//! CRI as an orchestrator speaks it: `k8s-cri`'s clients over the agent's socket, with the calls every test makes.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerStatus, ContainerStatusRequest, CreateContainerRequest, ExecSyncRequest, ExecSyncResponse,
    Image, ImageSpec, ImageStatusRequest, ListContainersRequest, ListPodSandboxRequest, PodSandboxStatus,
    PodSandboxStatusRequest, PullImageRequest, RemoveContainerRequest, RemoveImageRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest,
};
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{Ctr, Pod};

/// Twice 16 MiB and what is around it: the largest ExecSync answer.
const MAX_MESSAGE: usize = 40 << 20;

/// A channel to a unix socket; it connects with the first call, and again after the server was restarted.
pub fn connect(socket: &Path) -> Channel {
    let socket: PathBuf = socket.into();
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    }))
}

/// Both services of CRI.
#[derive(Clone, Debug)]
pub struct Cri {
    /// The raw client of RuntimeService.
    pub runtime: RuntimeServiceClient<Channel>,
    /// The raw client of ImageService.
    pub images: ImageServiceClient<Channel>,
}

type Result<T> = std::result::Result<T, Status>;

/// The spec of an image by name.
pub(crate) fn image_spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.into(), ..ImageSpec::default() }
}

#[allow(missing_docs)] // one line for each call of CRI, which documents them
impl Cri {
    pub fn new(channel: Channel) -> Cri {
        Cri {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
        }
    }

    pub async fn pull(&self, image: &str) -> Result<String> {
        let request = PullImageRequest { image: Some(image_spec(image)), ..PullImageRequest::default() };
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    pub async fn image(&self, image: &str) -> Result<Option<Image>> {
        let request = ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        Ok(self.images.clone().image_status(request).await?.into_inner().image)
    }

    pub async fn remove_image(&self, image: &str) -> Result<()> {
        self.images
            .clone()
            .remove_image(RemoveImageRequest { image: Some(image_spec(image)) })
            .await
            .map(drop)
    }

    pub async fn run_pod(&self, pod: &Pod) -> Result<String> {
        let request =
            RunPodSandboxRequest { config: Some(pod.config.clone()), runtime_handler: String::new() };
        Ok(self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub async fn stop_pod(&self, id: &str) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    pub async fn remove_pod(&self, id: &str) -> Result<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    /// Stops and removes a pod with all its containers.
    pub async fn clear_pod(&self, id: &str) -> Result<()> {
        self.stop_pod(id).await?;
        self.remove_pod(id).await
    }

    pub async fn pod(&self, id: &str) -> Result<PodSandboxStatus> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        let answer = self.runtime.clone().pod_sandbox_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("PodSandboxStatus without a status"))
    }

    pub async fn pods(&self) -> Result<Vec<k8s_cri::v1::PodSandbox>> {
        Ok(self.runtime.clone().list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items)
    }

    pub async fn create(&self, pod_id: &str, container: &Ctr, pod: &Pod) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod_id.into(),
            config: Some(container.config.clone()),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    pub async fn start(&self, id: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: id.into() };
        self.runtime.clone().start_container(request).await.map(drop)
    }

    /// Creates and starts.
    pub async fn run(&self, pod_id: &str, container: &Ctr, pod: &Pod) -> Result<String> {
        let id = self.create(pod_id, container, pod).await?;
        self.start(&id).await?;
        Ok(id)
    }

    pub async fn stop(&self, id: &str, timeout: i64) -> Result<()> {
        let request = StopContainerRequest { container_id: id.into(), timeout };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    pub async fn remove(&self, id: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: id.into() };
        self.runtime.clone().remove_container(request).await.map(drop)
    }

    pub async fn container(&self, id: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        let answer = self.runtime.clone().container_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("ContainerStatus without a status"))
    }

    pub async fn containers(&self) -> Result<Vec<k8s_cri::v1::Container>> {
        Ok(self
            .runtime
            .clone()
            .list_containers(ListContainersRequest::default())
            .await?
            .into_inner()
            .containers)
    }

    pub async fn exec(&self, id: &str, command: &[&str], timeout: i64) -> Result<ExecSyncResponse> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// What a shell script printed in the container, without the last line end; it must succeed.
    ///
    /// # Panics
    /// When the script fails.
    pub async fn sh(&self, id: &str, script: &str) -> String {
        let answer = self
            .exec(id, &["sh", "-c", script], 30)
            .await
            .unwrap_or_else(|status| panic!("{script}: {status}"));
        let [stdout, stderr] =
            [&answer.stdout, &answer.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        assert_eq!(answer.exit_code, 0, "{script}: {stdout}{stderr}");
        stdout.trim_end_matches('\n').to_owned()
    }

    /// The status of a container once it has ended.
    pub async fn ended(&self, id: &str) -> ContainerStatus {
        crate::eventually(&format!("container {id} ends"), std::time::Duration::from_secs(20), async || {
            let status = self.container(id).await.expect("status of a container");
            (status.state() == k8s_cri::v1::ContainerState::ContainerExited).then_some(status)
        })
        .await
    }
}
