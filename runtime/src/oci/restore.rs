//! `restore`: a container from its bundle and images, whose processes go on from there.

use std::time::Duration;

use oci_spec::runtime::Spec;
use rustix::process::{getpid, set_child_subreaper};

use super::checkpoint::{Options, absolute, no_criu};
use super::record::{Folder, Phase, Record};
use super::{Context, Error, Result, arguments, child, configuration, create, delete, foreground};
use crate::container::{Child, Report};
use crate::criu::{self, Call, Restore};
use crate::sys;

const WHAT: &str = "container restore failed";

/// As long as CRIU may take, which reads back what may be a machine full.
const LIMIT: Duration = Duration::from_secs(600);

pub(super) fn restore(context: &Context, arguments: &arguments::Restore) -> Result<u8> {
    let options =
        Options::of(&arguments.criu, &["lazy-pages", "console-socket", "lsm-profile"], &arguments.refused())?;
    let images = absolute(&options.images)?;
    let work = options.work.as_deref().map_or_else(|| Ok(images.clone()), absolute)?;
    let program = criu::program().ok_or_else(no_criu)?;
    let create = arguments.as_create();
    let bundle = absolute(&create.bundle)?;
    let (spec, text) = configuration::read(context, &bundle)?;
    check(&spec)?;
    let mut record = create::record_of(context, &create, &spec, bundle)?;
    // The processes come to be ours, to wait for.
    set_child_subreaper(Some(getpid())).map_err(|errno| Error::errno("become a subreaper", errno))?;
    let folder = Folder::make(context, &arguments.id)?;
    let call = Call { program: &program, images: &images, work: &work, options: &options.words };
    let kept = folder.keep_configuration(&text);
    let child = kept.and_then(|()| bring_back(&folder, &mut record, call)).inspect_err(|_| {
        create::undo(&folder, None, Some(&record));
    })?;
    create::write_pid(arguments.pid_file.as_deref(), record.pid)
        .inspect_err(|_| create::undo(&folder, Some(&child), Some(&record)))?;
    if arguments.detach {
        return Ok(0);
    }
    let code = foreground::serve(&child.pidfd, None)?;
    delete::destroy(context, &folder, &record)?;
    Ok(code)
}

fn check(spec: &Spec) -> Result<()> {
    use oci_spec::runtime::LinuxNamespaceType::{Pid, User};
    let terminal = spec.process().as_ref().and_then(|process| process.terminal());
    match () {
        () if terminal == Some(true) => Err(Error::refused("cannot restore a container with a terminal")),
        () if configuration::namespace(spec, User).is_some() => {
            Err(Error::refused("cannot restore a container with a user namespace"))
        }
        () if configuration::namespace(spec, Pid) != Some(None) => {
            Err(Error::refused("cannot restore a container without a pid namespace of its own"))
        }
        () => Ok(()),
    }
}

/// From the restorer to the container's first process.
fn bring_back(folder: &Folder, record: &mut Record, call: Call<'_>) -> Result<Child> {
    let wanted = Restore {
        call,
        limit: LIMIT,
        bundle: &record.bundle,
        cgroup: &record.cgroup,
        keyring: record.keyring.then_some(&*record.id),
        stdio: sys::process::stdio(),
    };
    let failed = |source| Error::Child { what: WHAT, source };
    let mut child = criu::restore(&wanted).map_err(failed)?;
    let brought = (|| {
        loop {
            match child::next_report(&mut child, WHAT, None)? {
                Report::Ready => {
                    create::remember(folder, record, &child)?;
                    child.channel.start().map_err(failed)?;
                }
                Report::Executed => {
                    record.phase = Phase::Running;
                    return create::remember(folder, record, &child);
                }
                Report::Failed { message, .. } => return Err(Error::Container { what: WHAT, message }),
                report => return Err(Error::refused(format!("{WHAT}: the process says {report:?}"))),
            }
        }
    })();
    match brought {
        Ok(()) => Ok(child),
        Err(error) => {
            child::abandon(&child);
            Err(error)
        }
    }
}
