//! A client of the build service: it tells a directory of the test's own as a context, gives content on demand, and keeps
//! what it was told.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sampan_proto::sampan::build_request::Part;
use sampan_proto::sampan::build_response::Event;
use sampan_proto::sampan::build_service_client::BuildServiceClient;
use sampan_proto::sampan::{
    BuildFailure, BuildRequest, BuildResult, BuildStart, BuildStep, BuildWarning, ContextEnd, ContextEntries,
    ContextEntry, FileContent, build_start, build_step::State,
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

/// Longer than any build of a test takes.
const LIMIT: Duration = Duration::from_secs(300);
const PIECE: usize = 256 << 10;

/// A build as its client saw it.
#[derive(Debug, Default)]
pub struct Build {
    /// Of a build that went well.
    pub result: Option<BuildResult>,
    /// Of one that did not.
    pub failure: Option<BuildFailure>,
    /// Likewise.
    pub status: Option<Status>,
    /// The last word on each step.
    pub steps: BTreeMap<u32, BuildStep>,
    /// What commands wrote, all together.
    pub log: String,
    /// Warnings.
    pub warnings: Vec<BuildWarning>,
    /// The paths whose content was asked for.
    pub wanted: Vec<String>,
    /// The archive or the files.
    pub output: Vec<u8>,
    /// For the log.
    pub id: String,
}

impl Build {
    /// The image's id.
    ///
    /// # Panics
    /// When the build failed.
    pub fn image(&self) -> &str {
        match &self.result {
            Some(result) => &result.image_id,
            None => panic!("the build failed: {:?}\n{}", self.status, self.log),
        }
    }

    /// Why the build failed.
    ///
    /// # Panics
    /// When it went well.
    pub fn error(&self) -> &str {
        self.status.as_ref().expect("the build went well").message()
    }

    /// The steps of stages that were in the given state, by their titles.
    pub fn titles(&self, state: State) -> Vec<&str> {
        let steps = self.steps.values().filter(|step| step.number > 0 && step.state() == state);
        steps.map(|step| step.title.as_str()).collect()
    }
}

/// A build that runs.
#[derive(Debug)]
pub struct Running {
    parts: mpsc::Sender<BuildRequest>,
    answers: tonic::Streaming<sampan_proto::sampan::BuildResponse>,
    paths: Vec<PathBuf>,
    root: PathBuf,
}

impl Running {
    /// Begins a build of a directory with the Dockerfile in it; `change` says what else is wanted.
    ///
    /// # Panics
    /// When the agent cannot be spoken to.
    pub async fn begin(channel: Channel, root: &Path, change: impl FnOnce(&mut BuildStart)) -> Running {
        let mut start = BuildStart {
            source: build_start::Source::Entries as i32,
            context_id: format!("test:{}", root.display()),
            ..BuildStart::default()
        };
        change(&mut start);
        let mut paths = Vec::new();
        if start.source() == build_start::Source::Entries {
            scan(root, root, &mut paths);
        }
        let entries: Vec<ContextEntry> = paths.iter().map(|path| entry(root, path)).collect();
        let (parts, receiver) = mpsc::channel(16);
        let stream = ReceiverStream::new(receiver);
        let source = start.source();
        parts.send(request(Part::Start(start))).await.expect("room");
        let feeding = parts.clone();
        if source == build_start::Source::Entries {
            tokio::spawn(async move {
                for chunk in entries.chunks(1000) {
                    let _ = feeding
                        .send(request(Part::Entries(ContextEntries { entries: chunk.to_vec() })))
                        .await;
                }
                let _ = feeding.send(request(Part::ContextEnd(ContextEnd {}))).await;
            });
        }
        let mut client = BuildServiceClient::new(channel).max_decoding_message_size(64 << 20);
        let answers = client.build(stream).await.expect("a stream of answers").into_inner();
        Running { parts, answers, paths, root: root.to_owned() }
    }

    /// Sends the context as one stream.
    ///
    /// # Panics
    /// When the agent takes no more.
    pub async fn send(&self, data: &[u8]) {
        for piece in data.chunks(PIECE) {
            self.parts.send(request(Part::Data(piece.to_vec()))).await.expect("the agent takes it");
        }
        self.parts.send(request(Part::ContextEnd(ContextEnd {}))).await.expect("the agent takes it");
    }

    /// Serves the build until `until` says that it is enough, or to its end.
    ///
    /// # Panics
    /// When it takes longer than any build does.
    pub async fn serve(&mut self, mut until: impl FnMut(&Build) -> bool) -> Build {
        let mut build = Build::default();
        loop {
            let answer = tokio::time::timeout(LIMIT, self.answers.next()).await.expect("an answer in time");
            match answer {
                None => return build,
                Some(Err(status)) => {
                    build.status = Some(status);
                    return build;
                }
                Some(Ok(answer)) => self.take(&mut build, answer.event.expect("an event")).await,
            }
            if until(&build) {
                return build;
            }
        }
    }

    async fn take(&self, build: &mut Build, event: Event) {
        match event {
            Event::Started(started) => build.id = started.build_id,
            Event::Wanted(wanted) => {
                for number in wanted.numbers {
                    let path = &self.paths[number as usize];
                    build.wanted.push(path.display().to_string());
                    self.content(number, &fs::read(self.root.join(path)).expect("a file that was told"))
                        .await;
                }
            }
            Event::Step(step) => drop(build.steps.insert(step.id, step)),
            Event::Log(log) => build.log.push_str(&String::from_utf8_lossy(&log.data)),
            Event::Warning(warning) => build.warnings.push(warning),
            Event::Pull(_) => {}
            Event::Output(data) => build.output.extend(data),
            Event::Result(result) => build.result = Some(result),
            Event::Failure(failure) => build.failure = Some(failure),
        }
    }

    async fn content(&self, number: u32, data: &[u8]) {
        for piece in data.chunks(PIECE) {
            let content = FileContent { number, data: piece.to_vec(), ..FileContent::default() };
            let _ = self.parts.send(request(Part::Content(content))).await;
        }
        let content = FileContent { number, end: true, ..FileContent::default() };
        let _ = self.parts.send(request(Part::Content(content))).await;
    }
}

/// Builds a directory to the end.
pub async fn build(channel: Channel, root: &Path, change: impl FnOnce(&mut BuildStart)) -> Build {
    Running::begin(channel, root, change).await.serve(|_| false).await
}

fn request(part: Part) -> BuildRequest {
    BuildRequest { part: Some(part) }
}

fn scan(root: &Path, at: &Path, paths: &mut Vec<PathBuf>) {
    let mut names: Vec<PathBuf> =
        fs::read_dir(at).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
    names.sort();
    for path in names {
        let kind = fs::symlink_metadata(&path).expect("a file").file_type();
        paths.push(path.strip_prefix(root).expect("below the root").to_owned());
        if kind.is_dir() {
            scan(root, &path, paths);
        }
    }
}

fn entry(root: &Path, path: &Path) -> ContextEntry {
    let whole = root.join(path);
    let metadata = fs::symlink_metadata(&whole).expect("a file");
    let link = fs::read_link(&whole).map(|link| link.as_os_str().as_bytes().to_vec()).unwrap_or_default();
    ContextEntry {
        path: path.as_os_str().as_bytes().to_vec(),
        mode: metadata.mode(),
        size: if metadata.is_file() { metadata.len() } else { 0 },
        mtime: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
        ctime: metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec(),
        inode: metadata.ino(),
        link,
        ..ContextEntry::default()
    }
}
