//! A pod's containers: made, started, signalled, ended, removed. All of it on the pod's own task.

use std::{
    fs,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use sampan_imagestore::Image;
use sampan_runtime::shim::protocol::{self, Exit};

use super::*;
use crate::{
    context::now,
    error::Kind,
    pods::{PodId, config::PidMode, layout::lay_out, record::UserIds},
};

/// Longest wait for a cgroup to become empty once its processes are killed.
const EMPTY: Duration = Duration::from_secs(10);

/// Longest wait for a container's files to be laid out. A source on a server of files that is away hangs for ever; kubelet
/// waits for two minutes, and others may ask for the pod meanwhile.
const LAYOUT: Duration = Duration::from_secs(110);

/// The reason that kubelet knows.
const OOM_KILLED: &str = "OOMKilled";

/// `SIGTERM`, when neither request nor image names another.
const DEFAULT_STOP_SIGNAL: i32 = 15;

impl Task {
    /// The images are held until the container is known to use them.
    pub(super) async fn create_container(
        &mut self,
        config: ContainerConfig,
        images: Arc<Images>,
        checkpoint: Option<Checkpoint>,
    ) -> Result<ContainerId> {
        let image = &images.root;
        self.control()?;
        if let Some(made) = self.already_made(&config)? {
            return Ok(made);
        }
        let id = ContainerId::random();
        let record = ContainerRecord {
            image_id: image.id.to_string(),
            phase: ContainerPhase::Creating,
            created_at: now(),
            started_at: 0,
            exit: None,
            pid: None,
            cgroup: self.cgroup(&id),
            log_path: log_path(self.log_directory().as_deref(), &config.log_path)?,
            argv: spec::argv(&config, image.config.config().as_ref())?,
            user: UserIds::default(),
            volumes: Vec::new(),
            stop_signal: stop_signal(&config, image),
            id: id.clone(),
            config,
        };
        let pod = self.record.id.clone();
        self.context.records.write_container(&pod, &record)?;
        match self.make(record.clone(), images.clone(), checkpoint).await {
            Ok(record) => {
                info!(container.id = %id, name = %record.config.name, image.ref = %record.config.image, "container created");
                self.save_container(record.clone())?;
                self.tell_of(&record, Action::Create);
                Ok(id)
            }
            Err(error) => {
                if let Err(left) = self.discard(&record).await {
                    warn!(container.id = %id, error = %left.chain(), "remains of the container are left until it is removed");
                    self.keep_remains(record, &error);
                }
                Err(error)
            }
        }
    }

    /// Shows what could be neither made nor taken away as an ended container, which can be removed.
    fn keep_remains(&mut self, mut record: ContainerRecord, why: &Error) {
        record.phase = ContainerPhase::Exited;
        record.exit = Some(ExitRecord { reason: "CreateError".into(), ..unknown_exit(&why.chain()) });
        if let Err(error) = self.save_container(record) {
            warn!(error = %error.chain(), "the container's remains could not be recorded on disk");
        }
    }

    /// Lays out root file system and bundle, and has the monitor make the container.
    async fn make(
        &self,
        record: ContainerRecord,
        images: Arc<Images>,
        checkpoint: Option<Checkpoint>,
    ) -> Result<ContainerRecord> {
        let bundle = self.bundle(&record.id);
        let hostname = self.hostname();
        let (context, pod, criu) =
            (self.context.clone(), self.record.clone(), checkpoint.as_ref().map(|from| from.criu.clone()));
        let since = Instant::now();
        // The monitor would make it too, but not beside something else. What another runtime makes is for that one to make.
        let own = self.context.delegate(&self.record.config.runtime_handler)?.is_none();
        let cgroup = make_cgroup(own.then(|| record.cgroup.clone()));
        let remains = record.clone();
        let mut laying_out = Box::pin(blocking(move || {
            lay_out(&context, &pod, record, &images, &hostname, checkpoint.as_ref())
        }));
        let (laid_out, cgroup) = tokio::join!(timeout(LAYOUT, &mut laying_out), cgroup);
        let Ok(laid_out) = laid_out else {
            let what =
                format!("laying out container {}: is the source of a mount in reach? It", remains.id.short());
            self.clear_when(laying_out, remains);
            return Err(Error::Deadline { what, limit: LAYOUT });
        };
        let (mut record, runtime) = laid_out?;
        cgroup?;
        self.context.measurements.container_start("layout", since.into_std());
        let pid = match spec::pid_mode(&self.record.config, &record.config) {
            PidMode::Container => protocol::PidMode::Private,
            PidMode::Pod => protocol::PidMode::Pod,
            PidMode::Host => protocol::PidMode::Host,
            PidMode::Target(id) => protocol::PidMode::Target(id),
        };
        let (id, cgroup, log) = (record.id.to_string(), record.cgroup.clone(), record.log_path.clone());
        let stdin = record.config.stdin;
        let request = match criu {
            None => {
                let terminal = record.config.tty;
                Request::Create { id, bundle, cgroup, log, pid, stdin, terminal, runtime }
            }
            Some(criu) => {
                let alone = pid == protocol::PidMode::Private && runtime.is_none() && !record.config.tty;
                if !alone || self.record.config.users.is_some() {
                    return Err(Error::Precondition(checkpoint::NOT_ALONE.into()));
                }
                let images = checkpoint::images(&self.context, &self.record.id, &record.id);
                Request::Restore { id, bundle, cgroup, log, stdin, images, criu }
            }
        };
        let since = Instant::now();
        let answer = self.control()?.request(&request).await?;
        self.context.measurements.container_start("create", since.into_std());
        match answer {
            Response::Created { pid } => record.pid = Some(pid),
            other => return Err(Error::Internal(format!("the monitor answered {other:?} to a creation"))),
        }
        record.phase = ContainerPhase::Created;
        Ok(record)
    }

    pub(super) async fn start_container(&mut self, id: &ContainerId) -> Result<()> {
        let container = self.container(id)?;
        if container.phase != ContainerPhase::Created {
            return Err(Error::Precondition(format!(
                "container {} cannot be started: it is {}",
                id.short(),
                phase_word(container.phase)
            )));
        }
        let mut record = container.clone();
        let since = Instant::now();
        let answer = self.control()?.request(&Request::Start { id: id.to_string() }).await;
        self.context.measurements.container_start("start", since.into_std());
        match answer {
            Ok(Response::Started { started_at, pid }) => {
                record.phase = ContainerPhase::Running;
                record.started_at = started_at;
                record.pid = pid.or(record.pid);
                info!(container.id = %id, pid = record.pid, "container started");
                let saved = self.save_container(record.clone());
                self.tell_of(&record, Action::Start);
                checkpoint::remove_images(&self.context, &self.record.id, id);
                saved
            }
            Ok(other) => Err(Error::Internal(format!("the monitor answered {other:?} to a start"))),
            Err(error) => {
                // It is an ended container from now on; the monitor's own notice of that comes too late.
                let recorded = self.recorded_exit(&record);
                let exit = recorded.unwrap_or_else(|| unknown_exit("the container could not be started"));
                let exit = ExitRecord { reason: "StartError".into(), message: error.chain(), ..exit };
                record.started_at = exit.finished_at;
                self.ended(record, exit).await;
                Err(error)
            }
        }
    }

    pub(super) async fn signal(&mut self, id: &ContainerId, signal: i32, all: bool) -> Result<()> {
        if self.container(id)?.phase == ContainerPhase::Exited {
            return Ok(());
        }
        let result = self.control()?.command(&Request::Kill { id: id.to_string(), signal, all }).await;
        match result {
            // It ended in between.
            Err(Error::Monitor { kind: Kind::FailedPrecondition, .. }) => Ok(()),
            other => other,
        }
    }

    /// Puts new limits in force, or leaves all as they were.
    pub(super) async fn update(&mut self, id: &ContainerId, resources: &Resources) -> Result<()> {
        let mut record = self.container(id)?.clone();
        if record.phase == ContainerPhase::Exited {
            return Err(Error::Precondition(format!("container {} is not running", id.short())));
        }
        record.config.resources.merge(resources);
        let limits = spec::limits(&record.config.resources)?;
        let (path, score) = (record.cgroup.clone(), resources.oom_score_adj);
        blocking(move || {
            let failed = |source| Error::Cgroup { path: path.clone(), source };
            let cgroup = Cgroup::new(&path).map_err(failed)?;
            // Devices stay as they are: an update has no word for them.
            cgroup.update(&limits).map_err(failed)?;
            if score != 0 {
                set_oom_scores(&cgroup, score);
            }
            Ok::<_, Error>(())
        })
        .await?;
        self.save_container(record)
    }

    pub(super) async fn remove_container(&mut self, id: &ContainerId) -> Result<()> {
        // What is gone is removed.
        let Some(container) = self.containers.get(id) else { return Ok(()) };
        if container.phase == ContainerPhase::Running {
            const SIGKILL: i32 = 9;
            self.signal(id, SIGKILL, true).await?;
            self.await_exit(id, KILLED).await?;
        }
        let Some(record) = self.containers.get(id).cloned() else { return Ok(()) };
        self.discard(&record).await?;
        self.containers.remove(id);
        self.publish();
        self.tell_of(&record, Action::Remove);
        info!(container.id = %id, "container removed");
        Ok(())
    }

    /// Takes note of a container's end.
    pub(super) async fn exited(&mut self, id: &str, exit: Exit) {
        let record = self.containers.values().find(|container| container.id.as_str() == id);
        match record.map(|record| ContainerRecord::clone(record)) {
            Some(mut record) if record.phase != ContainerPhase::Exited => {
                if exit.started_at != 0 {
                    record.started_at = exit.started_at;
                }
                self.ended(record, exit_record(&exit)).await;
            }
            _ => debug!(container.id = %id, "end of a container that is not ours to record"),
        }
    }

    /// Tells that the kernel has killed a process of a container, which may live on.
    pub(super) fn out_of_memory(&mut self, id: &str) {
        let living = |container: &&Arc<ContainerRecord>| {
            container.id.as_str() == id && container.phase != ContainerPhase::Exited
        };
        let Some(record) = self.containers.values().find(living).cloned() else { return };
        info!(container.id = %id, "a process of the container was killed for want of memory");
        self.starved.insert(record.id.clone());
        self.tell_of(&record, Action::Oom);
    }

    /// Records an end, shows it, and gives back what only a living container needs.
    pub(super) async fn ended(&mut self, mut record: ContainerRecord, exit: ExitRecord) {
        info!(container.id = %record.id, exit.code = exit.code, reason = %exit.reason, "container ended");
        record.phase = ContainerPhase::Exited;
        record.exit = Some(exit);
        record.pid = None;
        if let Err(error) = self.save_container(record.clone()) {
            warn!(container.id = %record.id, error = %error.chain(), "the container's end could not be recorded on disk");
        }
        // Nobody was there to hear it while the agent was away.
        let known = self.starved.remove(&record.id);
        if !known && record.exit.as_ref().is_some_and(|exit| exit.reason == OOM_KILLED) {
            self.tell_of(&record, Action::Oom);
        }
        self.tell_of(&record, Action::Die);
        if self.record.config.auto_remove && self.farewell.is_none() {
            self.farewell = Some(Instant::now() + FAREWELL);
        }
        if let Err(error) = self.release(&record).await {
            warn!(container.id = %record.id, error = %error.chain(), "the ended container's mounts or cgroup are left until it is removed");
        }
    }

    async fn release(&self, record: &ContainerRecord) -> Result<()> {
        let (context, record) = (self.context.clone(), record.clone());
        blocking(move || release(&context, &record)).await
    }

    /// Takes away everything of a container but what the pod's own map says of it.
    async fn discard(&self, record: &ContainerRecord) -> Result<()> {
        if let Some(control) = &self.control {
            match control.command(&Request::Forget { id: record.id.to_string() }).await {
                Err(Error::Monitor { kind: Kind::NotFound, .. }) => {}
                other => other?,
            }
        }
        let (context, pod, record) = (self.context.clone(), self.record.id.clone(), record.clone());
        blocking(move || clear(&context, &pod, &record)).await
    }

    /// Once work that is not waited for any more has ended, takes away what it has made of a container since.
    fn clear_when<T: Send + 'static>(
        &self,
        ended: impl Future<Output = T> + Send + 'static,
        record: ContainerRecord,
    ) {
        let (context, pod) = (self.context.clone(), self.record.id.clone());
        tokio::spawn(async move {
            drop(ended.await);
            let id = record.id.clone();
            if let Err(error) = blocking(move || clear(&context, &pod, &record)).await {
                warn!(container.id = %id, error = %error.chain(), "remains of a container are left until the agent's next start");
            }
        });
    }

    /// Tells of something that has happened to a container.
    pub(super) fn tell_of(&self, record: &ContainerRecord, action: Action) {
        let mut attributes =
            vec![("name", record.config.name.clone()), ("image", record.config.image.clone())];
        if let Some(exit) = record.exit.as_ref().filter(|_| action == Action::Die) {
            attributes.extend([("exit_code", exit.code.to_string()), ("reason", exit.reason.clone())]);
        }
        let view = self.view.borrow().clone();
        self.context.events.tell(Object::Container, action, record.id.as_str(), Some(view), attributes);
    }

    fn container(&self, id: &ContainerId) -> Result<&ContainerRecord> {
        self.containers
            .get(id)
            .map(Arc::as_ref)
            .ok_or_else(|| Error::NotFound { object: "container", id: id.to_string() })
    }

    /// The container that an earlier request for the same made and that nobody has started since: its caller may never
    /// have heard of it.
    fn already_made(&self, config: &ContainerConfig) -> Result<Option<ContainerId>> {
        let same = |other: &&Arc<ContainerRecord>| {
            other.config.name == config.name && other.config.attempt == config.attempt
        };
        match self.containers.values().find(same) {
            Some(made) if made.phase == ContainerPhase::Created && made.config.same_request(config) => {
                debug!(container.id = %made.id, "asked for again");
                Ok(Some(made.id.clone()))
            }
            Some(holder) => Err(Error::NameInUse {
                object: "container",
                name: format!("{} (attempt {})", config.name, config.attempt),
                holder: holder.id.to_string(),
            }),
            None => Ok(None),
        }
    }

    /// Where the pod's containers log to; what people run by hand logs beside its record.
    fn log_directory(&self) -> Option<PathBuf> {
        match &self.record.config.log_directory {
            None if self.record.config.standalone => {
                Some(self.context.records.directory(&self.record.id).join("logs"))
            }
            directory => directory.clone(),
        }
    }

    pub(super) fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.context.pod_state(&self.record.id).join(id.as_str())
    }

    fn cgroup(&self, id: &ContainerId) -> String {
        match &self.record.config.cgroup_parent {
            // systemd knows a slice by its last name, which has those of all above it.
            Some(parent) if is_slice(parent) => {
                let slice = parent.rsplit('/').next().unwrap_or_default();
                format!("{slice}:sampan:{id}")
            }
            Some(parent) => format!("{parent}/{id}"),
            None => format!("{}/{id}", self.context.pod_cgroup(&self.record.id)),
        }
    }
}

