//! `create` and `run`: a container from its bundle to a process that waits for its start, or to the end of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{ContainerState, LinuxNamespaceType, Spec, State};

use super::child::{self, Notified};
use super::guest;
use super::record::{Folder, Phase, Record, START, start_time};
use super::{Context, Error, Result, arguments, configuration, delete, filter, foreground, socket, start};
use crate::console;
use crate::container::{Child, CommandLine, PidNamespace, Report, SpawnOptions, spawn};
use crate::hook::{self, Moment};
use crate::init::terminal::LineEnds;
use crate::sys;

/// How long the processes of a container that failed have to leave their cgroup.
const CGROUP_DEADLINE: Duration = Duration::from_secs(5);

/// A container whose process waits for its start.
struct Made {
    folder: Folder,
    record: Record,
    spec: Spec,
    state: State,
    child: Child,
    /// The master end of its terminal, if it is ours to serve.
    console: Option<OwnedFd>,
}

pub(super) fn create(context: &Context, arguments: &arguments::Create) -> Result<()> {
    let made = make(context, arguments, Use::Later)?;
    finish(arguments, &made).inspect_err(|_| undo(&made.folder, Some(&made.child), Some(&made.record)))
}

pub(super) fn run(context: &Context, arguments: &arguments::Run) -> Result<u8> {
    let how = if arguments.detach { Use::Detached } else { Use::Foreground };
    let mut made = make(context, &arguments.create, how)?;
    let started = finish(&arguments.create, &made).and_then(|()| run_made(context, &mut made));
    if let Err(error) = started {
        undo(&made.folder, Some(&made.child), Some(&made.record));
        delete::run_poststop_hooks(context, &made.spec, &made.state);
        return Err(error);
    }
    if arguments.detach {
        return Ok(0);
    }
    let code = foreground::serve(&made.child.pidfd, made.console.take())?;
    if !arguments.keep {
        delete::destroy(context, &made.folder, &made.record)?;
    }
    Ok(code)
}

/// From the start to the program.
fn run_made(context: &Context, made: &mut Made) -> Result<()> {
    const WHAT: &str = "container start failed";
    made.child.channel.start().map_err(|source| Error::Child { what: WHAT, source })?;
    match child::next_report(&mut made.child, WHAT, None)? {
        Report::Executed => {}
        Report::Failed { message, .. } => return Err(Error::Container { what: WHAT, message }),
        report => return Err(Error::refused(format!("{WHAT}: the process says {report:?}"))),
    }
    context.log.debug(format_args!("process {} executes the program", made.record.pid));
    made.record.phase = Phase::Running;
    made.folder.write(&made.record)?;
    start::run_poststart_hooks(context, &made.spec, &made.state, made.record.pid)
}

/// What callers look for when the container is there.
fn finish(arguments: &arguments::Create, made: &Made) -> Result<()> {
    socket::send_pidfd(arguments.pidfd_socket.as_deref(), &made.child.pidfd)?;
    write_pid(arguments.pid_file.as_deref(), made.record.pid)
}

/// The bare number, in a file that appears whole.
pub(super) fn write_pid(path: Option<&Path>, pid: i32) -> Result<()> {
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else { return Ok(()) };
    super::write_whole(path, pid.to_string().as_bytes())
}

/// What becomes of a container once it is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Another process starts it.
    Later,
    /// This one starts it and goes.
    Detached,
    /// This one starts it and stays until its end.
    Foreground,
}

fn make(context: &Context, arguments: &arguments::Create, how: Use) -> Result<Made> {
    let preserved = preserved(arguments.preserve_fds)?;
    let bundle = std::fs::canonicalize(&arguments.bundle)
        .map_err(|source| Error::io(format!("bundle {}", arguments.bundle.display()), source))?;
    context.log.debug(format_args!("container {} is made from {}", arguments.id, bundle.display()));
    let (mut spec, text) = configuration::read(context, &bundle)?;
    if let Some(process) = spec.process() {
        configuration::warn_of_withheld(context, process)?;
    }
    pass_listening_descriptors(&mut spec);
    let terminal = spec.process().as_ref().is_some_and(|process| process.terminal() == Some(true));
    let console = Console::of(terminal, arguments.console_socket.as_deref(), how)?;
    let record = record_of(context, arguments, &spec, bundle)?;
    let filter = filter::of(context, &spec)?;
    let folder = Folder::make(context, &arguments.id)?;
    let made = folder.keep_configuration(&text).and_then(|()| check_unused(&record)).and_then(|()| {
        let start = (how == Use::Later).then(|| socket::listen_in(&folder.path, START)).transpose()?;
        let state = record.state()?;
        let line = CommandLine {
            spec: &spec,
            state: &state,
            seccomp: filter.as_ref(),
            start: start.as_ref().map(AsFd::as_fd),
            preserved,
            pivot: !arguments.no_pivot,
            keyring: !arguments.no_new_keyring,
            line_ends: if how == Use::Foreground { LineEnds::AsWritten } else { LineEnds::OfTerminal },
        };
        let console = console.socket.as_ref().map(AsFd::as_fd);
        let (record, child) = spawn_and_wait(&folder, record, &line, console)?;
        context.log.debug(format_args!("process {} waits in cgroup {:?}", record.pid, record.cgroup));
        Ok((record, state, child))
    });
    match made {
        Ok((record, state, child)) => {
            let console = console.receive()?;
            Ok(Made { folder, record, spec, state, child, console })
        }
        Err(error) => {
            undo(&folder, None, None);
            if let Ok(state) = record_of(context, arguments, &spec, PathBuf::new()).and_then(|r| r.state()) {
                delete::run_poststop_hooks(context, &spec, &state);
            }
            Err(error)
        }
    }
}

