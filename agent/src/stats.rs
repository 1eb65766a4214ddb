//! What containers and pods use: read from their cgroups when asked, with rates kept between readings.
//!
//! Readings are fresh; only the sizes of writable layers are from memory, because counting takes a walk. A sampler in
//! the background reads processor times, so that a rate is known at the first question too, and walks layers.

use std::{collections::HashMap, fs::File, os::fd::OwnedFd, sync::Arc, time::Duration};

use sampan_runtime::cgroup::{Reading, Stats};
use tokio::time::MissedTickBehavior;

use crate::{
    context::{blocking, now},
    network::{InterfaceStats, Network},
    pods::{
        ContainerId, Found, PodView, Pods,
        config::NetworkMode,
        record::{ContainerPhase, PodPhase},
    },
};

mod disk;
pub mod endpoint;
mod exposition;
mod figures;
mod layers;
mod meters;
pub(crate) mod metrics;
mod processes;

pub(crate) use disk::Capacity;
pub(crate) use figures::{ContainerFigures, PodFigures};
pub use layers::LayerUsage;
pub(crate) use processes::Processes;

use disk::Disks;
use layers::Layers;
use meters::Meters;
use processes::Counts;

/// How often the background sampler reads CPU times.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
/// How often it looks for layers to walk and for files to close.
const TIDY_INTERVAL: Duration = Duration::from_secs(1);
/// With fewer pods than this, asking in their namespaces is cheaper than for the traffic of all.
const FEW: usize = 4;

/// What one container uses.
#[derive(Debug, Clone)]
pub struct ContainerSample {
    /// Whose it is.
    pub found: Found,
    /// When it was read, nanoseconds since 1970.
    pub at: i64,
    /// As the cgroup has it.
    pub reading: Reading,
    /// Billionths of a core in use of late; `None` before two readings.
    pub nano_cores: Option<u64>,
    /// The writable layer; `None` while nobody has counted it.
    pub layer: Option<LayerUsage>,
}

/// What one pod uses.
#[derive(Debug, Clone)]
pub struct PodSample {
    /// Whose it is.
    pub pod: Arc<PodView>,
    /// When it was read, nanoseconds since 1970.
    pub at: i64,
    /// Of the pod's cgroup; `None` when it has none.
    pub reading: Option<Reading>,
    /// Processes and threads.
    pub tasks: u64,
    /// Billionths of a core in use of late, all containers together.
    pub nano_cores: Option<u64>,
    /// By interface; empty on the host's network.
    pub interfaces: Vec<InterfaceStats>,
    /// Its running containers.
    pub containers: Vec<ContainerSample>,
}

/// Everything a container's cgroup tells at one moment.
#[derive(Debug, Clone)]
pub struct FullSample {
    /// The usual figures.
    pub sample: ContainerSample,
    /// All figures.
    pub stats: Stats,
    /// Traffic of its pod.
    pub interfaces: Vec<InterfaceStats>,
}

/// Reads and remembers.
#[derive(Debug, Clone)]
pub struct Collector {
    pods: Pods,
    kept: Arc<Kept>,
}

#[derive(Debug)]
struct Kept {
    meters: Meters,
    layers: Layers,
    processes: Counts,
    disks: Disks,
}

impl Collector {
    /// A collector with nothing remembered.
    pub fn new(pods: Pods) -> Collector {
        let kept = Kept {
            meters: Meters::new(),
            layers: Layers::default(),
            processes: Counts::default(),
            disks: Disks::new(),
        };
        Collector { pods, kept: Arc::new(kept) }
    }

    /// Samples of these containers; those that have no cgroup any more are left out.
    pub async fn containers(&self, containers: Vec<Found>) -> Vec<ContainerSample> {
        let collector = self.clone();
        blocking(move || {
            let mut buffer = Vec::new();
            containers.into_iter().filter_map(|found| collector.container(found, &mut buffer)).collect()
        })
        .await
    }

    /// The same with everything that their cgroups tell, and the traffic of their pods.
    pub async fn full(&self, containers: Vec<Found>) -> Vec<FullSample> {
        let collector = self.clone();
        blocking(move || {
            let mut buffer = Vec::new();
            let traffic = Traffic::of(&collector.pods, containers.len());
            let full = |found: Found| {
                let stats = collector.kept.meters.stats(&found.container.cgroup)?;
                let interfaces = traffic.interfaces(&found.pod);
                Some(FullSample { sample: collector.container(found, &mut buffer)?, stats, interfaces })
            };
            containers.into_iter().filter_map(full).collect()
        })
        .await
    }

    /// A sample of each pod.
    pub async fn pods(&self, pods: Vec<Arc<PodView>>) -> Vec<PodSample> {
        let collector = self.clone();
        blocking(move || {
            let mut buffer = Vec::new();
            let traffic = Traffic::of(&collector.pods, pods.len());
            pods.into_iter().map(|pod| collector.pod(pod, &traffic, &mut buffer)).collect()
        })
        .await
    }

    /// Keeps rates and the sizes of layers fresh for ever.
    pub async fn run(self) {
        tokio::join!(self.sample_rates(), self.tidy());
    }

