//! Checkpoints of running containers, by CRIU.
//!
//! ```text
//!  freeze all ─▶ of each: CRIU writes its processes, then what it changed of its image ─▶ thaw ─▶ archives
//! ```
//!
//! All containers stand still before the first is written, and go on however it ends, also when the caller goes away. What
//! is under way lies in the pod's own folder; an archive appears when it is whole. An agent that finds a folder of an
//! earlier one removes it, and has what stands still go on (`task/resume.rs`).

mod archive;
mod restore;
mod tool;

use std::{
    collections::HashSet,
    fs,
    io::BufWriter,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sampan_runtime::{
    criu,
    shim::protocol::{Request, Response},
};
use tokio::time::{Instant, timeout_at};
use tracing::info;

use super::{
    ContainerId, Found, Frozen, PodId, PodView, Pods, exec, monitor::Connection, record::ContainerPhase,
};
use crate::{
    context::{Context, blocking, now, private_folder},
    error::{Error, Result, at},
};

pub(super) use restore::{Checkpoint, images, remove_images};

/// When the caller gives no time: less than kubelet waits.
const LIMIT: Duration = Duration::from_secs(110);

/// Of a pod, in the folder of its checkpoint.
const POD: &str = "pod.dump";

/// Containers of which a checkpoint is being taken.
#[derive(Debug, Clone, Default)]
pub(super) struct Busy(Arc<Mutex<HashSet<ContainerId>>>);

impl Busy {
    fn claim(&self, id: &ContainerId) -> Result<Claim> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone()) {
            true => Ok(Claim { busy: self.clone(), id: id.clone() }),
            false => Err(Error::Precondition(format!("container {} is being checkpointed", id.short()))),
        }
    }
}

/// Given back when it is dropped.
#[derive(Debug)]
struct Claim {
    busy: Busy,
    id: ContainerId,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.busy.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// A container on its way into an archive.
#[derive(Debug)]
struct Capture {
    found: Found,
    folder: Folder,
    /// Nanoseconds since 1970.
    taken_at: i64,
    _claim: Claim,
}

/// A folder that goes with its owner.
#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a container is refused that would not be alone with its processes when it comes back.
pub(super) const NOT_ALONE: &str = "a container comes back from a checkpoint only with pids of its own, without a terminal, \
    in a pod without users of its own, by the runtime that is built in";

/// Where what is under way lies.
fn workplace(context: &Context, pod: &PodId) -> PathBuf {
    context.records.directory(pod).join("checkpoints")
}

/// Removes what an earlier agent was about when it ended.
pub(super) fn remove_unfinished(context: &Context, pod: &PodId) {
    let _ = fs::remove_dir_all(workplace(context, pod));
}

impl Pods {
    /// Writes a running container to an archive at `location`; it goes on. What is begun is ended without its caller too.
    ///
    /// # Errors
    /// `FailedPrecondition` where CRIU is missing or does not work, or with what it can't write; `InvalidArgument` for the
    /// location; `DeadlineExceeded`. Nothing is left of it then.
    pub(crate) async fn checkpoint_container(
        &self,
        found: Found,
        location: PathBuf,
        limit: Option<Duration>,
    ) -> Result<()> {
        let folder = location.parent().filter(|folder| location.is_absolute() && folder.is_dir());
        if folder.is_none() || location.is_dir() || location.file_name().is_none() {
            return Err(Error::Invalid(format!(
                "location {location:?} is no absolute path of a file in a folder that exists"
            )));
        }
        let (pods, limit) = (self.clone(), limit.unwrap_or(LIMIT));
        to_the_end(async move {
            let mut captures = pods.capture(vec![found], limit).await?;
            let capture = captures.remove(0);
            pods.archive(capture, location).await
        })
        .await
    }

    /// Writes containers of a pod, or all that run, to a folder at `output`, which is missing or empty.
    ///
    /// # Errors
    /// As [`Pods::checkpoint_container`], for the first container that could not be written; the folder is as before then.
    pub(crate) async fn checkpoint_pod(
        &self,
        pod: Arc<PodView>,
        containers: &[String],
        output: PathBuf,
    ) -> Result<()> {
        let parent = output.parent().filter(|folder| output.is_absolute() && folder.is_dir());
        let empty = match fs::read_dir(&output) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        if parent.is_none() || !empty {
            return Err(Error::Invalid(format!(
                "output_path {output:?} is no absolute path of an empty or new folder in one that exists"
            )));
        }
        let chosen = choose(&pod, containers)?;
        let pods = self.clone();
        to_the_end(async move {
            let captures = pods.capture(chosen, LIMIT).await?;
            let folder = Folder(archive::temporary(&output)?);
            private_folder(&folder.0)?;
            for capture in captures {
                let path = folder.0.join(format!("{}.tar", capture.found.container.id));
                pods.archive(capture, path).await?;
            }
            let path = folder.0.join(POD);
            let text = serde_json::to_vec_pretty(&pod.record).map_err(std::io::Error::other);
            text.and_then(|text| fs::write(&path, text)).map_err(at("write", &path))?;
            fs::rename(&folder.0, &output)
                .and_then(|()| archive::sync_folder(&output))
                .map_err(at("write", &output))
        })
        .await
    }

