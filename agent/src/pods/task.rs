//! The task that owns one pod: every change of a pod and its containers happens here, one after the other.
//!
//! ```text
//!            create                stop                 remove
//!  (none) ──────────▶ Creating ─▶ Ready ───▶ Stopped ───────────▶ Removing ─▶ (gone)
//!                        └─ failed ──────────────────────────────────┘
//!
//!  container:  Creating ─▶ Created ─▶ Running ─▶ Exited ─▶ (gone)
//! ```
//!
//! Requests come by a channel and what is known goes out by a watch, so lists never wait for work in flight,
//! and a caller that goes away stops nothing. The record on disk is written before a step whose remains
//! would have to be found after a crash.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use sampan_runtime::{
    cgroup::Cgroup,
    shim::protocol::{Event, Request, Response},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use tracing::{Instrument, debug, info, warn};

use super::{
    PodView,
    checkpoint::{self, Checkpoint},
    config::{ContainerConfig, NetworkMode, PidMode, PodConfig, Resources},
    files, frozen,
    id::ContainerId,
    monitor::{self, Connection, Launch},
    record::{ContainerPhase, ContainerRecord, ExitRecord, PodPhase, PodRecord},
    source::Images,
    spec,
};
use crate::{
    context::{Context, blocking, private_folder},
    error::{Error, Result, at},
    events::{Action, Object},
};

mod container;
mod network;
mod resume;
mod teardown;

pub(super) use container::empty_cgroup;
use container::{is_slice, make_cgroup};

/// Longest wait for processes to be gone after SIGKILL.
const KILLED: Duration = Duration::from_secs(10);
/// What followers of a container that removes itself get to read its end.
const FAREWELL: Duration = Duration::from_secs(10);

/// What a pod can be asked. Each answer may find nobody left to hear it.
#[derive(Debug)]
pub(crate) enum Command {
    CreateContainer {
        config: Box<ContainerConfig>,
        images: Arc<Images>,
        checkpoint: Option<Checkpoint>,
        answer: oneshot::Sender<Result<ContainerId>>,
    },
    StartContainer {
        id: ContainerId,
        answer: oneshot::Sender<Result<()>>,
    },
    /// A signal for the first process, or for all of the container.
    Signal {
        id: ContainerId,
        signal: i32,
        all: bool,
        answer: oneshot::Sender<Result<()>>,
    },
    /// New limits.
    Update {
        id: ContainerId,
        resources: Box<Resources>,
        answer: oneshot::Sender<Result<()>>,
    },
    /// Kills it first when it runs.
    RemoveContainer {
        id: ContainerId,
        answer: oneshot::Sender<Result<()>>,
    },
    /// New limits of all containers together.
    UpdatePod {
        resources: Box<Resources>,
        answer: oneshot::Sender<Result<()>>,
    },
    Stop {
        answer: oneshot::Sender<Result<()>>,
    },
    /// Stops first what runs. The task ends with it.
    Remove {
        answer: oneshot::Sender<Result<()>>,
    },
}

/// The owner of one pod.
#[derive(Debug)]
pub(crate) struct Task {
    context: Arc<Context>,
    record: PodRecord,
    /// Shared with what is shown, so that showing many is cheap.
    containers: BTreeMap<ContainerId, Arc<ContainerRecord>>,
    /// Carries requests to the monitor; `None` when there is no monitor.
    control: Option<Connection>,
    /// Brings its events.
    events: Option<Connection>,
    view: watch::Sender<Arc<PodView>>,
    inbox: mpsc::Receiver<Command>,
    /// When a pod that removes itself is to go.
    farewell: Option<Instant>,
    /// The monitor has ended unasked.
    orphaned: bool,
    /// Somebody was told that there is such a pod.
    made: bool,
    /// Living containers of which a kill for want of memory has been told.
    starved: BTreeSet<ContainerId>,
}

/// What a pod's task is started with.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) context: Arc<Context>,
    pub(crate) record: PodRecord,
    pub(crate) containers: BTreeMap<ContainerId, Arc<ContainerRecord>>,
    pub(crate) view: watch::Sender<Arc<PodView>>,
    pub(crate) inbox: mpsc::Receiver<Command>,
}

impl Start {
    fn task(self) -> Task {
        let Start { context, record, containers, view, inbox } = self;
        Task {
            context,
            record,
            containers,
            control: None,
            events: None,
            view,
            inbox,
            farewell: None,
            orphaned: false,
            made: true,
            starved: BTreeSet::new(),
        }
    }