/// Gives back cgroup and mounts of a container that has no process any more. Doing so twice is fine.
pub(super) fn release(context: &Context, record: &ContainerRecord) -> Result<()> {
    let emptied = empty_cgroup(&record.cgroup);
    let unmount = |key: String| match context.store.snapshots().directories(&key) {
        Ok(directories) => context
            .parting
            .unmount(&directories.merged)
            .map_err(|source| Error::Mount { container: record.id.to_string(), source }),
        Err(error) if error.kind() == sampan_imagestore::Kind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    };
    // Each is tried, whatever became of the others.
    let unmounted: Vec<Result<()>> = record.snapshots().into_iter().map(unmount).collect();
    unmounted.into_iter().fold(emptied, Result::and)
}

/// Takes away all of a container that has no process any more, but what its pod's task knows of it. Doing so twice is fine.
fn clear(context: &Context, pod: &PodId, record: &ContainerRecord) -> Result<()> {
    release(context, record)?;
    checkpoint::remove_images(context, pod, &record.id);
    let bundle = context.pod_state(pod).join(record.id.as_str());
    match fs::remove_dir_all(&bundle) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(at("remove", bundle)(error));
        }
        _ => {}
    }
    for key in record.snapshots() {
        context.store.snapshots().remove(&key)?;
    }
    if let Some(log) = record.log_path.as_ref().filter(|log| log.starts_with(context.records.directory(pod)))
    {
        // Logs in the orchestrator's folders are the orchestrator's; these are ours.
        let _ = fs::remove_file(log);
    }
    context.records.remove_container(pod, &record.id)
}

