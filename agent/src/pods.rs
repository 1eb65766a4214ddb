//! Pods: who they are, and the way to the task that owns each.
//!
//! This module finds and admits; it never changes a pod itself. What it answers from is the last word each
//! task published, so nothing here waits for work in flight.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use sampan_runtime::shim::protocol::Request;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    context::{Context, blocking, now},
    error::{Error, Kind, Result},
};

pub(crate) mod cdi;
mod checkpoint;
pub mod config;
mod device;
pub(crate) mod exec;
mod files;
mod frozen;
mod id;
mod layout;
mod monitor;
pub(crate) mod parting;
pub mod record;
mod recovery;
pub(crate) mod session;
pub(crate) mod signal;
mod source;
mod spec;
pub(crate) mod step;
pub(crate) mod storage;
mod task;

pub(crate) use frozen::Frozen;
pub use id::{ContainerId, PodId};

use checkpoint::Busy;
use config::{ContainerConfig, PodConfig, PodName, Resources};
use record::{ContainerPhase, ContainerRecord, PodPhase, PodRecord};
use source::Images;
use task::{Command, Start};

/// Requests that may wait for one pod's task before the next caller waits too.
const MAILBOX: usize = 64;
/// Longest wait for processes to be gone after SIGKILL, as its caller sees it.
const KILLED: Duration = Duration::from_secs(15);

/// What is known of a pod at one moment.
#[derive(Debug, Clone)]
pub struct PodView {
    /// The pod.
    pub record: PodRecord,
    /// Its containers.
    pub containers: BTreeMap<ContainerId, Arc<ContainerRecord>>,
    /// It has been removed.
    pub gone: bool,
}

/// A pod's entry in the index.
#[derive(Debug, Clone)]
struct Handle {
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<Arc<PodView>>,
    /// The caller that made it went away before it learned the id: the next one who asks for the same gets it.
    unclaimed: bool,
}

/// All pods of the agent.
#[derive(Debug, Clone)]
pub struct Pods {
    context: Arc<Context>,
    index: Arc<Mutex<Index>>,
    checkpoints: Busy,
}

#[derive(Debug, Default)]
struct Index {
    pods: HashMap<PodId, Handle>,
    names: HashMap<PodName, PodId>,
    /// In which pod a container was found when it was last asked for. A hint: the pod's view decides.
    owners: HashMap<ContainerId, PodId>,
}

/// A container and the pod it is in, as they are now.
#[derive(Debug, Clone)]
pub struct Found {
    /// The pod.
    pub pod: Arc<PodView>,
    /// The container.
    pub container: Arc<ContainerRecord>,
}

impl Pods {
    /// No pods yet; [`Pods::recover`] brings back what an earlier agent left.
    pub fn new(context: Arc<Context>) -> Pods {
        Pods { context, index: Arc::default(), checkpoints: Busy::default() }
    }

    /// What the pods share with the rest of the agent.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Whether pods can have users of their own.
    fn check_users(&self, handler: &str, delegated: bool) -> Result<()> {
        if delegated {
            return Err(Error::Invalid(format!("runtime handler {handler:?} makes no user namespaces")));
        }
        if !sampan_runtime::mount::maps_layers() {
            let text =
                "user namespaces take an overlayfs whose layers can be mapped one by one: Linux 6.8 or newer";
            return Err(Error::Precondition(text.into()));
        }
        Ok(())
    }