    /// Makes the pod, tells `made` how that went, and serves it until it is removed.
    pub(crate) async fn create(self, made: oneshot::Sender<Result<()>>) {
        let mut task = self.task();
        task.made = false;
        let span = tracing::info_span!("pod", sandbox.id = %task.record.id);
        async {
            match Box::pin(task.create()).await {
                Ok(()) => {
                    info!(name = %task.record.config.name.name, "pod created");
                    let _ = made.send(Ok(()));
                    task.serve().await;
                }
                Err(error) => {
                    warn!(error = %error.chain(), "pod could not be created");
                    let left = Box::pin(task.remove()).await;
                    let _ = made.send(Err(error));
                    if let Err(left) = left {
                        warn!(error = %left.chain(), "remains of the pod are left until it is removed");
                        task.serve().await;
                    }
                }
            }
        }
        .instrument(span)
        .await;
    }

    /// Takes up a pod that an earlier agent left, and serves it.
    pub(crate) async fn resume(self, resumed: oneshot::Sender<()>) {
        let mut task = self.task();
        let span = tracing::info_span!("pod", sandbox.id = %task.record.id);
        async {
            Box::pin(task.take_up()).await;
            let _ = resumed.send(());
            // Plugins may take their time; nobody waits for them but who asks for this pod.
            if Box::pin(task.finish()).await {
                Box::pin(task.release_ended()).await;
                Box::pin(task.check_plugins()).await;
                task.serve().await;
            }
        }
        .instrument(span)
        .await;
    }
}

impl Task {
    /// What is done here is boxed: a task has room for the largest thing it does, and waits nearly all its life.
    async fn serve(&mut self) {
        loop {
            if std::mem::take(&mut self.orphaned) {
                Box::pin(self.reconnect_or_end()).await;
            }
            let farewell = self.farewell;
            tokio::select! {
                command = self.inbox.recv() => match command {
                    Some(command) => if Box::pin(self.handle(command)).await { return },
                    // The agent ends; monitor and containers live on.
                    None => return,
                },
                event = next_event(self.events.as_ref()) => Box::pin(self.observe(event)).await,
                () = said_goodbye(&self.view, farewell) => {
                    match Box::pin(self.remove()).await {
                        Ok(()) => return,
                        Err(error) => warn!(error = %error.chain(), "pod could not remove itself"),
                    }
                    self.farewell = None;
                }
            }
        }
    }

    /// Does what is asked; true when the pod is gone.
    async fn handle(&mut self, command: Command) -> bool {
        match command {
            Command::CreateContainer { config, images, checkpoint, answer } => {
                let result = self.create_container(*config, images, checkpoint).await;
                if let Err(Ok(id)) = answer.send(result) {
                    // Nobody learned the id: a repeated request gets a container of its own.
                    debug!(container.id = %id, "creation was given up by its caller");
                    let _ = self.remove_container(&id).await;
                }
            }
            Command::StartContainer { id, answer } => {
                let _ = answer.send(self.start_container(&id).await);
            }
            Command::Signal { id, signal, all, answer } => {
                let _ = answer.send(self.signal(&id, signal, all).await);
            }
            Command::Update { id, resources, answer } => {
                let _ = answer.send(self.update(&id, &resources).await);
            }
            Command::RemoveContainer { id, answer } => {
                let _ = answer.send(self.remove_container(&id).await);
            }
            Command::UpdatePod { resources, answer } => {
                let _ = answer.send(self.update_pod(&resources).await);
            }
            Command::Stop { answer } => {
                let _ = answer.send(self.stop().await);
            }
            Command::Remove { answer } => {
                let result = self.remove().await;
                let gone = result.is_ok();
                let _ = answer.send(result);
                return gone;
            }
        }
        false
    }

    /// Takes note of what the monitor tells.
    async fn observe(&mut self, event: Result<Option<Response>>) {
        match event {
            Ok(Some(Response::Event(Event::Exited { id, exit }))) => self.exited(&id, exit).await,
            Ok(Some(Response::Event(Event::OutOfMemory { id }))) => self.out_of_memory(&id),
            Ok(Some(other)) => debug!(?other, "unexpected message from the monitor"),
            Ok(None) => self.disconnected("the connection was closed"),
            Err(error) => self.disconnected(&error.chain()),
        }
    }

    /// [`Task::serve`] finds out whether the monitor is gone, or only lets go of a listener that was too slow.
    fn disconnected(&mut self, why: &str) {
        warn!(error = why, "the pod's monitor has closed its connection");
        self.events = None;
        self.orphaned = true;
    }

