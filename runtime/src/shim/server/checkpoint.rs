//! Checkpoints: CRIU's process is to its client what a command executed in the container is.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use super::Server;
use super::request::{Answer, Refusal, internal, internal_error};
use crate::container::Child;
use crate::criu::{self, Dump};
use crate::shim::container::{Container, Phase, Terminal};
use crate::shim::exec::Exec;
use crate::shim::poll::Source;
use crate::shim::protocol::{ErrorKind, PidMode};
use crate::sys;

/// Longer than reading back what fits into a node takes; the client waits a little longer.
pub(super) const RESTORE: Duration = Duration::from_secs(55);

impl Server {
    /// Has CRIU write a container's processes.
    pub(super) fn checkpoint(&mut self, client: u32, id: &str, images: &Path, criu: &Path) -> Answer {
        let users = self.users.is_some();
        let number = self.next_number();
        let container = self.find(id)?;
        check(container, users).map_err(|why| {
            (ErrorKind::FailedPrecondition, format!("container {id:?} can't be checkpointed: {why}"))
        })?;
        let pipes = pipes(container)?;
        let (of, pid, bundle, cgroup) =
            (container.number, container.pid, container.bundle.clone(), container.cgroup.clone());
        let null = self.null.as_fd();
        let options = ["--leave-running".into(), "--file-locks".into()];
        let call = criu::Call { program: criu, images, work: images, options: &options };
        let wanted = Dump { call, verb: "dump", bundle: &bundle, cgroup: &cgroup, pid, pipes, null };
        let Child { pid, pidfd, channel } =
            self.with_original_oom_score(|| criu::dump(&wanted)).map_err(internal_error)?;
        if let Err(refusal) = self.watch_child(Source::Exec(number), &channel) {
            let _ = sys::signal::pidfd_send_signal(&pidfd, libc::SIGKILL);
            return Err(refusal);
        }
        self.execs.push(Exec {
            number,
            container: of,
            client: Some(client),
            // It lives in the monitor's.
            cgroup: None,
            child: pid,
            pid,
            pidfd,
            channel: Some(channel),
            failure: None,
            given_up: false,
        });
        Ok(None)
    }
}

fn check(container: &Container, users: bool) -> Result<(), &'static str> {
    match () {
        () if container.phase != Phase::Running => Err("it is not running"),
        () if container.runtime.is_some() => Err("another runtime made it"),
        () if users => Err("it has users of its pod's own"),
        () if container.pid_mode != PidMode::Private => {
            Err("it shares its pids with others, which would be taken when it comes back")
        }
        () if !matches!(container.terminal, Terminal::None) => Err("it has a terminal"),
        () => Ok(()),
    }
}

/// The pipes of its standard input, output and error, as CRIU names them: both ends have one inode.
fn pipes(container: &Container) -> Result<[Option<String>; 3], Refusal> {
    let ends = [
        container.stdin.as_ref().map(AsFd::as_fd),
        container.stdout.as_ref().map(AsFd::as_fd),
        container.stderr.as_ref().map(AsFd::as_fd),
    ];
    let mut names = [const { None }; 3];
    for (name, end) in names.iter_mut().zip(ends) {
        let Some(end) = end else { continue };
        let stat = internal("look at a pipe", rustix::fs::fstat(end))?;
        *name = Some(format!("pipe:[{}]", stat.st_ino));
    }
    Ok(names)
}
