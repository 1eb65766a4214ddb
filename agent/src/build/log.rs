//! Logs of builds: what every step did and said, whole, for as long as there is room.
//!
//! ```text
//! ROOT/build/logs/ID.log       as the plain progress shows it
//! ROOT/build/logs/ID.json      what was built, and how it ended; written last
//! ```

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use sampan_imagestore::build::{Event, StepEvent, StepState};
use serde::{Deserialize, Serialize};

use crate::{
    context::{now, private_folder},
    error::{Error, Result, at},
};

/// As many are kept, and as many bytes.
const BUILDS: usize = 200;
const BYTES: u64 = 512 << 20;

/// A build as it is listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) id: String,
    pub(crate) started_at: i64,
    /// 0: it is running.
    pub(crate) finished_at: i64,
    pub(crate) title: String,
    pub(crate) image_id: String,
    pub(crate) error: String,
}

/// Writes the log of one build. What cannot be written is not; the build goes on.
pub(crate) struct Recorder {
    folder: PathBuf,
    summary: Summary,
    file: Option<BufWriter<File>>,
    steps: HashMap<u32, StepEvent>,
    /// Of each step, whether the last output ended in the middle of a line.
    open: Option<u32>,
}

impl Recorder {
    /// Begins the log of a build, and deletes the oldest ones.
    pub(crate) fn begin(root: &Path, id: &str, title: &str) -> Recorder {
        let folder = folder(root);
        let summary =
            Summary { id: id.to_owned(), started_at: now(), title: title.to_owned(), ..Summary::default() };
        let opened = private_folder(&folder).and_then(|()| {
            trim(&folder);
            let path = folder.join(format!("{id}.log"));
            File::create(&path).map(BufWriter::new).map_err(at("create", path))
        });
        let file =
            opened.inspect_err(|error| tracing::warn!(error = %error.chain(), "a build has no log")).ok();
        let recorder = Recorder { folder, summary, file, steps: HashMap::new(), open: None };
        recorder.save();
        recorder
    }

    /// Takes note of what happens.
    pub(crate) fn take(&mut self, events: &[Event]) {
        let Some(mut file) = self.file.take() else { return };
        let written = events.iter().try_for_each(|event| self.write(&mut file, event));
        let written = written.and_then(|()| file.flush());
        match written {
            Ok(()) => self.file = Some(file),
            Err(error) => tracing::warn!(%error, "the log of a build ends early"),
        }
    }

    fn write(&mut self, file: &mut impl Write, event: &Event) -> io::Result<()> {
        let mut line = |open: &mut Option<u32>, text: String| {
            if open.take().is_some() {
                file.write_all(b"\n")?;
            }
            writeln!(file, "{text}")
        };
        match event {
            Event::Step(step) => {
                let known = self.steps.insert(step.id, step.clone());
                let id = step.id;
                match step.state {
                    StepState::Waiting => Ok(()),
                    StepState::Running => line(&mut self.open, format!("#{id} {}", title(step))),
                    StepState::Cached => {
                        if known.is_none_or(|known| known.state == StepState::Waiting) {
                            line(&mut self.open, format!("#{id} {}", title(step)))?;
                        }
                        line(&mut self.open, format!("#{id} CACHED"))
                    }
                    StepState::Done | StepState::Failed => {
                        if !step.explanation.is_empty() {
                            line(&mut self.open, format!("#{id} not cached: {}", step.explanation))?;
                        }
                        line(
                            &mut self.open,
                            match step.state {
                                StepState::Failed => format!("#{id} ERROR: {}", step.error),
                                _ => format!("#{id} DONE {:.1}s", seconds(step)),
                            },
                        )
                    }
                    StepState::Cancelled => line(&mut self.open, format!("#{id} CANCELED")),
                }
            }
            Event::Log { step, output } => {
                let started = self.steps.get(step).map_or(output.time, |step| step.started);
                let after = (output.time - started).max(0) as f64 / 1e9;
                for piece in output.data.split_inclusive(|byte| *byte == b'\n') {
                    if self.open != Some(*step) {
                        if self.open.take().is_some() {
                            file.write_all(b"\n")?;
                        }
                        write!(file, "#{step} {after:.3} ")?;
                    }
                    file.write_all(piece)?;
                    self.open = (!piece.ends_with(b"\n")).then_some(*step);
                }
                Ok(())
            }
            Event::Warning { rule, diagnostic } => {
                let rule = if rule.is_empty() { String::new() } else { format!("{rule}: ") };
                line(&mut self.open, format!("WARNING: {rule}{diagnostic}"))
            }
            Event::Wanted(_) | Event::Pull { .. } => Ok(()),
        }
    }

    /// The build has come to its end.
    pub(crate) fn end(mut self, ended: std::result::Result<String, String>) {
        if let (Some(file), Err(error)) = (&mut self.file, &ended) {
            let _ = writeln!(file, "ERROR: {error}").and_then(|()| file.flush());
        }
        self.summary.finished_at = now();
        match ended {
            Ok(image) => self.summary.image_id = image,
            Err(error) => self.summary.error = error,
        }
        self.file = None;
        self.save();
        trim(&self.folder);
    }

