//! `sampan attach`: joins the streams of a running container until it ends.

use clap::Args;
use sampan_proto::sampan::{
    AttachRequest, AttachResponse, AttachStart, WaitRequest, attach_request::Message as Request,
    attach_response::Message as Response,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, Streaming};

use super::{
    agent::Agent,
    failure::Failure,
    output::Output,
    session::{self, End, Person, Received, Sent},
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Give it no input
    #[arg(long)]
    no_stdin: bool,

    /// A name, an id or the beginning of one
    container: String,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<u8, Failure> {
    let session =
        join(&arguments.container, !arguments.no_stdin, agent).await.map_err(Failure::of_container)?;
    match session.stay(out).await? {
        End::Left => Ok(0),
        _ => exit_code(&arguments.container, agent).await,
    }
}

/// The exit code of a container that has ended or is about to.
pub(super) async fn exit_code(container: &str, agent: &Agent) -> Result<u8, Failure> {
    let request = WaitRequest { container: container.to_owned() };
    let answer = agent.containers().wait(request).await.map_err(Failure::of_container)?.into_inner();
    Ok(answer.exit_code as u8)
}

/// A session with a container whose output is ours from the moment it was joined.
pub(super) struct Session {
    answers: Streaming<AttachResponse>,
    messages: tokio::sync::mpsc::Sender<Request>,
    stdin: bool,
    tty: bool,
}

/// Joins a container that waits for its start or runs.
pub(super) async fn join(container: &str, stdin: bool, agent: &Agent) -> Result<Session, Status> {
    let (messages, sent) = tokio::sync::mpsc::channel(4);
    let start = AttachStart { container: container.to_owned(), stdin, size: session::size() };
    let first = tokio_stream::once(Request::Start(start));
    let requests = first.chain(ReceiverStream::new(sent));
    let requests = requests.map(|message| AttachRequest { message: Some(message) });
    let mut answers = agent.containers().attach(requests).await?.into_inner();
    match answers.message().await?.and_then(|answer| answer.message) {
        Some(Response::Attached(attached)) => Ok(Session { answers, messages, stdin, tty: attached.tty }),
        other => Err(Status::internal(format!("the agent began an attachment with {other:?}"))),
    }
}

impl Session {
    /// Carries keyboard and output until the container has ended or the person has left.
    pub(super) async fn stay(self, out: &mut Output) -> Result<End, Failure> {
        session::check_terminal(self.stdin, self.tty)?;
        let (person, mut sent) = Person::sit_down(self.stdin, self.tty)?;
        let messages = self.messages;
        tokio::spawn(async move {
            while let Some(sent) = sent.recv().await {
                let message = match sent {
                    Sent::Data(data) => Request::Stdin(data),
                    Sent::Resize(size) => Request::Resize(size),
                };
                if messages.send(message).await.is_err() {
                    return;
                }
            }
        });
        let received = |answer: AttachResponse| match answer.message {
            Some(Response::Stdout(data)) => Received::Output(data),
            Some(Response::Stderr(data)) => Received::Errors(data),
            Some(Response::Attached(_)) | None => Received::Nothing,
        };
        person.watch(self.answers, received, out).await.map_err(Failure::of_container)
    }
}