/// Processes of somebody else would be limited, frozen and killed with the container; and in a frozen cgroup its own would
/// never come to anything.
fn check_unused(record: &Record) -> Result<()> {
    let cgroup = record.cgroup()?;
    if record.is_frozen() {
        return Err(Error::refused(format!("container's cgroup unexpectedly frozen: {:?}", cgroup.path())));
    }
    let pids = cgroup.pids().map_err(Error::cgroup(&record.cgroup))?;
    if pids.is_empty() {
        return Ok(());
    }
    let path = cgroup.path();
    Err(Error::refused(format!(
        "container's cgroup is not empty: {} process(es) found in {path:?}",
        pids.len()
    )))
}

fn spawn_and_wait(
    folder: &Folder,
    mut record: Record,
    line: &CommandLine<'_>,
    console: Option<BorrowedFd<'_>>,
) -> Result<(Record, Child)> {
    const WHAT: &str = "container create failed";
    let path = configuration::namespace(line.spec, LinuxNamespaceType::Pid);
    let joined = path.flatten().map(|path| {
        std::fs::File::open(path)
            .map_err(|source| Error::io(format!("pid namespace {}", path.display()), source))
    });
    let joined = joined.transpose()?;
    let pid_namespace = match (&joined, path) {
        (Some(file), _) => PidNamespace::Join(file.as_fd()),
        (None, Some(_)) => PidNamespace::New,
        (None, None) => PidNamespace::Inherit,
    };
    let cgroup = record.cgroup.clone();
    let bundle = record.bundle.clone();
    let options = SpawnOptions {
        bundle: &bundle,
        cgroup: &cgroup,
        pid_namespace,
        stdio: sys::process::stdio(),
        console,
        users: None,
        mounts: None,
        command_line: Some(line),
    };
    let mut child = spawn(&options).map_err(|source| Error::Child { what: WHAT, source })?;
    let mut creating = line.state.clone();
    creating.set_status(ContainerState::Creating);
    let notified = line.seccomp.map(|filter| Notified { filter, state: &creating });
    let waited = (|| {
        remember(folder, &mut record, &child)?;
        loop {
            match child::next_report(&mut child, WHAT, notified.as_ref())? {
                Report::Environment => {
                    remember(folder, &mut record, &child)?;
                    run_runtime_hooks(line, child.pid)?;
                    child.channel.start().map_err(|source| Error::Child { what: WHAT, source })?;
                }
                Report::Ready => {
                    record.phase = if line.start.is_some() { Phase::Created } else { Phase::Creating };
                    return remember(folder, &mut record, &child);
                }
                Report::Failed { message, .. } => return Err(Error::Container { what: WHAT, message }),
                report => return Err(Error::refused(format!("{WHAT}: the process says {report:?}"))),
            }
        }
    })();
    match waited {
        Ok(()) => Ok((record, child)),
        Err(error) => {
            undo(folder, Some(&child), Some(&record));
            Err(error)
        }
    }
}

pub(super) fn remember(folder: &Folder, record: &mut Record, child: &Child) -> Result<()> {
    record.pid = child.pid;
    record.started = start_time(child.pid).unwrap_or(0);
    folder.write(record)
}

fn run_runtime_hooks(line: &CommandLine<'_>, pid: i32) -> Result<()> {
    let Some(hooks) = line.spec.hooks() else { return Ok(()) };
    let run = |kind, hooks: &Option<Vec<_>>| {
        hook::run_all(kind, hooks.as_ref(), line.state, Moment::new(ContainerState::Creating, Some(pid)))
            .map_err(Error::Hook)
    };
    #[allow(deprecated, reason = "hooks of the old kind are still in use")]
    run("prestart", hooks.prestart())?;
    run("createRuntime", hooks.create_runtime())
}

/// Takes everything back. The failure that led to it is the one to be told.
pub(super) fn undo(folder: &Folder, child: Option<&Child>, record: Option<&Record>) {
    if let Some(child) = child {
        child::abandon(child);
    }
    if let Some(cgroup) = record.and_then(|record| record.cgroup().ok()) {
        let _ = cgroup.kill();
        let _ = cgroup.remove(CGROUP_DEADLINE);
    }
    let _ = record.map(guest::take_mounts_away);
    let _ = folder.remove();
}