    fn save(&self) {
        save(&self.folder, &self.summary);
    }
}

fn save(folder: &Path, summary: &Summary) {
    let path = folder.join(format!("{}.json", summary.id));
    let temporary = path.with_extension("tmp");
    let written = serde_json::to_vec(summary)
        .map_err(io::Error::from)
        .and_then(|bytes| fs::write(&temporary, bytes))
        .and_then(|()| fs::rename(&temporary, &path));
    if let Err(error) = written {
        tracing::warn!(%error, "a build is not listed");
    }
}

/// Where the output of commands goes while they run.
pub(crate) fn outputs(root: &Path) -> PathBuf {
    root.join("build/output")
}

/// When the agent starts: no build is running, whatever an earlier agent has left.
pub(crate) fn settle(root: &Path) {
    if let Err(error) = fs::remove_dir_all(outputs(root))
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "output of an earlier agent's builds is left");
    }
    for build in list(root).into_iter().filter(|build| build.finished_at == 0) {
        let error = "the agent ended before the build did".to_owned();
        save(&folder(root), &Summary { finished_at: now(), error, ..build });
    }
}

fn folder(root: &Path) -> PathBuf {
    root.join("build/logs")
}

/// `[stage 2/5] RUN make`.
pub(crate) fn title(step: &StepEvent) -> String {
    match (step.stage.as_str(), step.number) {
        ("", _) => step.title.clone(),
        (stage, 0) => format!("[{stage}] {}", step.title),
        (stage, number) => format!("[{stage} {number}/{}] {}", step.total, step.title),
    }
}

fn seconds(step: &StepEvent) -> f64 {
    (step.finished - step.started).max(0) as f64 / 1e9
}

/// The builds whose logs are here, the newest first.
pub(crate) fn list(root: &Path) -> Vec<Summary> {
    let entries = fs::read_dir(folder(root)).into_iter().flatten().flatten();
    let read = entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json"));
    let parsed = read.filter_map(|entry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok());
    let mut builds: Vec<Summary> = parsed.collect();
    builds.sort_by_key(|build| std::cmp::Reverse(build.started_at));
    builds
}

/// The log of a build, by its id or the beginning of it.
///
/// # Errors
/// `NotFound`, and `Ambiguous` when several begin so.
pub(crate) fn open(root: &Path, id: &str) -> Result<File> {
    let mut matching = list(root).into_iter().filter(|build| !id.is_empty() && build.id.starts_with(id));
    let Some(build) = matching.next() else {
        return Err(Error::NotFound { object: "build", id: id.to_owned() });
    };
    if matching.next().is_some() {
        return Err(Error::Ambiguous { object: "build", id: id.to_owned() });
    }
    let path = folder(root).join(format!("{}.log", build.id));
    File::open(&path).map_err(at("open", path))
}

/// Deletes the oldest logs until few enough are left.
fn trim(folder: &Path) {
    let builds = list(folder.parent().and_then(Path::parent).unwrap_or(folder));
    let mut bytes = 0;
    for (number, build) in builds.iter().enumerate() {
        let log = folder.join(format!("{}.log", build.id));
        bytes += fs::metadata(&log).map_or(0, |metadata| metadata.len());
        if number + 1 >= BUILDS || bytes > BYTES {
            let _ = fs::remove_file(log);
            let _ = fs::remove_file(folder.join(format!("{}.json", build.id)));
        }
    }
}

#[cfg(test)]
mod tests {
    use sampan_imagestore::build::Output;

    use super::*;

    fn step(state: StepState) -> Event {
        Event::Step(StepEvent {
            id: 3,
            stage: "builder".into(),
            number: 1,
            total: 2,
            title: "RUN make".into(),
            state,
            started: 1_000_000_000,
            finished: 3_500_000_000,
            ..StepEvent::default()
        })
    }

    fn said(data: &str) -> Event {
        Event::Log { step: 3, output: Output { stderr: false, data: data.into(), time: 1_250_000_000 } }
    }

    #[test]
    fn a_log_has_every_step_and_every_line() {
        let root = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::begin(root.path(), "abc", "web");
        recorder.take(&[step(StepState::Running), said("one\ntw")]);
        recorder.take(&[said("o\n"), said("end"), step(StepState::Done)]);
        recorder.end(Ok("sha256:1".into()));
        let text = io::read_to_string(open(root.path(), "ab").unwrap()).unwrap();
        assert_eq!(
            text,
            "#3 [builder 1/2] RUN make\n#3 0.250 one\n#3 0.250 two\n#3 0.250 end\n#3 DONE 2.5s\n"
        );
        let listed = list(root.path());
        assert_eq!(
            (listed.len(), listed[0].image_id.as_str(), listed[0].title.as_str()),
            (1, "sha256:1", "web")
        );
        assert_eq!(open(root.path(), "x").unwrap_err().kind(), crate::error::Kind::NotFound);
    }
}
