//! The gRPC server: every service on one unix socket, with reflection and health.

use std::{
    fs, io,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use sampan_proto::{
    DESCRIPTORS,
    cri::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer},
    sampan::{
        build_service_server::BuildServiceServer, container_service_server::ContainerServiceServer,
        event_service_server::EventServiceServer,
        image_service_server::ImageServiceServer as SampanImagesServer,
        metrics_service_server::MetricsServiceServer, system_service_server::SystemServiceServer,
    },
};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Server, server::Router};
use tower::layer::util::{Identity, Stack};

use crate::{
    cri,
    error::{Error, Result, at},
    pods::Pods,
    services,
    stats::Collector,
    streaming::Streaming,
};

mod measured;

use measured::Measure;

/// Largest request, and what kubelet's client takes as an answer by default.
const MESSAGE_LIMIT: usize = 16 << 20;
/// Largest answer: an execution's two streams of 16 MiB, and what is around them.
const ANSWER_LIMIT: usize = 33 << 20;
/// Calls that one connection may have in flight; more wait. Above what a busy kubelet has, and it bounds what a client that
/// opens streams without end can make us hold.
const STREAMS: u32 = 1000;
/// Streams that a client has reset and that are still ours to clean up; a client that resets more is cut off.
const RESETS: usize = 64;
/// Idle connections are asked whether they still live.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Takes the socket: the one systemd passed as standard input, or a new one. Another agent that answers on
/// the path keeps it.
///
/// # Errors
/// A path in use, or one where no socket can be made.
pub async fn listen(path: &Path) -> Result<UnixListener> {
    if let Some(inherited) = inherited_listener().map_err(at("use", "the socket passed as standard input"))? {
        return Ok(inherited);
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(Error::Precondition(format!(
            "another agent serves {}; stop it or choose another socket",
            path.display()
        )));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at("replace", path)(error)),
        _ => {}
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(at("create", folder))?;
    }
    let listener = UnixListener::bind(path).map_err(at("listen on", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(at("set the mode of", path))?;
    Ok(listener)
}

/// `StandardInput=socket` in the unit: a listening socket needs no number to be agreed on.
fn inherited_listener() -> io::Result<Option<UnixListener>> {
    let stdin = io::stdin();
    if !rustix::net::sockopt::socket_acceptconn(stdin.as_fd()).unwrap_or(false) {
        return Ok(None);
    }
    let listener = std::os::unix::net::UnixListener::from(stdin.as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener).map(Some)
}

/// Serves until `stop` comes, then answers what is in flight.
///
/// # Errors
/// What ends the server early.
pub async fn serve(
    listener: UnixListener,
    pods: Pods,
    collector: Collector,
    streaming: Streaming,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let ending = pods.context().ending.clone();
    let router = router(pods, collector, streaming).await?;
    let stop = async move {
        stop.await;
        ending.cancel();
    };
    router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop).await?;
    Ok(())
}

async fn router(
    pods: Pods,
    collector: Collector,
    streaming: Streaming,
) -> anyhow::Result<Router<Stack<Measure, Identity>>> {
    let context: Arc<_> = pods.context().clone();
    let measure = Measure(context.clone());
    macro_rules! limited {
        ($server:ident, $service:expr) => {
            $server::new($service)
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(ANSWER_LIMIT)
        };
    }
    let runtime = limited!(
        RuntimeServiceServer,
        cri::Runtime { pods: pods.clone(), collector: collector.clone(), streaming }
    );
    let images = limited!(ImageServiceServer, cri::Images { context: context.clone() });
    let containers = limited!(ContainerServiceServer, services::container::Containers { pods: pods.clone() });
    let sampan_images = limited!(SampanImagesServer, services::image::Images { pods: pods.clone() });
    let metrics =
        limited!(MetricsServiceServer, services::metrics::Metrics { pods: pods.clone(), collector });
    let events = limited!(EventServiceServer, services::event::EventsOfNode { context: context.clone() });
    let builds = limited!(BuildServiceServer, services::build::Builds { pods: pods.clone() });
    let system = limited!(SystemServiceServer, services::system::System { pods });
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .max_concurrent_streams(Some(STREAMS))
        .http2_max_pending_accept_reset_streams(Some(RESETS))
        .layer(measure)
        .add_service(runtime)
        .add_service(images)
        .add_service(containers)
        .add_service(sampan_images)
        .add_service(builds)
        .add_service(metrics)
        .add_service(system)
        .add_service(events)
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?))
}
