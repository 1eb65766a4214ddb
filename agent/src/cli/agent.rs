//! The connection to the agent: one HTTP/2 channel over its unix socket, and a client for each service.
//!
//! A socket that nobody serves is found out here, with a message that says how to start the agent.

use std::{io, path::Path};

use hyper_util::rt::TokioIo;
use sampan_proto::{
    cri::{
        image_service_client::ImageServiceClient as CriImages,
        runtime_service_client::RuntimeServiceClient as CriRuntime,
    },
    sampan::{
        InspectRequest, build_service_client::BuildServiceClient as Builds,
        container_service_client::ContainerServiceClient as Containers,
        event_service_client::EventServiceClient as Events,
        image_service_client::ImageServiceClient as Images,
        metrics_service_client::MetricsServiceClient as Metrics,
        system_service_client::SystemServiceClient as System,
    },
};
use serde::Deserialize;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::failure::Failure;

/// The largest answer taken: ExecSync gives 16 MiB of each stream, and lists of a full node pass tonic's 4 MiB.
const MAX_ANSWER: usize = 64 << 20;

#[derive(Debug, Clone)]
pub(super) struct Agent {
    channel: Channel,
}

impl Agent {
    pub(super) async fn connect(socket: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(socket).await.map_err(|error| unreachable(socket, &error))?;
        let mut first = Some(stream);
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let (stream, path) = (first.take(), path.clone());
            async move {
                let stream = match stream {
                    Some(stream) => stream,
                    None => UnixStream::connect(path).await?,
                };
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        // The address is never looked up; it only fills the :authority header.
        let channel = Endpoint::from_static("http://sampan").connect_with_connector(connector).await;
        let channel = channel.map_err(|error| {
            Failure::message(format!(
                "{} does not speak gRPC: {error}; is it the agent's socket?",
                socket.display()
            ))
        })?;
        Ok(Self { channel })
    }

    pub(super) fn containers(&self) -> Containers<Channel> {
        Containers::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    pub(super) fn images(&self) -> Images<Channel> {
        Images::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    pub(super) fn builds(&self) -> Builds<Channel> {
        Builds::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    pub(super) fn events(&self) -> Events<Channel> {
        Events::new(self.channel.clone())
    }

    pub(super) fn metrics(&self) -> Metrics<Channel> {
        Metrics::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    pub(super) fn system(&self) -> System<Channel> {
        System::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    pub(super) fn cri(&self) -> CriRuntime<Channel> {
        CriRuntime::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    pub(super) fn cri_images(&self) -> CriImages<Channel> {
        CriImages::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// The whole id of a container that a person has named; CRI knows no names and no prefixes.
    pub(super) async fn container_id(&self, name: &str) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Identified {
            #[serde(rename = "Id")]
            id: String,
        }
        let request = InspectRequest { container: name.to_owned() };
        let answer = self.containers().inspect(request).await.map_err(Failure::of_container)?.into_inner();
        let identified: Identified = serde_json::from_str(&answer.json).map_err(|error| {
            Failure::message(format!("the agent describes {name} in a way this command cannot read: {error}"))
        })?;
        Ok(identified.id)
    }
}

fn unreachable(socket: &Path, error: &io::Error) -> Failure {
    let socket = socket.display();
    const START: &str = "start it with 'systemctl start sampand' or 'sampand', or name another socket with \
                         --socket or SAMPAN_SOCKET";
    Failure::Message(match error.kind() {
        io::ErrorKind::NotFound => format!("the agent is not running: there is no socket {socket}; {START}"),
        io::ErrorKind::ConnectionRefused => {
            format!("the agent is not running: nobody listens on {socket}; {START}")
        }
        io::ErrorKind::PermissionDenied => {
            format!("no permission to open {socket}: it is root's; use 'sudo sampan'")
        }
        _ => format!("cannot connect to {socket}: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    async fn refusal(socket: &Path) -> String {
        match Agent::connect(socket).await {
            Err(Failure::Message(message)) => message,
            other => panic!("expected a message: {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_missing_socket_says_how_to_start_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let message = refusal(&folder.path().join("no.sock")).await;
        assert!(message.contains("there is no socket"), "{message}");
        assert!(
            message.contains("systemctl start sampand") && message.contains("SAMPAN_SOCKET"),
            "{message}"
        );
    }

    #[tokio::test]
    async fn a_socket_left_by_a_dead_agent_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("dead.sock");
        drop(UnixListener::bind(&socket).unwrap());
        let message = refusal(&socket).await;
        assert!(message.contains("nobody listens on"), "{message}");
    }
}
