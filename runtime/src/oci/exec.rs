//! `exec`: a further process in a running container.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, ContainerState, Process};

use super::child::{self, Notified};
use super::create::{Console, preserved, write_pid};
use super::record::{Folder, Record, Status};
use super::{Context, Error, Result, arguments, configuration, filter, foreground, socket};
use crate::cgroup::Cgroup;
use crate::container::Report;
use crate::exec::{CommandLine, ExecOptions};
use crate::init::terminal::LineEnds;
use crate::sys;

const WHAT: &str = "exec failed";

pub(super) fn exec(context: &Context, arguments: &arguments::Exec) -> Result<u8> {
    let preserved = preserved(arguments.preserve_fds)?;
    let folder = Folder::open(context, &arguments.id)?;
    let record = folder.read()?;
    match record.status() {
        Status::Stopped => return Err(Error::refused("cannot exec in a stopped container")),
        Status::Paused if !arguments.ignore_paused => {
            let why = "cannot exec in a paused container (use --ignore-paused to override)";
            return Err(Error::refused(why));
        }
        _ => {}
    }
    let spec = folder.configuration()?;
    let process = process_of(context, arguments, spec.process().clone())?;
    configuration::warn_of_withheld(context, &process)?;
    let filter = filter::of(context, &spec)?;
    let pidfd = sys::process::pidfd_open(record.pid).map_err(Error::call(WHAT))?;
    if record.status() == Status::Stopped {
        return Err(Error::refused("cannot exec in a stopped container"));
    }
    let terminal = process.terminal() == Some(true);
    let console = Console::wanted(terminal, arguments.console_socket.as_deref(), !arguments.detach)?;
    let open = |path: &str| File::open(path).map_err(|source| Error::io(format!("open {path}"), source));
    let users =
        record.own_user_namespace.then(|| open(&format!("/proc/{}/ns/user", record.pid))).transpose()?;
    let null = open("/dev/null")?;
    let cgroup = cgroup_of(&record)?;
    let below = below(&cgroup, &arguments.cgroup)?;
    let cgroup = format!("/{}", cgroup.path());
    let mut child = crate::exec::exec(&ExecOptions {
        pidfd: pidfd.as_fd(),
        container_pid: record.pid,
        bundle: &folder.path,
        cgroup: &cgroup,
        process: null.as_fd(),
        stdio: sys::process::stdio(),
        console: console.socket.as_ref().map(AsFd::as_fd),
        users: users.as_ref().map(AsFd::as_fd),
        command_line: Some(&CommandLine {
            process: &process,
            seccomp: filter.as_ref(),
            below: &below,
            linux: spec.linux().as_ref(),
            keyring: record.keyring,
            preserved,
            line_ends: if arguments.detach { LineEnds::OfTerminal } else { LineEnds::AsWritten },
        }),
    })
    .map_err(|source| Error::Child { what: WHAT, source })?;
    let mut state = record.state()?;
    state.set_status(ContainerState::Running);
    let notified = filter.as_ref().map(|filter| Notified { filter, state: &state });
    let started = match child::next_report(&mut child, WHAT, notified.as_ref()) {
        Ok(Report::Executed) => console.receive(),
        Ok(Report::Failed { message, .. }) => Err(Error::Container { what: WHAT, message }),
        Ok(report) => Err(Error::refused(format!("{WHAT}: the process says {report:?}"))),
        Err(error) => Err(error),
    };
    let finished = started.and_then(|console| {
        socket::send_pidfd(arguments.pidfd_socket.as_deref(), &child.pidfd)?;
        write_pid(arguments.pid_file.as_deref(), child.pid).map(|()| console)
    });
    context.log.debug(format_args!("process {} was made in container {}", child.pid, arguments.id));
    match finished {
        Ok(_) if arguments.detach => Ok(0),
        Ok(console) => foreground::serve(&child.pidfd, console),
        Err(error) => {
            child::abandon(&child);
            Err(error)
        }
    }
}

/// The container's own, as a path even if it is a scope, which an exec joins and doesn't make.
fn cgroup_of(record: &Record) -> Result<Cgroup> {
    let path = format!("/{}", record.cgroup()?.path());
    Cgroup::new(&path).map_err(Error::cgroup(&path))
}