    /// Makes a pod. A second request for the same while the first is in flight, or whose caller never heard of
    /// its end, joins that one.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is in use; whatever kept the pod from being made, all undone then.
    pub async fn run(&self, config: PodConfig) -> Result<PodId> {
        let delegate = self.context.delegate(&config.runtime_handler)?;
        if config.users.is_some() {
            self.check_users(&config.runtime_handler, delegate.is_some())?;
        }
        let admission = match self.admit(config.clone()) {
            Err(Error::NameInUse { holder, .. }) if self.is_remains(&holder) => {
                self.remove(&PodId::from_file_name(&holder).ok_or_else(|| Error::Internal(holder))?).await?;
                self.admit(config)
            }
            other => other,
        };
        let (id, made) = match admission? {
            Admission::Joins(id) => return self.join(id).await,
            Admission::Starts(id, made) => (id, made),
        };
        let mut claim = Claim { pods: self.clone(), id: id.clone(), claimed: false };
        let result = made.await.unwrap_or_else(|_| Err(Error::Internal("the pod's task ended".into())));
        claim.claimed = true;
        result.map(|()| id)
    }

    fn admit(&self, config: PodConfig) -> Result<Admission> {
        let mut index = self.index();
        if let Some(id) = index.names.get(&config.name).cloned() {
            let handle = index.pods.get_mut(&id);
            let same = |handle: &Handle| handle.view.borrow().record.config == config;
            return match handle {
                Some(handle)
                    if same(handle) && (handle.unclaimed || handle.phase() == PodPhase::Creating) =>
                {
                    handle.unclaimed = false;
                    Ok(Admission::Joins(id))
                }
                _ => Err(Error::NameInUse { object: "pod", name: config.name.name, holder: id.to_string() }),
            };
        }
        let id = PodId::random();
        let record = PodRecord {
            id: id.clone(),
            phase: PodPhase::Creating,
            created_at: now(),
            boot_id: self.context.boot_id.clone(),
            monitor_pid: None,
            attachment: None,
            resources: config.resources.clone(),
            config,
        };
        let (answer, made) = oneshot::channel();
        let start = self.enter(&mut index, record, BTreeMap::new());
        let pods = self.clone();
        let pod = id.clone();
        tokio::spawn(async move {
            start.create(answer).await;
            pods.forget(&pod);
        });
        Ok(Admission::Starts(id, made))
    }

    /// Whether a pod could not be made or removed as a whole. Who asks for its name wants it out of the way.
    fn is_remains(&self, id: &str) -> bool {
        self.find(id).is_ok_and(|pod| pod.record.phase == PodPhase::Removing)
    }

    /// Waits until a pod that another request is making is ready.
    async fn join(&self, id: PodId) -> Result<PodId> {
        let mut view = self.handle(&id)?.view;
        let settled = |view: &Arc<PodView>| view.gone || view.record.phase != PodPhase::Creating;
        let failed =
            || Error::Internal(format!("pod {} could not be made; ask again to learn why", id.short()));
        let ready = view.wait_for(settled).await.map_err(|_| failed())?;
        if ready.record.phase == PodPhase::Ready && !ready.gone { Ok(id.clone()) } else { Err(failed()) }
    }

    /// Puts a pod into the index and gives what its task starts with.
    fn enter(
        &self,
        index: &mut Index,
        record: PodRecord,
        containers: BTreeMap<ContainerId, Arc<ContainerRecord>>,
    ) -> Start {
        let (commands, inbox) = mpsc::channel(MAILBOX);
        let view = PodView { record: record.clone(), containers: containers.clone(), gone: false };
        let (sender, view) = watch::channel(Arc::new(view));
        index.names.insert(record.config.name.clone(), record.id.clone());
        index.pods.insert(record.id.clone(), Handle { commands, view, unclaimed: false });
        Start { context: self.context.clone(), record, containers, view: sender, inbox }
    }

    fn forget(&self, id: &PodId) {
        let mut index = self.index();
        if let Some(handle) = index.pods.remove(id) {
            index.owners.retain(|_, owner| owner != id);
            let name = handle.view.borrow().record.config.name.clone();
            if index.names.get(&name) == Some(id) {
                index.names.remove(&name);
            }
        }
    }

    /// Every pod as it is now, in no order.
    pub fn list(&self) -> Vec<Arc<PodView>> {
        self.index()
            .pods
            .values()
            .map(|handle| handle.view.borrow().clone())
            .filter(|view| !view.gone)
            .collect()
    }