pub(super) fn record_of(
    context: &Context,
    arguments: &arguments::Create,
    spec: &Spec,
    bundle: PathBuf,
) -> Result<Record> {
    let linux = spec.linux().as_ref();
    let root = spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default();
    let rootfs = bundle.join(root);
    Ok(Record {
        oci_version: spec.version().clone(),
        id: arguments.id.clone(),
        pid: 0,
        started: 0,
        phase: Phase::Creating,
        bundle,
        created: super::log::now(),
        cgroup: cgroup_path(context, &arguments.id, linux.and_then(|linux| linux.cgroups_path().as_deref()))?,
        own_pid_namespace: configuration::namespace(spec, LinuxNamespaceType::Pid) == Some(None),
        own_user_namespace: configuration::namespace(spec, LinuxNamespaceType::User).is_some(),
        mounts_before: guest::mounts_before(spec, &rootfs),
        keyring: !arguments.no_new_keyring,
        rootfs,
        annotations: spec.annotations().clone().unwrap_or_default(),
    })
}

/// Below the hierarchies' roots, or a scope; a container that names none gets one of its id.
fn cgroup_path(context: &Context, id: &str, asked: Option<&Path>) -> Result<String> {
    let text = match asked {
        Some(path) => path.to_str().ok_or_else(|| Error::refused("cgroupsPath is not UTF-8"))?,
        None => "",
    };
    if context.systemd {
        return scope(id, text);
    }
    let text = if text.is_empty() { id } else { text };
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    Ok(format!("/{}", parts.join("/")))
}

/// `SLICE:PREFIX:NAME`, by runc's prefix where the configuration says nothing.
fn scope(id: &str, asked: &str) -> Result<String> {
    if !crate::cgroup::has_systemd() {
        return Err(Error::refused("--systemd-cgroup: systemd is not the first process of this machine"));
    }
    let text = if asked.is_empty() { format!("system.slice:runc:{id}") } else { asked.to_owned() };
    if text.split(':').count() != 3 || text.contains('/') {
        return Err(Error::refused(format!(
            "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {text:?} instead"
        )));
    }
    Ok(text)
}

/// How many descriptors above the standard ones go to the program: those of socket activation too.
pub(super) fn preserved(asked: u32) -> Result<u32> {
    let activated = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse::<u32>().ok()).unwrap_or(0);
    let count = activated.checked_add(asked).filter(|count| *count < 1 << 20);
    let count = count.ok_or_else(|| Error::refused("--preserve-fds is out of range"))?;
    sys::process::keep_across_exec(count).map_err(Error::call("keep descriptors for the program"))?;
    Ok(count)
}

/// A program that is socket-activated finds its descriptors by these.
fn pass_listening_descriptors(spec: &mut Spec) {
    let Ok(count) = std::env::var("LISTEN_FDS") else { return };
    if let Some(process) = spec.process_mut() {
        let mut environment = process.env().clone().unwrap_or_default();
        environment.push(format!("LISTEN_FDS={count}"));
        environment.push("LISTEN_PID=1".to_owned());
        process.set_env(Some(environment));
    }
}

/// Who gets the master end of a terminal: a caller's socket, or this process.
pub(super) struct Console {
    pub(super) socket: Option<OwnedFd>,
    ours: Option<OwnedFd>,
}

impl Console {
    fn of(terminal: bool, path: Option<&Path>, how: Use) -> Result<Console> {
        Console::wanted(terminal, path, how == Use::Foreground)
    }

    /// `attended`: whether this process stays to serve the terminal.
    pub(super) fn wanted(terminal: bool, path: Option<&Path>, attended: bool) -> Result<Console> {
        match (terminal, path.filter(|path| !path.as_os_str().is_empty())) {
            (false, None) => Ok(Console { socket: None, ours: None }),
            (false, Some(_)) => {
                Err(Error::refused("cannot use console socket if the process has no terminal"))
            }
            (true, Some(path)) => Ok(Console { socket: Some(socket::connect_stream(path)?), ours: None }),
            (true, None) if !attended => {
                Err(Error::refused("cannot allocate tty if detached without setting console socket"))
            }
            (true, None) => {
                let pair = console::pair();
                let (theirs, ours) = pair.map_err(|errno| Error::errno("socketpair(AF_UNIX)", errno))?;
                Ok(Console { socket: Some(theirs), ours: Some(ours) })
            }
        }
    }

    /// The master end, when it is ours.
    pub(super) fn receive(self) -> Result<Option<OwnedFd>> {
        drop(self.socket);
        let receive =
            |ours| console::receive(ours).map_err(|errno| Error::errno("receive the terminal", errno));
        self.ours.map(receive).transpose()
    }
}