    async fn sample_rates(&self) {
        let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let collector = self.clone();
            blocking(move || collector.refresh_rates()).await;
        }
    }

    fn refresh_rates(&self) {
        let mut buffer = Vec::new();
        for path in self.living_cgroups() {
            self.kept.meters.sample(&path, &mut buffer);
        }
    }

    /// Those of pods that are up and of their containers that have not ended.
    fn living_cgroups(&self) -> Vec<String> {
        let mut living = Vec::new();
        for pod in self.pods.list().iter().filter(|pod| pod.record.phase == PodPhase::Ready) {
            living.push(self.pod_cgroup(pod));
            let running = pod.containers.values().filter(|container| lives(container.phase));
            living.extend(running.map(|container| container.cgroup.clone()));
        }
        living
    }

    /// Closes the files of what has gone, and walks layers that nobody has walked for long.
    async fn tidy(&self) {
        let mut ticks = tokio::time::interval(TIDY_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let collector = self.clone();
            blocking(move || {
                let living = collector.living_cgroups();
                collector.kept.meters.retain(&living.iter().map(String::as_str).collect());
                collector.refresh_layers();
            })
            .await;
        }
    }

    fn refresh_layers(&self) {
        // Without a look at each of those that have ended: there may be thousands.
        let pods = self.pods.list();
        let ready = pods.iter().filter(|pod| pod.record.phase == PodPhase::Ready);
        let containers = ready.flat_map(|pod| pod.containers.values());
        let living: Vec<ContainerId> = containers
            .filter(|container| lives(container.phase))
            .map(|container| container.id.clone())
            .collect();
        let layers = &self.kept.layers;
        layers.retain(&living);
        let snapshots = self.pods.context().store.snapshots();
        for id in layers.due(&living) {
            layers.walk(snapshots, &id);
        }
    }

    fn container(&self, found: Found, buffer: &mut Vec<u8>) -> Option<ContainerSample> {
        let container = &found.container;
        if !lives(container.phase) {
            return None;
        }
        let measured = self.kept.meters.read(&container.cgroup, buffer)?;
        let snapshots = self.pods.context().store.snapshots();
        Some(ContainerSample {
            at: now(),
            reading: measured.reading,
            nano_cores: measured.nano_cores,
            layer: self.kept.layers.get(snapshots, &container.id, container.created_at),
            found,
        })
    }

    fn pod(&self, pod: Arc<PodView>, traffic: &Traffic, buffer: &mut Vec<u8>) -> PodSample {
        let of_pod = |container: &Arc<_>| Found { pod: pod.clone(), container: Arc::clone(container) };
        let containers: Vec<_> = pod.containers.values().map(of_pod).collect();
        let containers: Vec<_> =
            containers.into_iter().filter_map(|found| self.container(found, buffer)).collect();
        let measured = self.kept.meters.read_with_tasks(&self.pod_cgroup(&pod), buffer);
        PodSample {
            at: now(),
            reading: measured.map(|(measured, _)| measured.reading),
            tasks: measured.map_or(0, |(_, tasks)| tasks),
            nano_cores: measured.and_then(|(measured, _)| measured.nano_cores),
            interfaces: traffic.interfaces(&pod),
            containers,
            pod,
        }
    }

    fn pod_cgroup(&self, pod: &PodView) -> String {
        match &pod.record.config.cgroup_parent {
            Some(parent) => parent.clone(),
            None => self.pods.context().pod_cgroup(&pod.record.id),
        }
    }
}

/// Whether a container has a cgroup.
fn lives(phase: ContainerPhase) -> bool {
    matches!(phase, ContainerPhase::Created | ContainerPhase::Running)
}

/// Traffic of pods. For many it is read at once from the host's side, as far as they are on our bridge.
struct Traffic {
    by_host_interface: HashMap<String, InterfaceStats>,
}

impl Traffic {
    fn of(pods: &Pods, count: usize) -> Traffic {
        if count < FEW {
            return Traffic { by_host_interface: HashMap::new() };
        }
        let bridge = pods.context().open_network();
        let traffic =
            bridge.map_or_else(|| Ok(HashMap::new()), |bridge| bridge.traffic()).unwrap_or_else(|error| {
                tracing::debug!(%error, "the traffic of all pods could not be read at once");
                HashMap::new()
            });
        Traffic { by_host_interface: traffic }
    }

    /// Of one pod; empty when it has no network of its own or is not up.
    fn interfaces(&self, pod: &PodView) -> Vec<InterfaceStats> {
        let record = &pod.record;
        if record.config.network == NetworkMode::Host || record.phase != PodPhase::Ready {
            return Vec::new();
        }
        let attachment = record.attachment.as_ref();
        let known = attachment.and_then(|attached| self.by_host_interface.get(&attached.host_interface));
        if let Some(stats) = known {
            return vec![stats.clone()];
        }
        let open = |pid: i32| File::open(format!("/proc/{pid}/ns/net")).ok();
        let Some(netns) = record.monitor_pid.and_then(open) else { return Vec::new() };
        let mut interfaces = Network::interfaces(&OwnedFd::from(netns)).unwrap_or_default();
        // Loopback is nobody's traffic.
        interfaces.retain(|interface| interface.name != "lo");
        interfaces
    }
}
