//! `SystemService`: the agent itself.

use std::fs;

use sampan_proto::sampan::{self, system_service_server::SystemService};
use sampan_runtime::cgroup::{self, Layout};
use tonic::Request;

use super::Reply;
use crate::pods::{Pods, record::ContainerPhase};

/// The service.
#[derive(Debug, Clone)]
pub struct System {
    /// The pods it counts.
    pub pods: Pods,
}

#[tonic::async_trait]
impl SystemService for System {
    async fn info(&self, _: Request<sampan::InfoRequest>) -> Reply<sampan::InfoResponse> {
        let context = self.pods.context();
        let config = &context.config;
        let containers = self.pods.containers();
        let running =
            containers.iter().filter(|found| found.container.phase == ContainerPhase::Running).count();
        let kernel = rustix::system::uname();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(sampan::InfoResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            root: config.root.display().to_string(),
            state: config.state.display().to_string(),
            socket: config.socket.display().to_string(),
            kernel_version: kernel.release().to_string_lossy().into_owned(),
            operating_system: operating_system(),
            architecture: kernel.machine().to_string_lossy().into_owned(),
            cpus: count(std::thread::available_parallelism().map_or(1, usize::from)),
            memory_bytes: rustix::system::sysinfo().totalram,
            cgroup_version: match cgroup::layout() {
                Ok(Layout::V1) => "v1",
                Ok(Layout::Hybrid) => "hybrid",
                Ok(Layout::V2) => "v2",
                Err(_) => "none",
            }
            .into(),
            cgroup_driver: config.cgroup.driver().name().into(),
            images: count(context.store.images().len()),
            pods: count(self.pods.list().len()),
            containers: count(containers.len()),
            containers_running: count(running),
            bridge: config.network.bridge.clone(),
            subnets: config.network.subnets.iter().map(ToString::to_string).collect(),
            warnings: warnings(),
        }
        .into())
    }
}

fn operating_system() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".into(), |name| name.trim_matches('"').to_owned())
}

/// What this machine keeps the agent from doing.
fn warnings() -> Vec<String> {
    let mut warnings = Vec::new();
    let bounding = rustix::thread::capability_is_in_bounding_set(rustix::thread::CapabilitySet::SYS_RESOURCE);
    if matches!(bounding, Ok(false)) {
        warnings.push(
            "CAP_SYS_RESOURCE is missing: limits cannot be raised and monitors cannot be protected from the OOM killer"
                .into(),
        );
    }
    if !fs::exists("/sys/module/apparmor").unwrap_or(false) {
        warnings.push("AppArmor is absent: requests that need a profile are refused".into());
    }
    warnings
}