    /// The pod with this id, or the only one whose id starts so.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when several ids start so.
    pub fn find(&self, id: &str) -> Result<Arc<PodView>> {
        let index = self.index();
        let exact = PodId::from_file_name(id).and_then(|id| index.pods.get(&id));
        let view = match exact {
            Some(handle) => handle.view.borrow().clone(),
            None => {
                let views = index.pods.values().map(|handle| handle.view.borrow().clone());
                only("pod", id, views.filter(|view| has_prefix(view.record.id.as_str(), id)))?
            }
        };
        if view.gone { Err(Error::NotFound { object: "pod", id: id.into() }) } else { Ok(view) }
    }

    /// The container with this id, or the only one whose id starts so.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when several ids start so.
    pub fn find_container(&self, id: &str) -> Result<Found> {
        // Nearly all requests have the whole id, and there may be thousands of containers.
        if let Some(exact) = ContainerId::from_file_name(id) {
            let found = self.index().find_container(&exact);
            return found.ok_or_else(|| Error::NotFound { object: "container", id: id.to_owned() });
        }
        let containers = self.containers().into_iter();
        only("container", id, containers.filter(|found| has_prefix(found.container.id.as_str(), id)))
    }

    /// The same by name too: that of a container of `sampan run` first.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when several fit.
    pub fn find_container_by_name(&self, text: &str) -> Result<Found> {
        let named: Vec<Found> =
            self.containers().into_iter().filter(|found| found.container.config.name == text).collect();
        if let Some(own) = named.iter().find(|found| found.pod.record.config.standalone) {
            return Ok(own.clone());
        }
        match named.len() {
            0 => self.find_container(text),
            _ => only("container", text, named.into_iter()),
        }
    }

    /// Every container with its pod, in no order.
    pub fn containers(&self) -> Vec<Found> {
        let with_pod = |pod: Arc<PodView>| {
            let containers: Vec<_> = pod.containers.values().cloned().collect();
            containers.into_iter().map(move |container| Found { pod: pod.clone(), container })
        };
        let made = |found: &Found| found.container.phase != ContainerPhase::Creating;
        self.list().into_iter().flat_map(with_pod).filter(made).collect()
    }

    /// Whether a container, running or ended, was made of this image or has it mounted. Who makes one holds its images
    /// until this says so.
    pub fn use_image(&self, id: &str) -> bool {
        let uses =
            |pod: &PodView| !pod.gone && pod.containers.values().any(|container| container.uses_image(id));
        self.index().pods.values().any(|handle| uses(&handle.view.borrow()))
    }

    /// Follows a pod from now on.
    pub(crate) fn watch(&self, id: &PodId) -> Result<watch::Receiver<Arc<PodView>>> {
        Ok(self.handle(id)?.view)
    }

    /// Makes a container in a pod.
    ///
    /// # Errors
    /// `NotFound` for pod or image, `AlreadyExists` for the name, `FailedPrecondition` when the pod is stopped,
    /// or what kept it from being made, all undone then.
    pub async fn create_container(&self, pod: &PodId, config: ContainerConfig) -> Result<ContainerId> {
        let (config, images) = self.hold_images(config).await?;
        self.ask(pod, |answer| Command::CreateContainer { config, images, checkpoint: None, answer }).await
    }

