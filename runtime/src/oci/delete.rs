//! `delete`: takes away what the creation of a container made, once its process has gone.

use std::time::{Duration, Instant};

use oci_spec::runtime::{ContainerState, Spec, State};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::guest;
use super::record::{Folder, Record, Status};
use super::{Context, Error, Result, error::text};
use crate::hook::{self, Moment};
use crate::sys;

/// How long the processes of a container have to go after they were killed.
const DEADLINE: Duration = Duration::from_secs(10);

pub(super) fn delete(context: &Context, id: &str, force: bool) -> Result<()> {
    let folder = match Folder::open(context, id) {
        Err(Error::Missing { .. }) if force => return Ok(()),
        folder => folder?,
    };
    folder.lock()?;
    let record = match folder.read() {
        // Its maker was killed before there was anything but the folder.
        Err(Error::Missing { .. }) => return folder.remove(),
        Err(error) if force => {
            context.log.warn(&text(&error));
            return folder.remove();
        }
        record => record?,
    };
    match record.status() {
        Status::Stopped => destroy(context, &folder, &record),
        Status::Created | Status::Creating => kill_and_destroy(context, &folder, &record),
        Status::Running | Status::Paused if force => kill_and_destroy(context, &folder, &record),
        status => Err(Error::refused(format!(
            "cannot delete container {id:?} that is not stopped: {}",
            status.name()
        ))),
    }
}

pub(super) fn kill_and_destroy(context: &Context, folder: &Folder, record: &Record) -> Result<()> {
    let gone = match sys::process::pidfd_open(record.pid) {
        // The pid may have passed to another process between a look at it and this.
        Ok(pidfd) if record.status() != Status::Stopped => {
            let cgroup = record.cgroup()?;
            // A frozen process takes no signal on version 1.
            if record.status() == Status::Paused {
                cgroup.freeze(false).map_err(Error::cgroup(&record.cgroup))?;
            }
            sys::signal::pidfd_send_signal(&pidfd, libc::SIGKILL)
                .map_err(|source| Error::io("kill the container's process", source))?;
            wait_for_end(&pidfd)
        }
        _ => Ok(()),
    };
    gone.and_then(|()| destroy(context, folder, record))
}

fn wait_for_end(pidfd: &std::os::fd::OwnedFd) -> Result<()> {
    let since = Instant::now();
    loop {
        let left = DEADLINE.saturating_sub(since.elapsed());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(Error::refused("container init still running")),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::errno("poll(pidfd)", errno)),
        }
    }
}

/// Of a container whose process has gone.
pub(super) fn destroy(context: &Context, folder: &Folder, record: &Record) -> Result<()> {
    let spec = folder.configuration();
    let cgroup = record.cgroup()?;
    // Others may be left that were in no pid namespace of the container's own.
    if !record.own_pid_namespace {
        cgroup.kill().map_err(Error::cgroup(&record.cgroup))?;
    }
    cgroup.remove(DEADLINE).map_err(Error::cgroup(&record.cgroup))?;
    guest::take_mounts_away(record)?;
    folder.remove()?;
    context.log.debug(format_args!("process {} and cgroup {:?} are gone", record.pid, record.cgroup));
    match spec {
        Ok(spec) => run_poststop_hooks(context, &spec, &record.state()?),
        Err(error) => context.log.warn(&text(&error)),
    }
    Ok(())
}

/// All of them, whatever becomes of one.
pub(super) fn run_poststop_hooks(context: &Context, spec: &Spec, state: &State) {
    let hooks = spec.hooks().iter().filter_map(|hooks| hooks.poststop().as_ref()).flatten();
    for hook in hooks {
        let one = vec![hook.clone()];
        if let Err(error) =
            hook::run_all("poststop", Some(&one), state, Moment::new(ContainerState::Stopped, None))
        {
            context.log.warn(&text(&error));
        }
    }
}
