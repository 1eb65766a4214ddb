//! The conversation with the agent: what the build is, what there is, what was asked for; and what comes of it.

use std::{
    ffi::OsStr,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use sampan_proto::sampan::{
    BuildRequest, BuildResult, BuildStart, ContextEnd, ContextEntries, FileContent, FileContents,
    build_request::Part, build_response::Event,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::{
    context,
    progress::View,
    source::{Folder, Source},
    target::Target,
};
use crate::cli::{
    agent::Agent,
    failure::{Advice, Failure},
    output::Output,
};

/// Messages on their way that nobody has taken yet.
const AHEAD: usize = 16;
/// Entries in one message, some hundred KiB.
const BATCH: usize = 1000;
const PIECE: usize = 256 << 10;

const ADVICE: Advice = &[
    (Code::Unavailable, "check that the registry is up, then build again"),
    (Code::ResourceExhausted, "'sampan system prune' makes room"),
];

/// What sending comes to when the build has ended.
const ENDED: io::ErrorKind = io::ErrorKind::ConnectionAborted;

/// How a build went.
pub(super) enum Outcome {
    Built(BuildResult),
    Failed {
        message: String,
        /// What the failed step left.
        debug_image: Option<String>,
    },
}

/// Sends everything and follows the build to its end.
pub(super) async fn build(
    agent: &Agent,
    start: BuildStart,
    source: Source,
    target: Target,
    mut view: View,
    out: &mut Output,
) -> Result<Outcome, Failure> {
    let mut sink = target.open()?;
    let (requests, stream) = mpsc::channel(AHEAD);
    let sender = Sender { requests, entries: Arc::default(), root: source.root() };
    sender
        .requests
        .try_send(request(Part::Start(start)))
        .map_err(|_| Failure::message("the build cannot begin"))?;
    let feeder = sender.clone();
    let fed = tokio::task::spawn_blocking(move || feeder.feed(&source));
    let mut fed =
        std::pin::pin!(async move { fed.await.unwrap_or_else(|error| Err(io::Error::other(error))) });
    let mut feeding = true;
    let refused = |status| Failure::answered(&status, ADVICE);
    let mut builds = agent.builds();
    let mut call = std::pin::pin!(builds.build(ReceiverStream::new(stream)));
    // The agent answers once it has looked at what the build is; it may want to see the context for that.
    let mut events = loop {
        tokio::select! {
            answered = &mut call => break answered.map_err(refused)?.into_inner(),
            result = &mut fed, if feeding => {
                feeding = false;
                read(result)?;
            }
        }
    };
    let mut failed = None;
    loop {
        let message = tokio::select! {
            message = events.message() => message,
            result = &mut fed, if feeding => {
                feeding = false;
                read(result)?;
                continue;
            }
            () = view.tick() => continue,
        };
        let event = match message {
            Ok(Some(message)) => message.event,
            Ok(None) => break,
            // The last message has told it better.
            Err(_) if failed.is_some() => break,
            Err(status) => {
                drop(view);
                return Err(refused(status));
            }
        };
        match event {
            Some(Event::Wanted(wanted)) => sender.send(wanted.numbers),
            Some(Event::Output(piece)) => sink.take(&piece, out)?,
            Some(Event::Result(result)) => {
                view.finish(&result, out)?;
                sink.finish()?;
                return Ok(Outcome::Built(result));
            }
            Some(Event::Failure(failure)) => {
                view.failed(&failure, out)?;
                failed = Some(failure);
            }
            Some(event) => view.show(event, out)?,
            None => {}
        }
    }
    drop(view);
    match failed {
        Some(failure) => {
            let debug_image = Some(failure.debug_image).filter(|image| !image.is_empty());
            Ok(Outcome::Failed { message: failure.message, debug_image })
        }
        None => Err(Failure::message("the agent ended the build without saying how it went; build again")),
    }
}

fn request(part: Part) -> BuildRequest {
    BuildRequest { part: Some(part) }
}

fn read(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        // Why, the agent tells.
        Err(error) if error.kind() == ENDED => Ok(()),
        result => result.map_err(|error| Failure::message(format!("cannot read the context: {error}"))),
    }
}

/// Sends what the build is made of.
#[derive(Clone)]
struct Sender {
    requests: mpsc::Sender<BuildRequest>,
    /// The paths of entries, by number.
    entries: Arc<Mutex<Vec<PathBuf>>>,
    root: PathBuf,
}

impl Sender {
    fn feed(&self, source: &Source) -> io::Result<()> {
        match source {
            Source::Folder(folder) => self.entries(folder)?,
            Source::Input { .. } => self.stream(io::stdin())?,
            Source::Url { .. } => return Ok(()),
        }
        self.tell(Part::ContextEnd(ContextEnd {}))
    }

    fn entries(&self, folder: &Folder) -> io::Result<()> {
        let mut batch = Vec::with_capacity(BATCH);
        context::scan(&folder.root, &folder.ignore, &mut |entry| {
            self.paths().push(Path::new(OsStr::from_bytes(&entry.path)).to_owned());
            batch.push(entry);
            if batch.len() < BATCH {
                return Ok(());
            }
            let entries = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
            self.tell(Part::Entries(ContextEntries { entries }))
        })?;
        if batch.is_empty() { Ok(()) } else { self.tell(Part::Entries(ContextEntries { entries: batch })) }
    }

    fn stream(&self, mut input: impl Read) -> io::Result<()> {
        loop {
            let mut data = vec![0; PIECE];
            match input.read(&mut data)? {
                0 => return Ok(()),
                length => {
                    data.truncate(length);
                    self.tell(Part::Data(data))?;
                }
            }
        }
    }

    /// Sends the content of files, on a thread of its own: the agent goes on telling meanwhile.
    fn send(&self, numbers: Vec<u32>) {
        let sender = self.clone();
        tokio::task::spawn_blocking(move || {
            let mut contents = Contents { sender: &sender, files: Vec::new(), bytes: 0 };
            for number in numbers {
                let path = sender.paths().get(number as usize).cloned().unwrap_or_default();
                let told = context::send(&sender.root, number, &path, &mut |content| contents.add(content));
                // The build has ended.
                if told.is_err() {
                    return;
                }
            }
            let _ = contents.flush();
        });
    }

    fn tell(&self, part: Part) -> io::Result<()> {
        self.requests.blocking_send(request(part)).map_err(|_| ENDED.into())
    }

    fn paths(&self) -> std::sync::MutexGuard<'_, Vec<PathBuf>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Content of files on its way, many small ones in one message: HTTP/2 takes a flood of tiny ones for an attack.
struct Contents<'s> {
    sender: &'s Sender,
    files: Vec<FileContent>,
    bytes: usize,
}

impl Contents<'_> {
    fn add(&mut self, content: FileContent) -> io::Result<()> {
        self.bytes += content.data.len();
        self.files.push(content);
        if self.bytes >= PIECE || self.files.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.bytes = 0;
        let files = std::mem::take(&mut self.files);
        if files.is_empty() { Ok(()) } else { self.sender.tell(Part::Contents(FileContents { files })) }
    }
}

impl Source {
    fn root(&self) -> PathBuf {
        match self {
            Source::Folder(folder) => folder.root.clone(),
            Source::Input { .. } | Source::Url { .. } => PathBuf::new(),
        }
    }
}
