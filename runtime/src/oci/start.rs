//! `start`: lets the process of a created container go on to its program.

use oci_spec::runtime::{ContainerState, Spec, State};

use super::child;
use super::record::{Folder, Phase, START, Status};
use super::{Context, Error, Result, delete, socket};
use crate::container::{Channel, Report};
use crate::hook::{self, Moment};

pub(super) fn start(context: &Context, id: &str) -> Result<()> {
    const WHAT: &str = "container start failed";
    let folder = Folder::open(context, id)?;
    folder.lock()?;
    let mut record = folder.read()?;
    match record.status() {
        Status::Created => {}
        Status::Stopped => return Err(Error::refused("cannot start a container that has stopped")),
        Status::Running | Status::Paused => {
            return Err(Error::refused("cannot start an already running container"));
        }
        Status::Creating => return Err(Error::refused("cannot start a container that is being created")),
    }
    let spec = folder.configuration()?;
    if spec.process().is_none() {
        return Err(Error::refused("cannot start a container whose configuration has no process"));
    }
    let Some(connection) = socket::connect_in(&folder.path, START)? else {
        return Err(Error::refused("cannot start an already running container"));
    };
    let state = record.state()?;
    let channel = Channel::over(connection);
    channel.start().map_err(|source| Error::Child { what: WHAT, source })?;
    match child::receive(&channel, WHAT)? {
        Report::Executed => {}
        Report::Failed { message, .. } => return Err(Error::Container { what: WHAT, message }),
        report => return Err(Error::refused(format!("{WHAT}: the process says {report:?}"))),
    }
    context.log.debug(format_args!("process {} executes the program", record.pid));
    record.phase = Phase::Running;
    folder.write(&record)?;
    // It has served; that it is missing is as good.
    let _ = std::fs::remove_file(folder.path.join(START));
    run_poststart_hooks(context, &spec, &state, record.pid).inspect_err(|_| {
        // The specification has a failure here stop the container and destroy it.
        if let Err(error) = delete::kill_and_destroy(context, &folder, &record) {
            context.log.warn(&super::error::text(&error));
        }
    })
}

pub(super) fn run_poststart_hooks(_: &Context, spec: &Spec, state: &State, pid: i32) -> Result<()> {
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_ref());
    let moment = Moment::new(ContainerState::Running, Some(pid));
    hook::run_all("poststart", hooks, state, moment).map_err(Error::Hook)
}
