//! The command line of the monitor. The other verbs are those of an OCI runtime (see `sampan_runtime::oci`).

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use oci_spec::runtime::LinuxIdMapping;
use sampan_runtime::{shim, users};

/// Makes and watches containers.
#[derive(Debug, Parser)]
#[command(name = "sampan-runtime", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Monitors a pod, as the arguments of this process say.
pub(crate) fn shim() -> ExitCode {
    // Before anything a container could see: see `executable`.
    if let Err(error) = sampan_runtime::executable::protect() {
        return fail(&error);
    }
    match Cli::parse().command {
        Command::Shim(arguments) => arguments.run(),
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Monitor a pod. The listening socket for the agent is standard input.
    Shim(Shim),
}

#[derive(Debug, Args)]
struct Shim {
    /// The pod's id, for lists of processes.
    #[arg(long)]
    pod: String,
    /// The cgroup of the monitor itself, below the hierarchies' roots.
    #[arg(long)]
    cgroup: String,
    /// The pod's host name.
    #[arg(long)]
    hostname: Option<String>,
    /// Stay in the host's network and UTS namespaces.
    #[arg(long)]
    host_network: bool,
    /// Stay in the host's IPC namespace.
    #[arg(long)]
    host_ipc: bool,
    /// Make a pid namespace that the pod's containers can share.
    #[arg(long)]
    shared_pid: bool,
    /// A sysctl of the pod's namespaces.
    #[arg(long = "sysctl", value_name = "NAME=VALUE", value_parser = name_and_value)]
    sysctls: Vec<(String, String)>,
    /// A mount namespace with few mounts, which those of containers begin as a copy of.
    #[arg(long, value_name = "PATH")]
    mounts: Option<PathBuf>,
    /// Users of the pod's own: whom on the host a run of them stands for. Takes --gid-map too.
    #[arg(long = "uid-map", value_name = "INSIDE:OUTSIDE:LENGTH", value_parser = users::parse, requires = "gids", conflicts_with = "host_ipc")]
    uids: Vec<LinuxIdMapping>,
    /// The same of groups.
    #[arg(long = "gid-map", value_name = "INSIDE:OUTSIDE:LENGTH", value_parser = users::parse, requires = "uids")]
    gids: Vec<LinuxIdMapping>,
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Shim {
    fn run(self) -> ExitCode {
        let options = shim::Options {
            pod: self.pod,
            cgroup: self.cgroup,
            hostname: self.hostname,
            host_network: self.host_network,
            host_ipc: self.host_ipc,
            shared_pid: self.shared_pid,
            sysctls: self.sysctls,
            mounts: self.mounts,
            users: (!self.uids.is_empty()).then_some(users::Mappings { uids: self.uids, gids: self.gids }),
        };
        match shim::run(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        }
    }
}

/// Says why on standard error.
fn fail(error: &dyn Error) -> ExitCode {
    let mut text = format!("sampan-runtime: {error}");
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text.push('\n');
    // There is nobody to tell that telling failed.
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shims_options_are_parsed() {
        let line = "sampan-runtime shim --pod p --cgroup /sampan/p/monitor --hostname h --host-ipc \
                    --sysctl net.ipv4.ip_forward=1 --sysctl kernel.sem=1=2";
        let Command::Shim(shim) = Cli::try_parse_from(line.split_whitespace()).unwrap().command;
        assert_eq!((shim.pod.as_str(), shim.host_ipc, shim.host_network), ("p", true, false));
        assert_eq!(shim.sysctls[1], ("kernel.sem".to_owned(), "1=2".to_owned()));
    }

    #[test]
    fn unknown_verbs_and_missing_options_are_errors() {
        for line in ["sampan-runtime frobnicate", "sampan-runtime shim", "sampan-runtime"] {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
