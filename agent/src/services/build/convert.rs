//! Builds: wire ↔ domain.

use std::{collections::BTreeMap, sync::Arc};

use sampan_imagestore::{
    Platform,
    build::{ContextEntry, Event, Failure, Ignore, Network, Options, Request, StepState},
};
use sampan_proto::sampan::{self, build_response::Event as Said};
use tonic::Status;

use super::MAX_SECRET;
use crate::{error::Error, pods::config, services::image};

/// What is wanted, in the builder's words.
pub(super) fn wanted(start: &sampan::BuildStart, files_only: bool) -> Result<Request, Status> {
    let names = start.tags.iter().map(|name| image::reference(name)).collect::<Result<Vec<_>, _>>()?;
    if let Some(name) = names.iter().find(|name| name.digest().is_some()) {
        return Err(Status::invalid_argument(format!(
            "{name} names an image by its digest; a tag is NAME or NAME:TAG"
        )));
    }
    if let Some((id, _)) = start.secrets.iter().find(|(_, secret)| secret.len() > MAX_SECRET) {
        return Err(Status::invalid_argument(format!("the secret {id:?} is larger than {MAX_SECRET} bytes")));
    }
    let own = Platform::default();
    let platform = if start.platform.is_empty() { own.clone() } else { platform(&start.platform, &own)? };
    let secrets: BTreeMap<String, Arc<Vec<u8>>> =
        start.secrets.iter().map(|(id, secret)| (id.clone(), Arc::new(secret.clone()))).collect();
    let credentials = start
        .credentials
        .iter()
        .filter_map(|(host, auth)| Some((host.clone(), image::credentials(auth.clone())?)));
    Ok(Request {
        dockerfile: (!start.dockerfile.is_empty()).then(|| start.dockerfile.clone()),
        path: if start.dockerfile_path.is_empty() {
            "Dockerfile".into()
        } else {
            start.dockerfile_path.clone()
        },
        options: Options {
            target: (!start.target.is_empty()).then(|| start.target.clone()),
            build_args: start.build_args.clone().into_iter().collect(),
            labels: start.labels.clone().into_iter().collect(),
            platform,
            build_platform: own,
            ignore: ignore(&start.dockerignore)?,
        },
        names,
        secrets,
        credentials: credentials.collect(),
        no_cache: start.no_cache,
        pull: start.pull,
        files_only,
        network: match start.network() {
            sampan::build_start::Network::Default => Network::Default,
            sampan::build_start::Network::None => Network::None,
            sampan::build_start::Network::Host => Network::Host,
        },
        explain: start.explain,
        debug: start.debug,
        memory: start.memory_bytes,
        cpu_millis: start.cpu_millis,
        hosts: start.add_hosts.iter().map(|text| config::host(text)).collect::<Result<_, Error>>()?,
    })
}

fn platform(text: &str, own: &Platform) -> Result<Platform, Status> {
    let wrong = || format!("{text:?} is no platform: os/architecture, as linux/amd64");
    sampan_imagestore::build::parse_platform(text, own).ok_or_else(|| Status::invalid_argument(wrong()))
}

/// For messages about COPY of what is left out; the client has applied it.
fn ignore(text: &[u8]) -> Result<Option<Ignore>, Status> {
    let parsed = (!text.is_empty()).then(|| Ignore::parse(&String::from_utf8_lossy(text))).transpose();
    parsed.map_err(|problem| Status::invalid_argument(format!(".dockerignore: {problem}")))
}

pub(super) fn entry(entry: sampan::ContextEntry) -> ContextEntry {
    let mut attributes: Vec<_> =
        entry.xattrs.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect();
    attributes.sort();
    ContextEntry {
        path: entry.path,
        mode: entry.mode,
        size: entry.size,
        mtime: entry.mtime,
        ctime: entry.ctime,
        inode: entry.inode,
        link: entry.link,
        device: (entry.major, entry.minor),
        attributes,
    }
}

pub(super) fn event(event: Event) -> Said {
    match event {
        Event::Wanted(numbers) => Said::Wanted(sampan::WantedContent { numbers }),
        Event::Step(step) => {
            use sampan::build_step::State;
            let state = match step.state {
                StepState::Waiting => State::Waiting,
                StepState::Running => State::Running,
                StepState::Cached => State::Cached,
                StepState::Done => State::Done,
                StepState::Failed => State::Failed,
                StepState::Cancelled => State::Cancelled,
            };
            Said::Step(sampan::BuildStep {
                id: step.id,
                stage: step.stage,
                number: step.number,
                total: step.total,
                title: step.title,
                state: state as i32,
                started_at: step.started,
                finished_at: step.finished,
                error: step.error,
                explanation: step.explanation,
                line: step.line,
            })
        }
        Event::Log { step, output } => {
            Said::Log(sampan::StepLog { step, stderr: output.stderr, data: output.data, time: output.time })
        }
        Event::Pull { step, layer } => {
            Said::Pull(sampan::StepPull { step, layer: Some(image::layer(&layer)) })
        }
        Event::Warning { rule, diagnostic } => Said::Warning(sampan::BuildWarning {
            rule,
            text: diagnostic.to_string(),
            message: diagnostic.message,
            help: diagnostic.help.unwrap_or_default(),
            file: diagnostic.file.to_string(),
            line: diagnostic.span.map_or(0, |span| span.line),
            column: diagnostic.span.map_or(0, |span| span.column),
        }),
    }
}

pub(super) fn failure(failure: Failure) -> sampan::BuildFailure {
    let exit_code = match *failure.error {
        sampan_imagestore::build::Error::Command { code, .. } => code,
        _ => 0,
    };
    sampan::BuildFailure {
        message: failure.text,
        file: failure.file,
        line: failure.line,
        step: failure.step.and_then(|step| i32::try_from(step).ok()).unwrap_or(-1),
        exit_code,
        debug_image: failure.debug_image.map(|image| image.to_string()).unwrap_or_default(),
    }
}