    /// Without its monitor the pod is at its end.
    async fn reconnect_or_end(&mut self) {
        let Err(error) = self.reconnect().await else { return };
        warn!(error = %error.chain(), "the pod's monitor is gone");
        let why = "the pod's monitor ended";
        self.lost("MonitorLost", why).await;
        self.give_back(why).await;
    }

    async fn create(&mut self) -> Result<()> {
        let start = Instant::now();
        if let Some(parent) = self.record.config.cgroup_parent.as_deref().filter(|parent| is_slice(parent))
            && !sampan_runtime::cgroup::has_systemd()
        {
            let why = "is a slice, and systemd is not the first process here";
            return Err(Error::Precondition(format!("the cgroup parent {parent:?} {why}")));
        }
        self.context.records.create(&self.record)?;
        self.publish();
        let folder = self.context.pod_state(&self.record.id);
        private_folder(&folder)?;
        let config = self.record.config.clone();
        let hostname = self.hostname();
        let launch = Launch {
            launcher: &self.context.launcher,
            pod: &self.record.id,
            folder: &folder,
            cgroup: &format!("{}/monitors", self.context.config.cgroup.root),
            mounts: self.context.mounts.as_ref(),
            hostname: (config.network != NetworkMode::Host).then_some(hostname.as_str()),
            host_network: config.network == NetworkMode::Host,
            host_ipc: config.host_ipc,
            shared_pid: config.pid == PidMode::Pod,
            sysctls: sysctls(&config),
            procfs: &self.context.procfs.get(),
            users: config.users.as_ref(),
        };
        // Beside the monitor's start. One that was named as the parent is there already.
        let cgroup =
            self.record.config.cgroup_parent.is_none().then(|| self.context.pod_cgroup(&self.record.id));
        let (control, cgroup) = tokio::join!(monitor::launch(&launch), make_cgroup(cgroup));
        let control = control?;
        self.record.monitor_pid = Some(control.pid);
        self.control = Some(control);
        cgroup?;
        self.context.measurements.pod_start("monitor", start.into_std());
        let since = Instant::now();
        let pod = self.record.id.clone();
        let subscribe = async {
            let events = Connection::open(&pod, &folder).await?;
            events.command(&Request::Subscribe).await?;
            Ok::<_, Error>(events)
        };
        // Both to their ends: a connection to the network that is cut off in the middle would be half a one.
        let (events, connected) = tokio::join!(subscribe, self.connect_network());
        connected?;
        self.events = Some(events?);
        self.context.measurements.pod_start("network", since.into_std());
        let attachment = self.record.attachment.clone();
        blocking(move || files::create(&folder, &config, &hostname, attachment.as_ref())).await?;
        let limits = self.record.resources.clone();
        if limits != Resources::default() {
            self.limit_pod(&limits).await?;
        }
        self.record.phase = PodPhase::Ready;
        self.save_pod()?;
        self.made = true;
        self.tell(Action::Create);
        self.tell(Action::Start);
        self.context.measurements.pod_start("whole", start.into_std());
        Ok(())
    }

    /// Puts new limits of all containers together in force, or leaves all as they were.
    async fn update_pod(&mut self, resources: &Resources) -> Result<()> {
        if self.record.phase != PodPhase::Ready {
            return Err(Error::Precondition(format!("pod {} is not running", self.record.id.short())));
        }
        let mut limits = self.record.resources.clone();
        limits.merge(resources);
        self.limit_pod(&limits).await?;
        self.record.resources = limits;
        self.save_pod()
    }

    /// Sets the limits of the pod's cgroup; one that was named as its parent is left to who named it.
    async fn limit_pod(&self, limits: &Resources) -> Result<()> {
        let limits = spec::limits(limits)?;
        if self.record.config.cgroup_parent.is_some() {
            return Ok(());
        }
        let path = self.context.pod_cgroup(&self.record.id);
        blocking(move || {
            let failed = |source| Error::Cgroup { path: path.clone(), source };
            let cgroup = Cgroup::new(&path).map_err(failed)?;
            // Which devices may be used is for each container to say.
            cgroup.create().and_then(|()| cgroup.update(&limits)).map_err(failed)
        })
        .await
    }

    /// The name that the pod's containers have.
    fn hostname(&self) -> String {
        match (&*self.record.config.hostname, self.record.config.network) {
            ("", NetworkMode::Host) => rustix::system::uname().nodename().to_string_lossy().into_owned(),
            ("", _) => self.record.id.short().to_owned(),
            (name, _) => name.to_owned(),
        }
    }

