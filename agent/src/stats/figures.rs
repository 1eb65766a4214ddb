//! Everything that there is to tell of pods at one moment: what metrics are made of.

use std::{collections::HashMap, sync::Arc};

use sampan_runtime::cgroup::{Cgroup, Details, Stats};

use super::{Capacity, Collector, ContainerSample, Processes, Traffic, lives};
use crate::{
    context::{blocking, now},
    network::InterfaceStats,
    pods::{Found, PodView, record::PodPhase},
};

/// All figures of one pod.
#[derive(Debug)]
pub(crate) struct PodFigures {
    /// Whose they are.
    pub(crate) pod: Arc<PodView>,
    /// Its cgroup.
    pub(crate) cgroup: String,
    /// When they were read, nanoseconds since 1970.
    pub(crate) at: i64,
    /// Traffic, by interface.
    pub(crate) interfaces: Vec<InterfaceStats>,
    /// Its containers that have not ended.
    pub(crate) containers: Vec<ContainerFigures>,
}

/// All figures of one container.
#[derive(Debug)]
pub(crate) struct ContainerFigures {
    /// Whose they are, and the usual figures.
    pub(crate) sample: ContainerSample,
    /// Counters of its cgroup.
    pub(crate) stats: Stats,
    /// All else that the controllers tell.
    pub(crate) details: Details,
    /// What its processes hold.
    pub(crate) processes: Processes,
    /// The file system that its writable layer is on.
    pub(crate) capacity: Arc<Capacity>,
    /// Names of the block devices in `details.io`.
    pub(crate) devices: HashMap<(u64, u64), String>,
}

impl Collector {
    /// All figures of the pods that are up.
    pub(crate) async fn figures(&self) -> Vec<PodFigures> {
        let collector = self.clone();
        blocking(move || collector.read_figures()).await
    }

    fn read_figures(&self) -> Vec<PodFigures> {
        let mut pods = self.pods.list();
        pods.retain(|pod| pod.record.phase == PodPhase::Ready);
        let traffic = Traffic::of(&self.pods, pods.len());
        let capacity = Arc::new(self.kept.disks.capacity(&self.pods.context().config.root));
        let mut buffer = Vec::new();
        let mut figures = Vec::with_capacity(pods.len());
        for pod in pods {
            let living = pod.containers.values().filter(|container| lives(container.phase));
            let found = living.map(|container| Found { pod: pod.clone(), container: container.clone() });
            let containers = found.filter_map(|found| self.of_container(found, &capacity, &mut buffer));
            figures.push(PodFigures {
                containers: containers.collect(),
                at: now(),
                cgroup: self.pod_cgroup(&pod),
                interfaces: traffic.interfaces(&pod),
                pod: pod.clone(),
            });
        }
        self.kept.processes.expire();
        figures
    }

    /// `None` when its cgroup has gone.
    fn of_container(
        &self,
        found: Found,
        capacity: &Arc<Capacity>,
        buffer: &mut Vec<u8>,
    ) -> Option<ContainerFigures> {
        let path = found.container.cgroup.clone();
        let processes = self.kept.processes.get(&path, found.container.pid);
        let sample = self.container(found, buffer)?;
        let stats = self.kept.meters.stats(&path)?;
        let details = Cgroup::new(&path).and_then(|cgroup| cgroup.details()).ok()?;
        let name = |major: u64, minor: u64| {
            let (Ok(small), Ok(smaller)) = (u32::try_from(major), u32::try_from(minor)) else {
                return format!("{major}:{minor}");
            };
            self.kept.disks.name(small, smaller)
        };
        let numbers = details.io.iter().map(|device| (device.major, device.minor));
        let devices = numbers.map(|(major, minor)| ((major, minor), name(major, minor))).collect();
        Some(ContainerFigures { sample, stats, details, processes, capacity: capacity.clone(), devices })
    }
}