    /// The images of a request, which nothing takes away until its container is made.
    async fn hold_images(&self, mut config: ContainerConfig) -> Result<(Box<ContainerConfig>, Arc<Images>)> {
        let context = self.context.clone();
        blocking(move || {
            let images = Images::hold(&context.store, &mut config)?;
            Ok::<_, Error>((Box::new(config), Arc::new(images)))
        })
        .await
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// `FailedPrecondition` when it is not merely created; `NotFound` or `InvalidArgument` for an entrypoint
    /// that is missing or not executable.
    pub async fn start_container(&self, found: &Found) -> Result<()> {
        let id = found.container.id.clone();
        self.ask(&found.pod.record.id, |answer| Command::StartContainer { id, answer }).await
    }

    /// Asks a container to end and kills it after `grace`. Success when it has ended already. The stopping
    /// goes on when the caller goes away.
    ///
    /// # Errors
    /// `DeadlineExceeded` when it is still there after SIGKILL.
    pub async fn stop_container(&self, found: &Found, grace: Duration) -> Result<()> {
        let (pods, found) = (self.clone(), found.clone());
        let stopping = tokio::spawn(async move { pods.stop_container_now(&found, grace).await });
        stopping.await.unwrap_or_else(|error| Err(Error::Internal(error.to_string())))
    }

    async fn stop_container_now(&self, found: &Found, grace: Duration) -> Result<()> {
        const SIGKILL: i32 = 9;
        let id = &found.container.id;
        let Ok(mut view) = self.watch(&found.pod.record.id) else { return Ok(()) };
        let ended = |view: &Arc<PodView>| {
            view.gone || view.containers.get(id).is_none_or(|now| now.phase == ContainerPhase::Exited)
        };
        let created =
            view.borrow().containers.get(id).is_some_and(|now| now.phase == ContainerPhase::Created);
        if ended(&view.borrow_and_update()) {
            return Ok(());
        }
        if !grace.is_zero() && !created {
            self.signal(found, found.container.stop_signal, false).await?;
            if tokio::time::timeout(grace, view.wait_for(ended)).await.is_ok() {
                return Ok(());
            }
        }
        self.signal(found, SIGKILL, true).await?;
        let killed = tokio::time::timeout(KILLED, view.wait_for(ended)).await;
        let late = || Error::Deadline { what: format!("killing container {}", id.short()), limit: KILLED };
        killed.map(|_| ()).map_err(|_| late())
    }

    async fn signal(&self, found: &Found, signal: i32, all: bool) -> Result<()> {
        let id = found.container.id.clone();
        let asked =
            self.ask(&found.pod.record.id, |answer| Command::Signal { id, signal, all, answer }).await;
        missing_is_done(asked)
    }

    /// Removes a container, killing it first when it runs.
    ///
    /// # Errors
    /// What keeps it from going; it is listed until it is gone.
    pub async fn remove_container(&self, found: &Found) -> Result<()> {
        let id = found.container.id.clone();
        let asked = self.ask(&found.pod.record.id, |answer| Command::RemoveContainer { id, answer });
        missing_is_done(asked.await)
    }

    /// Ends every container of a pod and gives back all it holds but its record. Success when it is stopped.
    ///
    /// # Errors
    /// What could not be given back; a repeated call tries again.
    pub async fn stop(&self, pod: &PodId) -> Result<()> {
        missing_is_done(self.ask(pod, |answer| Command::Stop { answer }).await)
    }

    /// Removes a pod with all its containers. Success when it is gone.
    ///
    /// # Errors
    /// What could not be given back; a repeated call tries again.
    pub async fn remove(&self, pod: &PodId) -> Result<()> {
        let asked = missing_is_done(self.ask(pod, |answer| Command::Remove { answer }).await);
        if asked.is_ok() {
            // The task forgets it a moment later; its name is free when this returns.
            self.forget(pod);
        }
        asked
    }

    /// Runs a command in a container; see [`exec::run`].
    ///
    /// # Errors
    /// `FailedPrecondition` when the container does not run, `DeadlineExceeded` after `limit`.
    pub async fn exec(
        &self,
        found: &Found,
        argv: Vec<String>,
        limit: Option<Duration>,
    ) -> Result<exec::Output> {
        exec::run(&self.context, &found.pod.record.id, &found.container, argv, limit).await
    }

    /// Has a container's log written to a new file, after the old one was moved away.
    ///
    /// # Errors
    /// `FailedPrecondition` when the container does not run or has no log. The old file stays in use then.
    pub async fn reopen_log(&self, found: &Found) -> Result<()> {
        let (pod, container) = (&found.pod.record.id, &found.container);
        if container.phase != ContainerPhase::Running {
            return Err(Error::Precondition(format!("container {} is not running", container.id.short())));
        }
        let connection = monitor::Connection::open(pod, &self.context.pod_state(pod)).await?;
        connection.command(&Request::ReopenLog { id: container.id.to_string() }).await
    }

    /// Changes the limits of a container that has not ended.
    ///
    /// # Errors
    /// `FailedPrecondition` when it has ended, or what the kernel does not take; the limits are as before then.
    pub async fn update_resources(&self, found: &Found, resources: Resources) -> Result<()> {
        let (id, resources) = (found.container.id.clone(), Box::new(resources));
        self.ask(&found.pod.record.id, |answer| Command::Update { id, resources, answer }).await
    }

    /// Puts limits in force on a pod's own cgroup; one that was named as its parent is left to who named it.
    ///
    /// # Errors
    /// `FailedPrecondition` when the pod does not run, or what the kernel does not take.
    pub async fn update_pod_resources(&self, pod: &PodId, resources: Resources) -> Result<()> {
        let resources = Box::new(resources);
        self.ask(pod, |answer| Command::UpdatePod { resources, answer }).await
    }

    /// Has new pods get their addresses from other subnets.
    ///
    /// # Errors
    /// `InvalidArgument` for subnets that can't be used; all is as before then.
    pub async fn move_network(&self, subnets: Vec<IpNet>) -> Result<()> {
        let context = self.context.clone();
        blocking(move || context.move_network(subnets)).await
    }

    async fn ask<T>(
        &self,
        pod: &PodId,
        command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command,
    ) -> Result<T> {
        let gone = || Error::NotFound { object: "pod", id: pod.to_string() };
        let commands = self.handle(pod)?.commands;
        let (answer, answered) = oneshot::channel();
        commands.send(command(answer)).await.map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    fn handle(&self, pod: &PodId) -> Result<Handle> {
        let missing = || Error::NotFound { object: "pod", id: pod.to_string() };
        self.index().pods.get(pod).cloned().ok_or_else(missing)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn find_container(&mut self, id: &ContainerId) -> Option<Found> {
        let within = |handle: &Handle| {
            let pod = handle.view.borrow().clone();
            let container = pod.containers.get(id)?.clone();
            let known = !pod.gone && container.phase != ContainerPhase::Creating;
            known.then_some(Found { pod, container })
        };
        if let Some(found) = self.owners.get(id).and_then(|owner| self.pods.get(owner)).and_then(within) {
            return Some(found);
        }
        self.owners.remove(id);
        let found = self.pods.values().find_map(within)?;
        self.owners.insert(id.clone(), found.pod.record.id.clone());
        Some(found)
    }
}

impl Handle {
    fn phase(&self) -> PodPhase {
        self.view.borrow().record.phase
    }
}

enum Admission {
    Starts(PodId, oneshot::Receiver<Result<()>>),
    Joins(PodId),
}

/// Marks a pod whose maker went away before it could learn the id.
struct Claim {
    pods: Pods,
    id: PodId,
    claimed: bool,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.claimed
            && let Some(handle) = self.pods.index().pods.get_mut(&self.id)
        {
            handle.unclaimed = true;
        }
    }
}

fn has_prefix(id: &str, prefix: &str) -> bool {
    !prefix.is_empty() && id.starts_with(prefix)
}

fn only<T>(object: &'static str, id: &str, mut fitting: impl Iterator<Item = T>) -> Result<T> {
    let first = fitting.next().ok_or_else(|| Error::NotFound { object, id: id.into() })?;
    match fitting.next() {
        Some(_) => Err(Error::Ambiguous { object, id: id.into() }),
        None => Ok(first),
    }
}

/// What is asked of something that is gone has been done.
fn missing_is_done(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        other => other,
    }
}