    /// Writes processes and changes of all these containers, at one moment, into folders of the agent's.
    async fn capture(&self, containers: Vec<Found>, limit: Duration) -> Result<Vec<Capture>> {
        let until = Instant::now() + limit;
        let late = move || Error::Deadline { what: "the checkpoint".into(), limit };
        let program = tool::find().await?;
        let captures =
            containers.into_iter().map(|found| self.prepare(found)).collect::<Result<Vec<Capture>>>()?;
        let cgroups: Vec<String> =
            captures.iter().map(|capture| capture.found.container.cgroup.clone()).collect();
        let frozen =
            blocking(move || cgroups.iter().map(|path| Frozen::new(path)).collect::<Result<Vec<_>>>());
        let frozen = frozen.await?;
        for capture in &captures {
            timeout_at(until, self.dump(capture, &program)).await.map_err(|_| late())??;
        }
        let context = self.context.clone();
        let captures = blocking(move || {
            let written = captures.iter().try_for_each(|capture| {
                if Instant::now() > until {
                    return Err(late());
                }
                write_changes(&context, capture)
            });
            drop(frozen);
            written.map(|()| captures)
        });
        captures.await
    }

    fn prepare(&self, found: Found) -> Result<Capture> {
        let container = &found.container;
        if container.phase != ContainerPhase::Running {
            return Err(Error::Precondition(format!("container {} is not running", container.id.short())));
        }
        let claim = self.checkpoints.claim(&container.id)?;
        let folder = workplace(&self.context, &found.pod.record.id).join(container.id.as_str());
        // What was left there by a crash is nobody's.
        let _ = fs::remove_dir_all(&folder);
        private_folder(&folder.join(archive::IMAGES))?;
        Ok(Capture { found, folder: Folder(folder), taken_at: now(), _claim: claim })
    }

    /// Has CRIU write the processes. Dropping this ends CRIU.
    async fn dump(&self, capture: &Capture, criu: &Path) -> Result<()> {
        let (pod, container) = (&capture.found.pod.record.id, &capture.found.container);
        let images = capture.folder.0.join(archive::IMAGES);
        let failed = |why: String| {
            Error::Precondition(format!("container {} can't be checkpointed: {why}", container.id.short()))
        };
        let connection = Connection::open(pod, &self.context.pod_state(pod)).await?;
        let request = Request::Checkpoint {
            id: container.id.to_string(),
            images: images.clone(),
            criu: criu.to_owned(),
        };
        match connection.request(&request).await {
            Ok(Response::ExecStarted { .. }) => {}
            Ok(other) => {
                return Err(Error::Internal(format!("the monitor answered {other:?} to a checkpoint")));
            }
            Err(Error::Monitor { message, .. }) => return Err(failed(message)),
            Err(error) => return Err(error),
        }
        match exec::exit_code(&connection).await? {
            0 => Ok(()),
            code => {
                let log = images.join(criu::DUMP_LOG);
                let why = blocking(move || criu::reason(&log)).await;
                Err(failed(format!("criu dump: {}", why.unwrap_or_else(|| format!("it ended with {code}")))))
            }
        }
    }

    async fn archive(&self, capture: Capture, path: PathBuf) -> Result<()> {
        let bundle = self.context.pod_state(&capture.found.pod.record.id);
        blocking(move || {
            let container = &capture.found.container;
            let bundle = bundle.join(container.id.as_str());
            let (folder, taken_at) = (&*capture.folder.0, capture.taken_at);
            archive::write(&path, &archive::Parts { container, taken_at, folder, bundle: &bundle })?;
            info!(container.id = %container.id, path = %path.display(), "container checkpointed");
            Ok(())
        })
        .await
    }
}

/// The containers that are asked for, or all that run.
fn choose(pod: &Arc<PodView>, ids: &[String]) -> Result<Vec<Found>> {
    let found = |container: &Arc<super::record::ContainerRecord>| Found {
        pod: pod.clone(),
        container: container.clone(),
    };
    if !ids.is_empty() {
        let one = |id: &String| {
            let known = pod.containers.values().find(|container| container.id.as_str() == id);
            known.map(found).ok_or_else(|| Error::NotFound { object: "container", id: id.clone() })
        };
        return ids.iter().map(one).collect();
    }
    let running = pod.containers.values().filter(|container| container.phase == ContainerPhase::Running);
    let running: Vec<Found> = running.map(found).collect();
    match running.is_empty() {
        true => Err(Error::Precondition(format!("no container of pod {} runs", pod.record.id.short()))),
        false => Ok(running),
    }
}

fn write_changes(context: &Context, capture: &Capture) -> Result<()> {
    let path = capture.folder.0.join(archive::CHANGES);
    let file = fs::File::create(&path).map_err(at("create", &path))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    context.store.write_changes(capture.found.container.id.as_str(), &mut out)?;
    out.into_inner().map(drop).map_err(std::io::IntoInnerError::into_error).map_err(at("write", path))
}

/// Goes on when nobody waits for it any more.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let span = tracing::Span::current();
    let work = tokio::spawn(tracing::Instrument::instrument(work, span));
    work.await.unwrap_or_else(|error| Err(Error::Internal(error.to_string())))
}