/// Gives every process of a container another score, as far as the agent may: lowering one takes a capability that it does
/// not have everywhere, and a score is a wish and no limit.
fn set_oom_scores(cgroup: &Cgroup, score: i64) {
    for pid in cgroup.pids().unwrap_or_default() {
        let set = fs::write(format!("/proc/{pid}/oom_score_adj"), score.clamp(-1000, 1000).to_string());
        if let Err(error) = set {
            debug!(pid, score, %error, "a process keeps its OOM score");
        }
    }
}

/// Whether a pod's parent is a slice of systemd, as kubelet has it with that driver.
pub(super) fn is_slice(parent: &str) -> bool {
    parent.ends_with(".slice")
}

/// Makes a cgroup that is wanted, unless systemd is to make it, which takes its first process.
pub(super) async fn make_cgroup(path: Option<String>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    blocking(move || {
        let made =
            Cgroup::new(&path).and_then(|cgroup| if cgroup.is_scope() { Ok(()) } else { cgroup.create() });
        made.map_err(|source| Error::Cgroup { path, source })
    })
    .await
}

/// Kills what is left in a cgroup and removes it. Missing is fine.
pub(in crate::pods) fn empty_cgroup(path: &str) -> Result<()> {
    let failed = |source| Error::Cgroup { path: path.to_owned(), source };
    let cgroup = Cgroup::new(path).map_err(failed)?;
    cgroup.kill().map_err(failed)?;
    cgroup.remove(EMPTY).map_err(failed)
}

