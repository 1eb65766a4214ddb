//! An agent that answers from a script: two containers, two images, and a note of each call that changes something.

use std::{
    convert::Infallible,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    task,
};

use futures_util::stream;
use sampan_proto::{
    cri,
    sampan::{
        container_service_server::{ContainerService, ContainerServiceServer},
        image_service_server::{ImageService, ImageServiceServer},
        metrics_service_server::{MetricsService, MetricsServiceServer},
        pull_response::Event,
        system_service_server::{SystemService, SystemServiceServer},
        *,
    },
};
use tokio::{net::UnixListener, sync::watch, task::JoinHandle};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status, Streaming, body::Body, codegen::http, server::Grpc, transport::Server,
};
use tonic_prost::ProstCodec;

use crate::cli::human;

type Stream<T> = Pin<Box<dyn stream::Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

#[derive(Debug, Clone)]
pub(super) struct Script {
    calls: Arc<Mutex<Vec<String>>>,
    stopped: Arc<watch::Sender<bool>>,
}

impl Default for Script {
    fn default() -> Self {
        Self { calls: Arc::default(), stopped: Arc::new(watch::Sender::new(false)) }
    }
}

impl Script {
    pub(super) fn serve(&self, socket: &Path) -> JoinHandle<Result<(), tonic::transport::Error>> {
        let listener = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let server = Server::builder()
            .add_service(ContainerServiceServer::new(self.clone()))
            .add_service(ImageServiceServer::new(self.clone()))
            .add_service(MetricsServiceServer::new(self.clone()))
            .add_service(SystemServiceServer::new(self.clone()))
            .add_service(CriRuntime)
            .add_service(CriImages);
        tokio::spawn(server.serve_with_incoming(listener))
    }

    pub(super) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    fn started(&self, image: &str) -> bool {
        self.calls().contains(&format!("run {image}"))
    }
}

fn known(container: &str) -> Result<(), Status> {
    match container {
        "nope" | "nginx" => Err(Status::not_found(format!("no container {container:?}"))),
        _ => Ok(()),
    }
}

fn answer<T>(value: T) -> Answer<T> {
    Ok(Response::new(value))
}

fn all<T: Send + 'static>(values: Vec<T>) -> Answer<Stream<T>> {
    answer(Box::pin(stream::iter(values.into_iter().map(Ok))))
}

#[tonic::async_trait]
impl ContainerService for Script {
    async fn run(&self, request: Request<RunRequest>) -> Answer<RunResponse> {
        let request = request.into_inner();
        if request.name == "web" {
            return Err(Status::already_exists("the name \"web\" is in use"));
        }
        let auto_remove = if request.auto_remove { " (auto remove)" } else { "" };
        self.note(format!("run {}{auto_remove}", request.image));
        answer(RunResponse { container_id: "new".into(), ..Default::default() })
    }

    async fn start(&self, request: Request<StartRequest>) -> Answer<StartResponse> {
        let container = request.into_inner().container;
        known(&container)?;
        self.note(format!("start {container}"));
        answer(StartResponse {})
    }

    type AttachStream = Stream<AttachResponse>;

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Answer<Self::AttachStream> {
        let first = request.into_inner().message().await?.and_then(|request| request.message);
        let Some(attach_request::Message::Start(start)) = first else {
            return Err(Status::invalid_argument("no start"));
        };
        known(&start.container)?;
        self.note(format!("attach {}", start.container));
        let message = |message| AttachResponse { message: Some(message) };
        all(vec![
            message(attach_response::Message::Attached(Attached { tty: false })),
            message(attach_response::Message::Stdout(b"out\n".to_vec())),
        ])
    }

    type ExecStream = Stream<ExecResponse>;

    /// Says what it was asked and given.
    async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Answer<Self::ExecStream> {
        let mut messages = request.into_inner();
        let Some(exec_request::Message::Start(start)) = messages.message().await?.and_then(|r| r.message)
        else {
            return Err(Status::invalid_argument("no start"));
        };
        known(&start.container)?;
        let mut said = format!("{} {}", start.container, start.command.join(" "));
        for (name, value) in [("user", start.user), ("dir", start.working_dir), ("env", start.env.join(" "))]
        {
            if !value.is_empty() {
                said.push_str(&format!(" {name}={value}"));
            }
        }
        let message = |message| ExecResponse { message: Some(message) };
        all(vec![
            message(exec_response::Message::Stdout(said.into_bytes())),
            message(exec_response::Message::Stderr(b"err".to_vec())),
            message(exec_response::Message::ExitCode(7)),
        ])
    }

