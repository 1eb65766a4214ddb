//! The command line of the monitor. The other verbs are those of an OCI runtime (see `sampan_runtime::oci`).
//!
//! It is between the agent and this program, and parsed without what people at a shell want: a pod has a monitor for all its
//! life, and the pages that its start touches with it.

use std::error::Error;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use lexopt::{Arg, Parser, ValueExt};
use sampan_runtime::shim::{self, Options};
use sampan_runtime::users::{self, Mappings};

const USAGE: &str = "\
usage: sampan-runtime shim --pod ID --cgroup PATH [OPTION]...

Monitors a pod. sampand starts it, with the listening socket as standard input.

  --pod ID               the pod's id, for lists of processes
  --cgroup PATH          the cgroup of the monitor itself, below the hierarchies' roots
  --hostname NAME        the pod's host name
  --host-network         stay in the host's network and UTS namespaces
  --host-ipc             stay in the host's IPC namespace
  --shared-pid           make a pid namespace that the pod's containers can share
  --sysctl NAME=VALUE    a sysctl of the pod's namespaces
  --procfs PATH          a procfs by which sysctls are set, instead of /proc
  --mounts PATH          a mount namespace with few mounts, which those of containers begin as a copy of
  --uid-map INSIDE:OUTSIDE:LENGTH, --gid-map INSIDE:OUTSIDE:LENGTH
                         users of the pod's own: whom on the host a run of them stands for
";

/// Monitors a pod, as the arguments of this process say.
pub(crate) fn shim() -> ExitCode {
    // Before anything a container could see: see `executable`.
    if let Err(error) = sampan_runtime::executable::protect() {
        return fail(&error);
    }
    let options = match parse(std::env::args_os().skip(2)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            let _ = std::io::stdout().write_all(USAGE.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&error),
    };
    match shim::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// The arguments after the verb; `None` when somebody only wants to know them.
fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options::default();
    let (mut pod, mut cgroup) = (None, None);
    let (mut uids, mut gids) = (Vec::new(), Vec::new());
    let mut parser = Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("pod") => pod = Some(parser.value()?.string()?),
            Arg::Long("cgroup") => cgroup = Some(parser.value()?.string()?),
            Arg::Long("hostname") => options.hostname = Some(parser.value()?.string()?),
            Arg::Long("host-network") => options.host_network = true,
            Arg::Long("host-ipc") => options.host_ipc = true,
            Arg::Long("shared-pid") => options.shared_pid = true,
            Arg::Long("sysctl") => options.sysctls.push(parser.value()?.parse_with(name_and_value)?),
            Arg::Long("procfs") => options.procfs = Some(parser.value()?.into()),
            Arg::Long("mounts") => options.mounts = Some(parser.value()?.into()),
            Arg::Long("uid-map") => uids.push(parser.value()?.parse_with(users::parse)?),
            Arg::Long("gid-map") => gids.push(parser.value()?.parse_with(users::parse)?),
            Arg::Long("help") => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    options.pod = pod.ok_or("--pod is missing")?;
    options.cgroup = cgroup.ok_or("--cgroup is missing")?;
    options.users = match (uids.is_empty(), gids.is_empty()) {
        (true, true) => None,
        (false, false) if options.host_ipc => {
            return Err("a pod with users of its own can't have the host's IPC".into());
        }
        (false, false) => Some(Mappings { uids, gids }),
        _ => return Err("--uid-map and --gid-map go together".into()),
    };
    Ok(Some(options))
}

fn name_and_value(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
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

    fn parsed(line: &str) -> Result<Option<Options>, lexopt::Error> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_shims_options_are_parsed() {
        let line = "--pod p --cgroup /sampan/p/monitor --hostname h --host-network --shared-pid --mounts /m --procfs /p \
                    --sysctl net.ipv4.ip_forward=1 --sysctl kernel.sem=1=2 --uid-map 0:70000:10 --gid-map 0:80000:10";
        let options = parsed(line).unwrap().unwrap();
        assert_eq!((options.pod.as_str(), options.cgroup.as_str()), ("p", "/sampan/p/monitor"));
        assert_eq!(options.hostname.as_deref(), Some("h"));
        assert_eq!((options.host_network, options.host_ipc, options.shared_pid), (true, false, true));
        assert_eq!(options.sysctls[1], ("kernel.sem".to_owned(), "1=2".to_owned()));
        assert_eq!(options.mounts.as_deref(), Some(std::path::Path::new("/m")));
        assert_eq!(options.procfs.as_deref(), Some(std::path::Path::new("/p")));
        let users = options.users.unwrap();
        assert_eq!((users.uids[0].host_id(), users.gids[0].host_id()), (70000, 80000));
        assert!(parsed("--help").unwrap().is_none());
    }

    #[test]
    fn what_is_unknown_missing_or_at_odds_is_an_error() {
        for (line, why) in [
            ("", "--pod is missing"),
            ("--pod p", "--cgroup is missing"),
            ("--pod p --cgroup", "--cgroup"),
            ("--pod p --cgroup /c --frobnicate", "--frobnicate"),
            ("--pod p --cgroup /c more", "more"),
            ("--pod p --cgroup /c --sysctl a", "NAME=VALUE"),
            ("--pod p --cgroup /c --uid-map 0:1", "INSIDE:OUTSIDE:LENGTH"),
            ("--pod p --cgroup /c --uid-map 0:1:1", "go together"),
            ("--pod p --cgroup /c --host-ipc --uid-map 0:1:1 --gid-map 0:1:1", "IPC"),
        ] {
            let told = parsed(line).unwrap_err().to_string();
            assert!(told.contains(why), "{line}: {told}");
        }
    }
}
