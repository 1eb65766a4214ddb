//! `BuildService`: images from Dockerfiles, and what is kept of building them.

mod cache;
mod client;
mod convert;

use std::{io::Read, sync::Arc};

use sampan_imagestore::{
    Reference,
    build::{Built, Context, Event, Failure, Request as Wanted, Sent},
};
use sampan_proto::sampan::{
    self, build_request::Part, build_response::Event as Said, build_service_server::BuildService,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use self::client::Client;
use super::{Feed, Reply};
use crate::{
    build::{
        Steps,
        log::{self, Recorder},
    },
    context::{Context as Agent, blocking},
    error::{Error, Result, image_kind},
    pods::Pods,
};

/// Messages that may wait for a slow client.
const QUEUE: usize = 256;
/// What is read of a log at once.
const CHUNK: usize = 256 << 10;
/// What clients may take to tell the context.
const TELLING: std::time::Duration = std::time::Duration::from_secs(600);
/// No secret is larger.
const MAX_SECRET: usize = 512 << 10;

/// The service.
#[derive(Debug, Clone)]
pub struct Builds {
    /// Whose images and network builds use.
    pub pods: Pods,
}

type Answers = mpsc::Sender<Result<sampan::BuildResponse, Status>>;

#[tonic::async_trait]
impl BuildService for Builds {
    type BuildStream = Feed<sampan::BuildResponse>;

    async fn build(&self, request: Request<Streaming<sampan::BuildRequest>>) -> Reply<Self::BuildStream> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let agent = self.pods.context().clone();
        let messages = request.into_inner();
        tokio::spawn(async move {
            if let Err(status) = serve(&agent, messages, &sender).await {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(ReceiverStream::new(receiver).into())
    }

    async fn list_build_cache(
        &self,
        _: Request<sampan::ListBuildCacheRequest>,
    ) -> Reply<sampan::ListBuildCacheResponse> {
        Ok(cache::list(self.pods.context()).await.into())
    }

    async fn prune_build_cache(
        &self,
        request: Request<sampan::PruneBuildCacheRequest>,
    ) -> Reply<sampan::PruneBuildCacheResponse> {
        Ok(cache::prune(self.pods.context(), request.into_inner()).await?.into())
    }

    async fn list_builds(&self, _: Request<sampan::ListBuildsRequest>) -> Reply<sampan::ListBuildsResponse> {
        let root = self.pods.context().config.root.clone();
        let builds = blocking(move || log::list(&root)).await;
        let summary = |build: log::Summary| sampan::BuildSummary {
            id: build.id,
            started_at: build.started_at,
            finished_at: build.finished_at,
            title: build.title,
            image_id: build.image_id,
            error: build.error,
        };
        Ok(sampan::ListBuildsResponse { builds: builds.into_iter().map(summary).collect() }.into())
    }

    type BuildLogStream = Feed<sampan::BuildLogResponse>;

    async fn build_log(&self, request: Request<sampan::BuildLogRequest>) -> Reply<Self::BuildLogStream> {
        let (root, id) = (self.pods.context().config.root.clone(), request.into_inner().build_id);
        let mut file = blocking(move || log::open(&root, &id)).await?;
        let (sender, receiver) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let mut data = vec![0; CHUNK];
            loop {
                let answer = match file.read(&mut data) {
                    Ok(0) => return,
                    Ok(length) => Ok(sampan::BuildLogResponse { data: data[..length].to_vec() }),
                    Err(error) => Err(Status::internal(format!("read the log: {error}"))),
                };
                let last = answer.is_err();
                if sender.blocking_send(answer).is_err() || last {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// One call of `Build`, from its first message to its last.
async fn serve(
    agent: &Arc<Agent>,
    mut messages: Streaming<sampan::BuildRequest>,
    answers: &Answers,
) -> Result<(), Status> {
    let start = match next(&mut messages).await? {
        Some(Part::Start(start)) => start,
        _ => return Err(Status::invalid_argument("the first message of a build is its start")),
    };
    let id = new_id();
    answer(answers, Said::Started(sampan::BuildStarted { build_id: id.clone() })).await?;
    let (output, files_only) = (start.output(), start.output() == sampan::build_start::Output::Files);
    let (mut wanted, telling) = (convert::wanted(&start, files_only)?, start.source());
    let (events, received) = mpsc::channel(QUEUE);
    let told = tokio::time::timeout(TELLING, told(agent, &start, telling, &mut messages));
    let told = told.await.map_err(|_| Status::deadline_exceeded("the context was not told in time"))??;
    let context = match told {
        Told::Context(context) => context.end(Some(events.clone())),
        Told::Whole(context) => {
            let path = wanted.path.clone();
            let ignoring = blocking(move || context.ignoring(&path)).await;
            let ignoring = ignoring.map_err(|error| Status::from(Error::from(error)))?;
            wanted.dockerfile = wanted.dockerfile.or(ignoring.dockerfile);
            wanted.options.ignore = ignoring.ignore;
            ignoring.left.end(None)
        }
        Told::Nothing => agent.builder.no_context(),
        Told::Dockerfile(text) => {
            wanted.dockerfile = Some(text);
            agent.builder.no_context()
        }
    };
    let context = Arc::new(context);
    let title = start.tags.first().cloned().unwrap_or_else(|| wanted.path.clone());
    let (root, log_id) = (agent.config.root.clone(), id.clone());
    let recorder = blocking(move || Recorder::begin(&root, &log_id, &title)).await;
    let names = wanted.names.clone();
    let (client, giving) = Client::new(answers.clone());
    let telling = tokio::spawn(tell(received, recorder, client));
    let built = built(agent, &id, wanted, context, events, messages, answers).await;
    // Everything that was said before the end.
    let recorder = telling.await.map_err(|error| Status::internal(error.to_string()))?;
    let (ended, outcome) = match &built {
        Ok(built) => (Ok(built.image.as_ref().map(|image| image.id.to_string()).unwrap_or_default()), Ok(())),
        Err(failure) => (Err(failure.text.clone()), Err(())),
    };
    blocking(move || recorder.end(ended)).await;
    giving.await.map_err(|error| Status::internal(error.to_string()))?;
    match (built, outcome) {
        (Ok(built), _) => finish(agent, built, &names, output, answers).await,
        (Err(failure), _) => {
            let status = Status::from(Error::Build {
                kind: image_kind(failure.kind()),
                message: failure.text.clone(),
            });
            let _ = answer(answers, Said::Failure(convert::failure(failure))).await;
            Err(status)
        }
    }
}

/// Runs the build, and takes what the client sends meanwhile. A client that goes away ends it.
async fn built(
    agent: &Arc<Agent>,
    id: &str,
    wanted: Wanted,
    context: Arc<Context>,
    events: mpsc::Sender<Event>,
    messages: Streaming<sampan::BuildRequest>,
    answers: &Answers,
) -> std::result::Result<Built, Failure> {
    let runner = Arc::new(Steps { context: agent.clone() });
    let building = agent.builder.build(id, wanted, context.clone(), runner, events);
    let receiving = receive(messages, context.clone());
    tokio::pin!(building);
    tokio::select! {
        built = &mut building => built,
        error = receiving => {
            // Whoever waits for content hears of it; dropping the build ends the rest.
            context.abandon();
            Err(Failure::of(error))
        }
        () = answers.closed() => {
            context.abandon();
            Err(Failure::of(sampan_imagestore::build::Error::Cancelled))
        }
    }
}

/// Takes content until the client ends its side; says why there will be no more.
async fn receive(
    mut messages: Streaming<sampan::BuildRequest>,
    context: Arc<Context>,
) -> sampan_imagestore::build::Error {
    use sampan_imagestore::build::Error as BuildError;
    loop {
        let contents = match next(&mut messages).await {
            Ok(Some(Part::Content(content))) => vec![content],
            Ok(Some(Part::Contents(contents))) => contents.files,
            Ok(Some(_)) => return BuildError::Client("only content is to be sent while a build runs".into()),
            Ok(None) | Err(_) => return BuildError::Cancelled,
        };
        let context = context.clone();
        let taken = blocking(move || {
            let mut contents = contents.iter();
            contents.try_for_each(|file| context.receive(file.number, &file.data, file.end, &file.error))
        });
        if let Err(error) = taken.await {
            return error;
        }
    }
}

/// What a client has told of its context.
enum Told {
    Context(sampan_imagestore::build::Telling),
    /// All of its content is here, and nothing was left out.
    Whole(sampan_imagestore::build::Telling),
    Dockerfile(Vec<u8>),
    Nothing,
}

async fn told(
    agent: &Arc<Agent>,
    start: &sampan::BuildStart,
    source: sampan::build_start::Source,
    messages: &mut Streaming<sampan::BuildRequest>,
) -> Result<Told, Status> {
    use sampan::build_start::Source;
    let refused = |error| Status::from(Error::from(error));
    let sent = match source {
        Source::None => return Ok(Told::Nothing),
        Source::Url => agent.builder.fetch(&start.context_url).await.map_err(refused)?,
        Source::Entries => {
            let (agent, id) = (agent.clone(), start.context_id.clone());
            let mut telling = blocking(move || agent.builder.context(&id)).await;
            loop {
                match next(messages).await? {
                    Some(Part::Entries(entries)) => {
                        let added = blocking(move || {
                            let mut added = entries.entries.into_iter().map(convert::entry);
                            let added = added.try_for_each(|entry| telling.add(entry));
                            added.map(|()| telling)
                        });
                        telling = added.await.map_err(refused)?;
                    }
                    Some(Part::ContextEnd(_)) => return Ok(Told::Context(telling)),
                    _ => return Err(Status::invalid_argument("the context ends with context_end")),
                }
            }
        }
        Source::Stream => {
            let builder = agent.builder.clone();
            let mut upload = blocking(move || builder.upload()).await.map_err(refused)?;
            loop {
                match next(messages).await? {
                    Some(Part::Data(data)) => {
                        let written = blocking(move || upload.write(&data).map(|()| upload));
                        upload = written.await.map_err(refused)?;
                    }
                    Some(Part::ContextEnd(_)) => break,
                    _ => return Err(Status::invalid_argument("the context ends with context_end")),
                }
            }
            upload.end().await.map_err(refused)?
        }
    };
    Ok(match sent {
        Sent::Context(telling) => Told::Whole(telling),
        Sent::Dockerfile(text) => Told::Dockerfile(text),
    })
}

/// Gives on what happens to the log and the client, until nothing more can. The log waits for nobody.
async fn tell(mut events: mpsc::Receiver<Event>, mut recorder: Recorder, mut client: Client) -> Recorder {
    while let Some(event) = events.recv().await {
        let mut batch = vec![event];
        while let Ok(event) = events.try_recv() {
            batch.push(event);
        }
        let (returned, events) = blocking(move || {
            recorder.take(&batch);
            (recorder, batch)
        })
        .await;
        recorder = returned;
        events.into_iter().for_each(|event| client.tell(event));
    }
    recorder
}

/// What a build that went well has for its client.
async fn finish(
    agent: &Arc<Agent>,
    built: Built,
    names: &[Reference],
    output: sampan::build_start::Output,
    answers: &Answers,
) -> Result<(), Status> {
    use sampan::build_start::Output;
    if output != Output::Image {
        let (agent, built, answers) = (agent.clone(), built.clone(), answers.clone());
        let names = names.to_vec();
        let mut pieces = Pieces { answers, data: Vec::with_capacity(CHUNK) };
        blocking(move || {
            match (&built.image, output) {
                (Some(image), Output::Archive) => {
                    agent.store.save(&[(image.clone(), names)], &mut pieces).map_err(Error::from)?;
                }
                _ => {
                    let runner: Arc<dyn sampan_imagestore::build::Runner> =
                        Arc::new(Steps { context: agent.clone() });
                    agent.builder.export(&built, &runner, &mut pieces).map_err(Error::from)?;
                }
            }
            std::io::Write::flush(&mut pieces).map_err(|_| Error::Cancelled("the client is gone".into()))
        })
        .await?;
    }
    let result = sampan::BuildResult {
        image_id: built.image.as_ref().map(|image| image.id.to_string()).unwrap_or_default(),
        names: built.image.iter().flat_map(|_| names.iter().map(ToString::to_string)).collect(),
        digest: built.image.as_ref().map(|image| image.manifest.to_string()).unwrap_or_default(),
        steps: built.steps,
        cached: built.cached,
    };
    answer(answers, Said::Result(result)).await
}

/// A tar on its way to the client.
struct Pieces {
    answers: Answers,
    data: Vec<u8>,
}

impl std::io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.data.extend_from_slice(bytes);
        if self.data.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let data = std::mem::replace(&mut self.data, Vec::with_capacity(CHUNK));
        if data.is_empty() {
            return Ok(());
        }
        let message = sampan::BuildResponse { event: Some(Said::Output(data)) };
        self.answers.blocking_send(Ok(message)).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }
}

async fn next(messages: &mut Streaming<sampan::BuildRequest>) -> Result<Option<Part>, Status> {
    match messages.message().await? {
        Some(message) => message
            .part
            .map(Some)
            .ok_or_else(|| Status::invalid_argument("a message of a build says nothing")),
        None => Ok(None),
    }
}

async fn answer(answers: &Answers, event: Said) -> Result<(), Status> {
    let gone = |_| Status::cancelled("the client is gone");
    answers.send(Ok(sampan::BuildResponse { event: Some(event) })).await.map_err(gone)
}

fn new_id() -> String {
    let random: [u8; 8] = rand::random();
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}