    type PortForwardStream = Stream<PortForwardResponse>;

    async fn port_forward(
        &self,
        _: Request<Streaming<PortForwardRequest>>,
    ) -> Answer<Self::PortForwardStream> {
        Err(Status::failed_precondition("nobody listens"))
    }

    async fn list(&self, request: Request<ListRequest>) -> Answer<ListResponse> {
        const MINUTE: i64 = 60_000_000_000;
        let now = human::now() - 1_000_000_000;
        let web = ContainerSummary {
            id: "0123456789abcdef".repeat(4),
            name: "web".into(),
            image: "docker.io/library/nginx:1.27".into(),
            command: vec!["/docker-entrypoint.sh".into(), "nginx".into()],
            state: State::Running.into(),
            created_at: now - 5 * MINUTE,
            started_at: now - 3 * MINUTE,
            ports: vec![PublishedPort { host_port: 8080, container_port: 80, ..Default::default() }],
            ..Default::default()
        };
        let once = ContainerSummary {
            id: "ba98765432100000".repeat(4),
            name: "once".into(),
            image: "busybox".into(),
            command: vec!["false".into()],
            state: State::Exited.into(),
            exit_code: 1,
            created_at: now - 120 * MINUTE,
            started_at: now - 120 * MINUTE,
            finished_at: now - 120 * MINUTE,
            ..Default::default()
        };
        let containers = if request.into_inner().all { vec![web, once] } else { vec![web] };
        answer(ListResponse { containers })
    }