/// The directories of `PATH` and `CONTROLLER,...:PATH` below it.
fn below(own: &Cgroup, asked: &[String]) -> Result<Vec<PathBuf>> {
    let paths = own.paths();
    let mut directories = Vec::new();
    for text in asked {
        let (controllers, below) = match text.split_once(':') {
            Some((controllers, below)) => (controllers.split(',').collect(), below),
            None => (paths.keys().map(String::as_str).collect::<Vec<_>>(), text.as_str()),
        };
        let below = below.trim_matches('/');
        if below.split('/').any(|part| part == "..") {
            return Err(Error::refused(format!(
                "bad sub cgroup path {text:?}: it leads out of the container's cgroup"
            )));
        }
        for controller in controllers {
            let path = paths.get(controller);
            let path =
                path.ok_or_else(|| Error::refused(format!("--cgroup: unknown controller {controller:?}")))?;
            let path = if below.is_empty() { path.clone() } else { path.join(below) };
            if !path.is_dir() {
                let missing = format!("adding pid to cgroup {}: no such file or directory", path.display());
                return Err(Error::refused(format!("--cgroup {text:?}: {missing}")));
            }
            directories.push(path);
        }
    }
    Ok(directories)
}

fn process_of(context: &Context, arguments: &arguments::Exec, own: Option<Process>) -> Result<Process> {
    if let Some(path) = &arguments.process {
        return read_process(context, path);
    }
    if arguments.command.is_empty() {
        return Err(Error::refused("exec args cannot be empty"));
    }
    let mut process = own.ok_or_else(|| Error::refused("the container's configuration has no process"))?;
    process.set_args(Some(arguments.command.clone()));
    process.set_terminal(Some(arguments.tty)).set_console_size(None);
    if let Some(cwd) = &arguments.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut environment = process.env().clone().unwrap_or_default();
    environment.extend(arguments.env.iter().cloned());
    process.set_env(Some(environment));
    if let Some(label) = &arguments.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if let Some(profile) = &arguments.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if arguments.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    set_user(&mut process, arguments)?;
    add_capabilities(&mut process, &arguments.cap)?;
    Ok(process)
}

fn read_process(context: &Context, path: &Path) -> Result<Process> {
    let json = |source| Error::Json { path: path.display().to_string(), source };
    let text = std::fs::read(path).map_err(|source| Error::io(format!("read {}", path.display()), source))?;
    let mut value: serde_json::Value = serde_json::from_slice(&text).map_err(json)?;
    configuration::amend_process(context, &mut value);
    if value["user"].is_null() {
        value["user"] = serde_json::json!({});
    }
    serde_json::from_value(value).map_err(json)
}

fn set_user(process: &mut Process, arguments: &arguments::Exec) -> Result<()> {
    let mut user = process.user().clone();
    if let Some(asked) = &arguments.user {
        let number = |text: &str| {
            let number = text.parse::<u32>().ok();
            number.ok_or_else(|| Error::refused(format!("bad user {asked:?}: not UID or UID:GID")))
        };
        let (uid, gid) = asked.split_once(':').map_or((asked.as_str(), None), |(uid, gid)| (uid, Some(gid)));
        user.set_uid(number(uid)?);
        if let Some(gid) = gid {
            user.set_gid(number(gid)?);
        }
    }
    if !arguments.additional_gids.is_empty() {
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        groups.extend(&arguments.additional_gids);
        user.set_additional_gids(Some(groups));
    }
    process.set_user(user);
    Ok(())
}

fn add_capabilities(process: &mut Process, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut sets = process.capabilities().clone().unwrap_or_else(|| {
        let mut none = oci_spec::runtime::LinuxCapabilities::default();
        none.set_bounding(None).set_permitted(None).set_effective(None);
        none.set_inheritable(None).set_ambient(None);
        none
    });
    for name in names {
        let known: Capability = serde_json::from_value(name.as_str().into())
            .map_err(|_| Error::refused(format!("unknown capability {name:?}")))?;
        let with = |set: &Option<oci_spec::runtime::Capabilities>| {
            let mut set = set.clone().unwrap_or_default();
            set.insert(known);
            Some(set)
        };
        let (bounding, permitted, effective) =
            (with(sets.bounding()), with(sets.permitted()), with(sets.effective()));
        sets.set_bounding(bounding).set_permitted(permitted).set_effective(effective);
        if sets.inheritable().as_ref().is_some_and(|set| !set.is_empty()) {
            let ambient = with(sets.ambient());
            sets.set_ambient(ambient);
        }
    }
    process.set_capabilities(Some(sets));
    Ok(())
}
