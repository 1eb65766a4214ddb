//! `sampan info`: how the agent is set up, what it holds, and what this machine keeps it from doing.

use clap::Args;
use sampan_proto::sampan::{InfoRequest, InfoResponse};
use serde::Serialize;

use super::{agent::Agent, failure::Failure, human::binary_size, options::Listing, output::Output};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    listing: Listing,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let info = agent.system().info(InfoRequest {}).await.map_err(Failure::plain)?.into_inner();
    if arguments.listing.is_json() { out.json(&Info::from(&info)) } else { print(&info, out) }
}

fn print(info: &InfoResponse, out: &mut Output) -> Result<(), Failure> {
    let running = info.containers_running;
    let lines = [
        ("Version", info.version.clone()),
        ("Root", info.root.clone()),
        ("State", info.state.clone()),
        ("Socket", info.socket.clone()),
        ("Pods", info.pods.to_string()),
        ("Containers", format!("{} ({running} running)", info.containers)),
        ("Images", info.images.to_string()),
        ("Kernel version", info.kernel_version.clone()),
        ("Operating system", info.operating_system.clone()),
        ("Architecture", info.architecture.clone()),
        ("CPUs", info.cpus.to_string()),
        ("Memory", binary_size(info.memory_bytes)),
        ("Cgroups", format!("{}, driver {}", info.cgroup_version, info.cgroup_driver)),
        ("Bridge", info.bridge.clone()),
        ("Subnets", info.subnets.join(", ")),
    ];
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    for (name, value) in lines {
        out.line(format!("{:<width$}{value}", format!("{name}:")).trim_end())?;
    }
    info.warnings.iter().try_for_each(|warning| out.line(format_args!("Warning: {warning}")))
}

/// `--output json`.
#[derive(Debug, Serialize)]
struct Info<'a> {
    version: &'a str,
    root: &'a str,
    state: &'a str,
    socket: &'a str,
    pods: u32,
    containers: u32,
    containers_running: u32,
    images: u32,
    kernel_version: &'a str,
    operating_system: &'a str,
    architecture: &'a str,
    cpus: u32,
    memory_bytes: u64,
    cgroup_version: &'a str,
    cgroup_driver: &'a str,
    bridge: &'a str,
    subnets: &'a [String],
    warnings: &'a [String],
}

impl<'a> From<&'a InfoResponse> for Info<'a> {
    fn from(info: &'a InfoResponse) -> Self {
        Self {
            version: &info.version,
            root: &info.root,
            state: &info.state,
            socket: &info.socket,
            pods: info.pods,
            containers: info.containers,
            containers_running: info.containers_running,
            images: info.images,
            kernel_version: &info.kernel_version,
            operating_system: &info.operating_system,
            architecture: &info.architecture,
            cpus: info.cpus,
            memory_bytes: info.memory_bytes,
            cgroup_version: &info.cgroup_version,
            cgroup_driver: &info.cgroup_driver,
            bridge: &info.bridge,
            subnets: &info.subnets,
            warnings: &info.warnings,
        }
    }
}
