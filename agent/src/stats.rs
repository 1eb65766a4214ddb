//! What containers use: read from their cgroups when asked, with rates kept between readings.
//!
//! A sampler reads CPU times in the background, so that a rate is known at the first question too.

use std::{
    collections::HashMap,
    fs::File,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sampan_imagestore::Usage;
use sampan_runtime::cgroup::{Cgroup, Stats};

use crate::{
    context::{Context, blocking, now},
    network::{InterfaceStats, Network},
    pods::{
        ContainerId, Found, PodView, Pods,
        config::NetworkMode,
        record::{ContainerPhase, PodPhase},
    },
};

/// How often the background sampler reads CPU times.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
/// A rate over less than this is noise.
const SHORTEST: Duration = Duration::from_millis(100);
/// How old the size of a writable layer may be: it takes a walk to know it.
const LAYER_AGE: Duration = Duration::from_secs(10);

/// What one container uses.
#[derive(Debug, Clone)]
pub struct ContainerSample {
    /// Whose it is.
    pub found: Found,
    /// When it was read, nanoseconds since 1970.
    pub at: i64,
    /// As the cgroup has it.
    pub stats: Stats,
    /// Billionths of a core in use of late; `None` before two readings.
    pub nano_cores: Option<u64>,
    /// The writable layer.
    pub layer: Usage,
}

/// What one pod uses.
#[derive(Debug, Clone)]
pub struct PodSample {
    /// Whose it is.
    pub pod: Arc<PodView>,
    /// When it was read, nanoseconds since 1970.
    pub at: i64,
    /// Of the pod's cgroup; `None` when it has none.
    pub stats: Option<Stats>,
    /// Billionths of a core in use of late, all containers together.
    pub nano_cores: Option<u64>,
    /// By interface; empty on the host's network.
    pub interfaces: Vec<InterfaceStats>,
    /// Its running containers.
    pub containers: Vec<ContainerSample>,
}

/// Reads and remembers.
#[derive(Debug, Clone)]
pub struct Collector {
    pods: Pods,
    memory: Arc<Mutex<HashMap<ContainerId, Remembered>>>,
}

#[derive(Debug, Clone, Default)]
struct Remembered {
    cpu: Option<(Instant, u64)>,
    nano_cores: Option<u64>,
    layer: Option<(Instant, Usage)>,
}

impl Collector {
    /// A collector with nothing remembered.
    pub fn new(pods: Pods) -> Collector {
        Collector { pods, memory: Arc::default() }
    }

    /// Samples of these containers; those that have no cgroup any more are left out.
    pub async fn containers(&self, containers: Vec<Found>) -> Vec<ContainerSample> {
        let collector = self.clone();
        blocking(move || containers.into_iter().filter_map(|found| collector.container(found)).collect())
            .await
    }

    /// A sample of each pod.
    pub async fn pods(&self, pods: Vec<Arc<PodView>>) -> Vec<PodSample> {
        let collector = self.clone();
        blocking(move || pods.into_iter().map(|pod| collector.pod(pod)).collect()).await
    }

    /// Keeps rates fresh for ever.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let collector = self.clone();
            blocking(move || collector.refresh()).await;
        }
    }

    fn refresh(&self) {
        let containers = self.pods.containers();
        for found in containers.iter().filter(|found| found.container.phase == ContainerPhase::Running) {
            if let Ok(stats) = Cgroup::new(&found.container.cgroup).and_then(|cgroup| cgroup.stats()) {
                self.rate(&found.container.id, stats.cpu.usage_ns);
            }
        }
        let known: std::collections::HashSet<_> =
            containers.iter().map(|found| &found.container.id).collect();
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| known.contains(id));
    }

    fn container(&self, found: Found) -> Option<ContainerSample> {
        if found.container.phase == ContainerPhase::Exited {
            return None;
        }
        let stats = Cgroup::new(&found.container.cgroup).and_then(|cgroup| cgroup.stats()).ok()?;
        let nano_cores = self.rate(&found.container.id, stats.cpu.usage_ns);
        let layer = self.layer(self.pods.context(), &found.container.id);
        Some(ContainerSample { at: now(), stats, nano_cores, layer, found })
    }

    fn pod(&self, pod: Arc<PodView>) -> PodSample {
        let running = |pod: &Arc<PodView>| {
            let containers = pod.containers.values().cloned();
            let found = containers.map(|container| Found { pod: pod.clone(), container });
            found.collect::<Vec<_>>()
        };
        let containers: Vec<_> =
            running(&pod).into_iter().filter_map(|found| self.container(found)).collect();
        let cgroup = match &pod.record.config.cgroup_parent {
            Some(parent) => parent.clone(),
            None => format!("{}/{}", self.pods.context().config.cgroup.root, pod.record.id),
        };
        let rates: Vec<u64> = containers.iter().filter_map(|container| container.nano_cores).collect();
        PodSample {
            at: now(),
            stats: Cgroup::new(&cgroup).and_then(|cgroup| cgroup.stats()).ok(),
            nano_cores: (!rates.is_empty()).then(|| rates.iter().sum()),
            interfaces: interfaces(&pod),
            containers,
            pod,
        }
    }

    fn rate(&self, id: &ContainerId, usage: u64) -> Option<u64> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = memory.entry(id.clone()).or_default();
        let now = Instant::now();
        match remembered.cpu {
            Some((then, _)) if now - then < SHORTEST => {}
            Some((then, before)) => {
                remembered.nano_cores = Some(nano_cores(usage.saturating_sub(before), now - then));
                remembered.cpu = Some((now, usage));
            }
            None => remembered.cpu = Some((now, usage)),
        }
        remembered.nano_cores
    }

    fn layer(&self, context: &Context, id: &ContainerId) -> Usage {
        let known = {
            let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            memory.get(id).and_then(|remembered| remembered.layer)
        };
        if let Some((then, usage)) = known
            && then.elapsed() < LAYER_AGE
        {
            return usage;
        }
        let usage = context.store.snapshots().usage(id.as_str()).unwrap_or_default();
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.entry(id.clone()).or_default().layer = Some((Instant::now(), usage));
        usage
    }
}

/// Traffic of a pod's interfaces; empty when it has no network of its own or is not up.
pub(crate) fn interfaces(pod: &PodView) -> Vec<InterfaceStats> {
    if pod.record.config.network == NetworkMode::Host || pod.record.phase != PodPhase::Ready {
        return Vec::new();
    }
    let open = |pid: i32| File::open(format!("/proc/{pid}/ns/net")).ok();
    let Some(netns) = pod.record.monitor_pid.and_then(open) else { return Vec::new() };
    Network::interfaces(&OwnedFd::from(netns)).unwrap_or_default()
}

fn nano_cores(used_ns: u64, elapsed: Duration) -> u64 {
    let nanos = u128::from(used_ns) * 1_000_000_000 / elapsed.as_nanos().max(1);
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_core_for_two_seconds_is_half_a_billion() {
        assert_eq!(nano_cores(1_000_000_000, Duration::from_secs(2)), 500_000_000);
    }
}