/// The durable form of a monitor's exit record.
pub(super) fn exit_record(exit: &Exit) -> ExitRecord {
    let reason = match (exit.oom_killed, exit.code) {
        (true, _) => OOM_KILLED,
        (false, 0) => "Completed",
        (false, _) => "Error",
    };
    ExitRecord {
        code: exit.code,
        reason: reason.into(),
        message: String::new(),
        finished_at: exit.finished_at,
    }
}

fn phase_word(phase: ContainerPhase) -> &'static str {
    match phase {
        ContainerPhase::Creating => "being created",
        ContainerPhase::Created => "created",
        ContainerPhase::Running => "running",
        ContainerPhase::Exited => "exited",
    }
}

/// Where a container logs to: beneath the pod's log directory and nowhere else.
fn log_path(directory: Option<&Path>, relative: &str) -> Result<Option<PathBuf>> {
    let Some(directory) = directory.filter(|_| !relative.is_empty()) else { return Ok(None) };
    let plain = Path::new(relative).components().all(|part| matches!(part, Component::Normal(_)));
    if !plain {
        return Err(Error::Invalid(format!(
            "log_path {relative:?} is not a plain path below the pod's log directory"
        )));
    }
    Ok(Some(directory.join(relative)))
}

fn stop_signal(config: &ContainerConfig, image: &Image) -> i32 {
    let of_image =
        || image.config.config().as_ref()?.stop_signal().as_deref().and_then(crate::pods::signal::parse);
    config.stop_signal.or_else(of_image).unwrap_or(DEFAULT_STOP_SIGNAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_paths_stay_in_the_pods_directory() {
        let directory = Some(Path::new("/var/log/pods/x"));
        assert_eq!(log_path(directory, "c/0.log").unwrap(), Some("/var/log/pods/x/c/0.log".into()));
        assert_eq!(log_path(directory, "").unwrap(), None);
        for bad in ["../x", "/etc/passwd", "a/../../b", "."] {
            assert!(log_path(directory, bad).is_err(), "{bad}");
        }
    }
}