    async fn inspect(&self, request: Request<InspectRequest>) -> Answer<InspectResponse> {
        known(&request.into_inner().container)?;
        answer(InspectResponse { json: r#"{"Id":"0123","Args":[]}"#.into() })
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Answer<WaitResponse> {
        known(&request.into_inner().container)?;
        let mut exit_code = 3;
        if self.started("forever") {
            let process = rustix::process::getpid();
            rustix::process::kill_process(process, rustix::process::Signal::HUP).unwrap();
            self.stopped.subscribe().wait_for(|stopped| *stopped).await.unwrap();
            exit_code = 143;
        }
        answer(WaitResponse { exit_code, ..Default::default() })
    }

    type LogsStream = Stream<LogsResponse>;

    async fn logs(&self, request: Request<LogsRequest>) -> Answer<Self::LogsStream> {
        known(&request.into_inner().container)?;
        let entry = |stream: LogStream, seconds: i64, data: &str| LogEntry {
            stream: stream.into(),
            timestamp: seconds * 1_000_000_000,
            data: data.into(),
        };
        all(vec![
            LogsResponse { entries: vec![entry(LogStream::Stdout, 1, "one long ")] },
            LogsResponse {
                entries: vec![entry(LogStream::Stderr, 2, "oops\n"), entry(LogStream::Stdout, 3, "line\n")],
            },
        ])
    }

    async fn stop(&self, request: Request<StopRequest>) -> Answer<StopResponse> {
        let request = request.into_inner();
        known(&request.container)?;
        self.note(format!("stop {} after {} s", request.container, request.timeout_seconds));
        self.stopped.send_replace(true);
        answer(StopResponse {})
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Answer<RemoveResponse> {
        let container = request.into_inner().container;
        known(&container)?;
        self.note(format!("remove {container}"));
        answer(RemoveResponse {})
    }
}

#[tonic::async_trait]
impl ImageService for Script {
    type PullStream = Stream<PullResponse>;

    async fn pull(&self, request: Request<PullRequest>) -> Answer<Self::PullStream> {
        let image = request.into_inner().image;
        self.note(format!("pull {image}"));
        let layer = |phase: layer_progress::Phase, current| {
            Event::Layer(LayerProgress {
                digest: format!("sha256:{}", "c".repeat(64)),
                phase: phase.into(),
                current,
                total: 2_000_000,
            })
        };
        let events = [
            layer(layer_progress::Phase::Downloading, 0),
            layer(layer_progress::Phase::Downloading, 1_000_000),
            layer(layer_progress::Phase::Done, 2_000_000),
            Event::Image(PulledImage {
                id: "sha256:aa".into(),
                reference: format!("docker.io/library/{image}:latest"),
                digest: "sha256:dd".into(),
            }),
        ];
        all(events.into_iter().map(|event| PullResponse { event: Some(event) }).collect())
    }

    async fn list_images(&self, _: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let tagged = ImageSummary {
            id: format!("sha256:{}", "a".repeat(64)),
            repo_tags: vec!["docker.io/library/nginx:1.27".into(), "localhost:5000/web:latest".into()],
            created_at: human::now() - 20 * 86_400_000_000_000,
            size: 187_400_000,
            ..Default::default()
        };
        let untagged = ImageSummary {
            id: format!("sha256:{}", "b".repeat(64)),
            repo_digests: vec!["localhost:5000/busybox@sha256:00".into()],
            size: 4_500_000,
            ..Default::default()
        };
        answer(ListImagesResponse { images: vec![tagged, untagged] })
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        match request.into_inner().image {
            image if image == "nope" => Err(Status::not_found("no image \"nope\"")),
            image => answer(RemoveImageResponse { untagged: vec![image], deleted: vec!["sha256:aa".into()] }),
        }
    }

    async fn tag_image(&self, request: Request<TagImageRequest>) -> Answer<TagImageResponse> {
        let request = request.into_inner();
        self.note(format!("tag {} {}", request.image, request.target));
        answer(TagImageResponse {})
    }

    async fn image_history(&self, _: Request<ImageHistoryRequest>) -> Answer<ImageHistoryResponse> {
        let newest = HistoryStep {
            image_id: format!("sha256:{}", "a".repeat(64)),
            created_at: human::now() - 180_000_000_000,
            created_by: "/bin/sh -c #(nop)\tCMD [\"nginx\" \"-g\" \"daemon off;\"] and more".into(),
            comment: "made".into(),
            ..Default::default()
        };
        let oldest =
            HistoryStep { created_by: "ADD rootfs /".into(), size: 187_400_000, ..Default::default() };
        answer(ImageHistoryResponse { steps: vec![newest, oldest] })
    }

    async fn disk_usage(&self, _: Request<DiskUsageRequest>) -> Answer<DiskUsageResponse> {
        let amount = |bytes, inodes| Some(Amount { bytes, inodes });
        let image = |id: &str, tag: &str, containers| ImageDiskUsage {
            image: Some(ImageSummary {
                id: id.repeat(64),
                repo_tags: vec![tag.into()],
                ..Default::default()
            }),
            shared: amount(100_000_000, 10),
            unique: amount(50_000_000, 5),
            containers,
        };
        answer(DiskUsageResponse {
            images: vec![image("a", "docker.io/library/nginx:1.27", 1), image("b", "localhost:5000/b:1", 0)],
            containers: vec![ContainerDiskUsage {
                id: "0".repeat(64),
                name: "web".into(),
                image: "nginx:1.27".into(),
                running: false,
                written: amount(4096, 1),
                created_at: human::now() - 180_000_000_000,
            }],
            image_total: amount(200_000_000, 20),
            image_reclaimable: amount(50_000_000, 5),
        })
    }

    type SaveStream = Stream<SaveResponse>;

    async fn save(&self, request: Request<SaveRequest>) -> Answer<Self::SaveStream> {
        self.note(format!("save {}", request.into_inner().images.join(" ")));
        all(["tar of ", "images"].map(|data| SaveResponse { data: data.into() }).into())
    }

    async fn load(&self, request: Request<Streaming<LoadRequest>>) -> Answer<LoadResponse> {
        let mut pieces = request.into_inner();
        let mut tar = Vec::new();
        while let Some(piece) = pieces.message().await? {
            tar.extend(piece.data);
        }
        self.note(format!("load {}", String::from_utf8_lossy(&tar)));
        let image = |id: &str, names: &[&str]| LoadedImage {
            id: format!("sha256:{id}"),
            names: names.iter().map(ToString::to_string).collect(),
        };
        answer(LoadResponse { images: vec![image("aa", &["docker.io/library/nginx:1"]), image("bb", &[])] })
    }

    type PushStream = Stream<PushResponse>;

    async fn push(&self, _: Request<PushRequest>) -> Answer<Self::PushStream> {
        Err(Status::unimplemented("push"))
    }

    async fn prune_images(&self, _: Request<PruneImagesRequest>) -> Answer<PruneImagesResponse> {
        Err(Status::unimplemented("prune_images"))
    }

    type CheckStoreStream = Stream<CheckStoreResponse>;

    async fn check_store(&self, _: Request<CheckStoreRequest>) -> Answer<Self::CheckStoreStream> {
        Err(Status::unimplemented("check_store"))
    }

    async fn commit(&self, _: Request<CommitRequest>) -> Answer<CommitResponse> {
        Err(Status::unimplemented("commit"))
    }

    async fn changes(&self, _: Request<ChangesRequest>) -> Answer<ChangesResponse> {
        Err(Status::unimplemented("changes"))
    }

    async fn inspect_image(&self, request: Request<InspectImageRequest>) -> Answer<InspectImageResponse> {
        match request.into_inner().image.as_str() {
            "nginx" => answer(InspectImageResponse { json: r#"{"Id":"sha256:aa"}"#.into() }),
            image => Err(Status::not_found(format!("no image {image:?}"))),
        }
    }
}

#[tonic::async_trait]
impl MetricsService for Script {
    type StreamMetricsStream = Stream<StreamMetricsResponse>;

    async fn stream_metrics(&self, _: Request<StreamMetricsRequest>) -> Answer<Self::StreamMetricsStream> {
        let round = |usage_nano_cores| StreamMetricsResponse {
            samples: vec![Sample {
                container_id: "0123".into(),
                name: "web".into(),
                cpu: Some(CpuSample { usage_ns: 1, usage_nano_cores }),
                memory: Some(MemorySample { working_set_bytes: 1 << 20, ..Default::default() }),
                ..Default::default()
            }],
        };
        all(vec![round(0), round(500_000_000), round(250_000_000)])
    }
}

#[tonic::async_trait]
impl SystemService for Script {
    async fn info(&self, _: Request<InfoRequest>) -> Answer<InfoResponse> {
        answer(InfoResponse {
            version: "9.9.9".into(),
            memory_bytes: 1 << 30,
            warnings: vec!["no IPv6".into()],
            ..Default::default()
        })
    }
}

/// The few calls of CRI that the command line makes; writing out all of its services would hide them.
async fn cri_call(request: http::Request<Body>) -> Result<http::Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    Ok(match path.as_str() {
        "/runtime.v1.RuntimeService/Version" => {
            Grpc::new(ProstCodec::default()).unary(tower::service_fn(version), request).await
        }
        "/runtime.v1.ImageService/ImageStatus" => {
            Grpc::new(ProstCodec::default()).unary(tower::service_fn(image_status), request).await
        }
        _ => Status::unimplemented(path).into_http(),
    })
}

async fn version(_: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
    answer(cri::VersionResponse {
        version: "0.1.0".into(),
        runtime_name: "sampan".into(),
        runtime_version: "9.9.9".into(),
        runtime_api_version: "1.0.0".into(),
    })
}

/// Everything is in the store but redis.
async fn image_status(request: Request<cri::ImageStatusRequest>) -> Answer<cri::ImageStatusResponse> {
    let name = request.into_inner().image.unwrap_or_default().image;
    answer(cri::ImageStatusResponse {
        image: (name != "redis").then(cri::Image::default),
        ..Default::default()
    })
}

macro_rules! cri_service {
    ($type:ident, $name:literal) => {
        #[derive(Debug, Clone)]
        struct $type;

        impl tonic::server::NamedService for $type {
            const NAME: &'static str = $name;
        }

        impl tower::Service<http::Request<Body>> for $type {
            type Response = http::Response<Body>;
            type Error = Infallible;
            type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

            fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<Result<(), Infallible>> {
                task::Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<Body>) -> Self::Future {
                Box::pin(cri_call(request))
            }
        }
    };
}

cri_service!(CriRuntime, "runtime.v1.RuntimeService");
cri_service!(CriImages, "runtime.v1.ImageService");
