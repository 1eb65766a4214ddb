//! `sampan run`: makes a container and starts it; without `-d` it stays with it to the end.
//!
//! In the foreground the container's output is ours, SIGINT, SIGTERM and SIGHUP stop it, and its exit code is
//! ours. `--rm` is then carried out here, after the last line of its log, and by the agent only with `-d`.

mod foreground;

use std::{net::IpAddr, path::PathBuf};

use clap::{ArgAction, Args, ValueEnum};
use sampan_proto::{
    cri::{ImageSpec, ImageStatusRequest},
    sampan::{Device, NetworkMode, RunRequest, Tmpfs, Ulimit, Volume},
};
use tonic::Code;

use super::{
    agent::Agent,
    failure::{Advice, Failure},
    options::{self, Ports, SecurityOption},
    output::Output,
    pull, session,
};

/// The exit code for an error that is not the container's.
pub(super) const OWN_ERROR: u8 = 125;

const ADVICE: Advice = &[
    (Code::AlreadyExists, "choose another --name, or free it with 'sampan rm'"),
    (Code::Unavailable, "'sampan info' shows what keeps the agent from it"),
];

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(super) struct Arguments {
    /// Leave it running and print its id
    #[arg(short, long)]
    detach: bool,

    /// Remove it when it has ended
    #[arg(long)]
    rm: bool,

    /// Name it; without, it gets a name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Publish a port: [IP:]HOST:CONTAINER[/PROTOCOL]; HOST and CONTAINER may be ranges
    #[arg(short, long, value_name = "PORTS", value_parser = options::ports)]
    publish: Vec<Ports>,

    /// Set a variable: NAME=VALUE, or NAME for the value it has here
    #[arg(short, long, value_name = "VARIABLE")]
    env: Vec<String>,

    /// Set the variables of a file, a line each
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,

    /// Show a path of the host inside, SOURCE:DESTINATION[:ro], or keep a DESTINATION outside its layer
    #[arg(short, long, value_name = "VOLUME", value_parser = options::volume)]
    volume: Vec<Volume>,

    /// Put a file system in memory at a path: DESTINATION[:size=64m,mode=1777,exec]
    #[arg(long, value_name = "TMPFS", value_parser = options::tmpfs)]
    tmpfs: Vec<Tmpfs>,

    /// Give it a device of the host: SOURCE[:DESTINATION][:rwm]
    #[arg(long, value_name = "DEVICE", value_parser = options::device)]
    device: Vec<Device>,

    /// Start in this directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// Run as USER[:GROUP], names or numbers
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,

    /// Limit memory: 64m, 1.5g
    #[arg(short, long, value_name = "SIZE", value_parser = options::memory)]
    memory: Option<i64>,

    /// Limit memory and swap together; -1: no limit of the sum
    #[arg(long, value_name = "SIZE", value_parser = options::swap, allow_hyphen_values = true)]
    memory_swap: Option<i64>,

    /// Limit cores: 0.5
    #[arg(long, value_name = "CORES", value_parser = options::cores)]
    cpus: Option<i64>,

    /// Weigh it against others when cores are short; usual is 1024
    #[arg(short, long, value_name = "WEIGHT", value_parser = clap::value_parser!(u64).range(2..=262_144))]
    cpu_shares: Option<u64>,

    /// Keep it to these cores: 0-3,7
    #[arg(long, value_name = "CORES")]
    cpuset_cpus: Option<String>,

    /// Keep it to the memory of these nodes: 0,1
    #[arg(long, value_name = "NODES")]
    cpuset_mems: Option<String>,

    /// Limit processes and threads
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i64).range(1..))]
    pids_limit: Option<i64>,

    /// Limit what it writes into its own layer: size=10g
    #[arg(long, value_name = "OPTION", value_parser = options::storage)]
    storage_opt: Option<i64>,

    /// Its network; none is loopback alone
    #[arg(long, alias = "net", value_enum, value_name = "NETWORK", default_value = "bridge")]
    network: Network,

    /// Ask this name server, an address, in place of the host's
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,

    /// Add a line to its /etc/hosts: NAME:ADDRESS
    #[arg(long, value_name = "HOST")]
    add_host: Vec<String>,

    /// Set a kernel parameter of its namespaces: NAME=VALUE
    #[arg(long, value_name = "PARAMETER", value_parser = options::sysctl)]
    sysctl: Vec<(String, String)>,

    /// Whose processes it sees, when not its own
    #[arg(long, value_enum, value_name = "NAMESPACE")]
    pid: Option<PidNamespace>,

    /// Run this program in place of the image's
    #[arg(long, value_name = "PROGRAM", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    entrypoint: Option<String>,

    /// Put a label on it: KEY=VALUE
    #[arg(short, long, value_name = "LABEL", value_parser = options::label)]
    label: Vec<(String, String)>,

    /// Give it this host name
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,

    /// Give it all capabilities and devices
    #[arg(long)]
    privileged: bool,

    /// Add a capability to the usual ones; ALL adds all
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,

    /// Take a capability away; ALL takes all
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,

    /// Change its protection: no-new-privileges[=false], seccomp=FILE, apparmor=PROFILE; unconfined is none
    #[arg(long, value_name = "OPTION", value_parser = options::security)]
    security_opt: Vec<SecurityOption>,

    /// Limit each of its processes: nofile=1024:2048
    #[arg(long, value_name = "LIMIT", value_parser = options::ulimit)]
    ulimit: Vec<Ulimit>,

    /// Make its root read-only
    #[arg(long)]
    read_only: bool,

    /// Send it this signal, a name or number, when it is to stop
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,

    /// When to pull the image
    #[arg(long, value_enum, value_name = "WHEN", default_value = "missing")]
    pull: Pull,

    /// Show no progress of a pull
    #[arg(short, long)]
    quiet: bool,

    /// Give it our standard input
    #[arg(short, long)]
    interactive: bool,

    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,

    /// Print help
    #[arg(long, action = ArgAction::Help, display_order = 1001)]
    help: Option<bool>,

    /// The image, then a command and its arguments in place of the image's
    #[arg(value_names = ["IMAGE", "COMMAND"], num_args = 1.., required = true, trailing_var_arg = true)]
    words: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Network {
    Bridge,
    Host,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PidNamespace {
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pull {
    Always,
    Missing,
    Never,
}

pub(super) async fn execute(
    arguments: Arguments,
    agent: impl Future<Output = Result<Agent, Failure>>,
    out: &mut Output,
) -> Result<u8, Failure> {
    if !arguments.detach {
        session::check_terminal(arguments.interactive, arguments.tty)?;
    }
    let (when, quiet, detach, rm) = (arguments.pull, arguments.quiet, arguments.detach, arguments.rm);
    let request = request(arguments)?;
    let agent = agent.await?;
    bring_image(&request.image, when, quiet, &agent, out).await?;
    if !detach {
        return foreground::run(request, rm, &agent, out).await;
    }
    let answer = agent.containers().run(request).await.map_err(refused)?.into_inner();
    out.line(answer.container_id)?;
    Ok(0)
}

/// `sampan create`: the same, and no start.
pub(super) async fn create(
    arguments: Arguments,
    agent: impl Future<Output = Result<Agent, Failure>>,
    out: &mut Output,
) -> Result<u8, Failure> {
    let (when, quiet) = (arguments.pull, arguments.quiet);
    let mut request = request(arguments)?;
    request.create_only = true;
    let agent = agent.await?;
    bring_image(&request.image, when, quiet, &agent, out).await?;
    let answer = agent.containers().run(request).await.map_err(refused)?.into_inner();
    out.line(answer.container_id)?;
    Ok(0)
}

fn refused(status: tonic::Status) -> Failure {
    Failure::of_program(&status, ADVICE)
}

fn request(arguments: Arguments) -> Result<RunRequest, Failure> {
    let mut words = arguments.words.into_iter();
    let (mut no_new_privileges, mut seccomp, mut apparmor) = (None, String::new(), String::new());
    for option in arguments.security_opt {
        match option {
            SecurityOption::NoNewPrivileges(value) => no_new_privileges = Some(value),
            SecurityOption::Seccomp(profile) => seccomp = profile,
            SecurityOption::AppArmor(profile) => apparmor = profile,
        }
    }
    Ok(RunRequest {
        image: words.next().unwrap_or_default(),
        name: arguments.name.unwrap_or_default(),
        entrypoint: arguments.entrypoint.into_iter().collect(),
        args: words.collect(),
        env: options::environment(&arguments.env_file, &arguments.env).map_err(Failure::Message)?,
        working_dir: arguments.workdir.unwrap_or_default(),
        user: arguments.user.unwrap_or_default(),
        ports: arguments.publish.into_iter().flat_map(|Ports(ports)| ports).collect(),
        volumes: arguments.volume,
        network: match arguments.network {
            Network::Bridge => NetworkMode::Bridge,
            Network::Host => NetworkMode::Host,
            Network::None => NetworkMode::None,
        }
        .into(),
        memory_bytes: arguments.memory.unwrap_or(0),
        storage_bytes: arguments.storage_opt.unwrap_or(0),
        memory_swap_bytes: arguments.memory_swap.unwrap_or(0),
        cpu_millis: arguments.cpus.unwrap_or(0),
        cpu_shares: arguments.cpu_shares.unwrap_or(0),
        cpuset_cpus: arguments.cpuset_cpus.unwrap_or_default(),
        cpuset_mems: arguments.cpuset_mems.unwrap_or_default(),
        pids_limit: arguments.pids_limit.unwrap_or(0),
        labels: arguments.label.into_iter().collect(),
        hostname: arguments.hostname.unwrap_or_default(),
        auto_remove: arguments.rm && arguments.detach,
        privileged: arguments.privileged,
        add_capabilities: arguments.cap_add,
        drop_capabilities: arguments.cap_drop,
        devices: arguments.device,
        sysctls: arguments.sysctl.into_iter().collect(),
        dns_servers: arguments.dns.iter().map(IpAddr::to_string).collect(),
        stop_signal: arguments.stop_signal.unwrap_or_default(),
        host_pid: arguments.pid == Some(PidNamespace::Host),
        no_new_privileges,
        seccomp,
        apparmor,
        tmpfs: arguments.tmpfs,
        add_hosts: arguments.add_host,
        ulimits: arguments.ulimit,
        read_only_rootfs: arguments.read_only,
        stdin: arguments.interactive,
        tty: arguments.tty,
        create_only: false,
    })
}

/// Sees to it that the image is in the store.
async fn bring_image(
    image: &str,
    when: Pull,
    quiet: bool,
    agent: &Agent,
    out: &mut Output,
) -> Result<(), Failure> {
    if when != Pull::Always {
        let image_spec = ImageSpec { image: image.to_owned(), ..Default::default() };
        let request = ImageStatusRequest { image: Some(image_spec), verbose: false };
        let status = agent.cri_images().image_status(request).await.map_err(Failure::of_image)?.into_inner();
        if status.image.is_some() {
            return Ok(());
        }
        if when == Pull::Never {
            return Err(Failure::message(format!(
                "image {image} is not here; fetch it with 'sampan pull {image}'"
            )));
        }
        if !quiet {
            out.note(format_args!("Image {image} is not here: pulling it"));
        }
    }
    pull::pull(image, quiet, agent, out).await.map(drop)
}

#[cfg(test)]
mod tests;