    /// Ends every container and takes down all but record and logs. Stopping twice succeeds.
    async fn stop(&mut self) -> Result<()> {
        let stopped = self.record.phase == PodPhase::Stopped;
        if stopped && self.control.is_none() && self.record.attachment.is_none() {
            return Ok(());
        }
        let taken_down = self.take_down("the pod was stopped").await;
        let was_ready = self.record.phase == PodPhase::Ready;
        // Its monitor is gone in any case, and what is left to be given back is no pod that containers could be made in.
        if was_ready || taken_down.is_ok() {
            self.record.phase = PodPhase::Stopped;
        }
        let saved = self.save_pod();
        if was_ready {
            self.tell(Action::Die);
        }
        taken_down.and(saved)?;
        info!("pod stopped");
        Ok(())
    }

    /// Takes down everything and forgets the pod.
    async fn remove(&mut self) -> Result<()> {
        let was_ready = self.record.phase == PodPhase::Ready;
        self.record.phase = PodPhase::Removing;
        // A full disk must not keep a pod from going.
        let _ = self.save_pod();
        self.take_down("the pod was removed").await?;
        if was_ready {
            self.tell(Action::Die);
        }
        let (context, pod) = (self.context.clone(), self.record.id.clone());
        let keys: Vec<String> =
            self.containers.values().flat_map(|container| container.snapshots()).collect();
        blocking(move || {
            for key in &keys {
                context.store.snapshots().remove(key)?;
            }
            context.records.remove_pod(&pod)
        })
        .await?;
        self.view.send_modify(|view| Arc::make_mut(view).gone = true);
        if self.made {
            for container in self.containers.values() {
                self.tell_of(container, Action::Remove);
            }
            self.tell(Action::Remove);
        }
        info!("pod removed");
        Ok(())
    }

    fn save_pod(&mut self) -> Result<()> {
        self.publish();
        self.context.records.write_pod(&self.record)
    }

    fn save_container(&mut self, record: ContainerRecord) -> Result<()> {
        let result = self.context.records.write_container(&self.record.id, &record);
        self.containers.insert(record.id.clone(), Arc::new(record));
        self.publish();
        result
    }

    /// Tells of something that has happened to the pod.
    fn tell(&self, action: Action) {
        let name = &self.record.config.name;
        let attributes = [("name", name.name.clone()), ("namespace", name.namespace.clone())];
        let view = self.view.borrow().clone();
        self.context.events.tell(Object::Pod, action, self.record.id.as_str(), Some(view), attributes);
    }

    /// Shows the world what is known now.
    fn publish(&self) {
        let containers = self.containers.clone();
        self.view.send_replace(Arc::new(PodView { record: self.record.clone(), containers, gone: false }));
    }

    fn control(&self) -> Result<&Connection> {
        self.control.as_ref().ok_or_else(|| {
            Error::Precondition(format!("pod {} is not ready: it was stopped", self.record.id.short()))
        })
    }

    /// Lets events in until the container has ended.
    async fn await_exit(&mut self, id: &ContainerId, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let alive = |task: &Task| {
            task.containers.get(id).is_some_and(|container| container.phase == ContainerPhase::Running)
        };
        while alive(self) && self.events.is_some() {
            let event = timeout_at(deadline, next_event(self.events.as_ref()))
                .await
                .map_err(|_| Error::Deadline { what: format!("killing container {}", id.short()), limit })?;
            self.observe(event).await;
        }
        Ok(())
    }
}

/// How a container that nobody saw ending is recorded.
fn unknown_exit(message: &str) -> ExitRecord {
    ExitRecord {
        code: 255,
        reason: "Unknown".into(),
        message: message.into(),
        finished_at: crate::context::now(),
    }
}

/// Never comes when there is no connection.
async fn next_event(events: Option<&Connection>) -> Result<Option<Response>> {
    match events {
        Some(events) => events.receive().await,
        None => std::future::pending().await,
    }
}

/// Comes when followers have read the end of a pod that removes itself, or have had time to.
async fn said_goodbye(view: &watch::Sender<Arc<PodView>>, deadline: Option<Instant>) {
    /// What a client gets to come back after `Run` and ask for logs and the exit code.
    const COME_BACK: Duration = Duration::from_secs(1);
    let Some(deadline) = deadline else { return std::future::pending().await };
    tokio::time::sleep(COME_BACK).await;
    // One receiver is the pod's own entry in the index.
    while view.receiver_count() > 1 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
/// The pod's own sysctls, over what every pod has: echo requests without CAP_NET_RAW, which no container has by default.
fn sysctls(config: &PodConfig) -> Vec<(String, String)> {
    let mut all = BTreeMap::new();
    if config.network != NetworkMode::Host {
        all.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
    }
    all.extend(config.sysctls.clone());
    all.into_iter().collect()
}
