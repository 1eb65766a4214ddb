//! A further process in a running container.
//!
//! The same protocol as for a container's first process, without the wait for a start: the child
//! joins the container's namespaces by its pidfd, so that no pid can be mistaken for another, and
//! executes. Its file system is the container's as soon as it has joined: what comes from the
//! host (filter, process, cgroup) is read before.

use std::convert::Infallible;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, Process};
use rustix::thread::ThreadNameSpaceType;

use crate::cgroup::Cgroup;
use crate::container::{self, Birth, Child, Cradle, Error, PidNamespace, Reporter};
use crate::init::terminal::LineEnds;
use crate::init::{self, Prepared};
use crate::seccomp::Filter;
use crate::sys;

/// What [`exec`] needs to know.
#[derive(Debug, Clone, Copy)]
pub struct ExecOptions<'a> {
    /// Of the container's first process.
    pub pidfd: BorrowedFd<'a>,
    /// Its pid, as the caller sees it.
    pub container_pid: i32,
    /// The container's; holds `seccomp.bpf`, or `config.json` with a profile.
    pub bundle: &'a Path,
    /// Path of a cgroup for this process alone, below that of the container.
    pub cgroup: &'a str,
    /// JSON of an OCI process, read by the child from where the descriptor stands.
    pub process: BorrowedFd<'a>,
    /// What becomes descriptors 0, 1 and 2.
    pub stdio: [BorrowedFd<'a>; 3],
    /// A socket to send the master of the process's terminal to. None: there is no terminal to make.
    pub console: Option<BorrowedFd<'a>>,
    /// The container's user namespace, unless it is the caller's.
    pub users: Option<BorrowedFd<'a>>,
    /// What a caller of the command line asks for on top; None for a monitor.
    pub command_line: Option<&'a CommandLine<'a>>,
}

/// What the command line asks of an exec and a monitor never does. The cgroup is the container's own then.
#[derive(Debug, Clone, Copy)]
pub struct CommandLine<'a> {
    /// The process, read and checked already.
    pub(crate) process: &'a Process,
    /// The filter to load, compiled.
    pub(crate) seccomp: Option<&'a Filter>,
    /// Directories of cgroups below the container's own to be entered in their hierarchies.
    pub(crate) below: &'a [PathBuf],
    /// What the container's configuration says of how the kernel treats its processes.
    pub(crate) linux: Option<&'a Linux>,
    /// Whether the process joins the session keyring of the container.
    pub(crate) keyring: bool,
    /// How many descriptors above the standard ones the program keeps.
    pub(crate) preserved: u32,
    /// Of its terminal, if it has one.
    pub(crate) line_ends: LineEnds,
}

/// Clones a process into a container and returns at once.
pub fn exec(options: &ExecOptions<'_>) -> Result<Child, Error> {
    let line = options.command_line;
    let cgroup = if line.is_some() { Cgroup::new(options.cgroup) } else { Cgroup::new_exec(options.cgroup) };
    let cgroup = cgroup.map_err(|source| Error::cgroup(options.cgroup, source))?;
    let cradle = match line {
        // It is there, and it is not for an exec to change what it hands down.
        Some(_) => Cradle::of(&cgroup).map_err(|source| Error::cgroup(cgroup.path(), source))?,
        None => container::cradle(&cgroup)?,
    };
    let birth = Birth {
        pid_namespace: PidNamespace::Join(options.pidfd),
        cgroup: cradle.directory.as_ref().map(AsFd::as_fd),
        stdio: options.stdio,
        preserved: line.map_or(0, |line| line.preserved),
    };
    let mut inherited = vec![options.pidfd, options.process];
    inherited.extend(options.console);
    inherited.extend(options.users);
    birth.clone_process(&inherited, |reporter, inherited| {
        run(options, &cgroup, cradle.whole, reporter, inherited)
    })
}

fn run(
    options: &ExecOptions<'_>,
    cgroup: &Cgroup,
    in_cgroup: bool,
    reporter: &Reporter,
    inherited: Vec<OwnedFd>,
) -> init::Result<Infallible> {
    let line = options.command_line;
    let mut inherited = inherited.into_iter();
    let (Some(container), Some(process)) = (inherited.next(), inherited.next()) else {
        return Err(init::Error::Missing { field: "descriptor" });
    };
    let console = options.console.and_then(|_| inherited.next());
    let users = options.users.and_then(|_| inherited.next());
    let read;
    let (process, filter) = match line {
        Some(line) => (line.process, line.seccomp.cloned()),
        None => {
            read = read_process(process)?;
            (&read, init::seccomp_of_exec(options.bundle)?)
        }
    };
    let mut prepared = Prepared::new(process, filter, line.map_or(0, |line| line.preserved))?;
    sys::process::setsid().map_err(init::Error::Session)?;
    prepared.set_oom_score()?;
    let affinity = process.exec_cpu_affinity().as_ref();
    init::set_initial_affinity(affinity)?;
    let failed = |source| init::Error::Cgroup { path: cgroup.path().to_owned(), source };
    if !in_cgroup {
        if line.is_none() {
            cgroup.create().map_err(failed)?;
        }
        cgroup.enter().map_err(failed)?;
    }
    for directory in line.map(|line| line.below).unwrap_or_default() {
        crate::cgroup::enter_directory(directory).map_err(failed)?;
    }
    match affinity {
        None => init::reset_affinity(),
        affinity => init::set_final_affinity(affinity)?,
    }
    let label = prepared.open_label()?;
    let mut all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::NETWORK;
    // Joining one's own user namespace is refused.
    all.set(ThreadNameSpaceType::USER, users.is_some());
    all.set(ThreadNameSpaceType::TIME, line.is_some());
    // Joining the mount namespace makes its root the root and the working directory.
    sys::process::setns(&container, all).map_err(init::Error::EnterContainer)?;
    drop(container);
    if users.is_some() {
        init::become_root()?;
    }
    match line {
        Some(line) if !line.keyring => {}
        _ => init::join_keyring_of(options.bundle)?,
    }
    if let Some(console) = &console {
        let root = sys::mount::open_directory(Path::new("/")).map_err(init::Error::Terminal)?;
        let line_ends = line.map_or(LineEnds::OfTerminal, |line| line.line_ends);
        init::terminal::make(&root, console, process.console_size(), line_ends)?;
    }
    if let Some(line) = line {
        prepared.settle_environment(process.env().as_deref().unwrap_or_default())?;
        prepared.find_program()?;
        if let Some(linux) = line.linux {
            init::set_treatment(linux)?;
        }
    }
    prepared.execute(reporter, label)
}

fn read_process(descriptor: OwnedFd) -> init::Result<Process> {
    let path = || PathBuf::from("process.json");
    let mut text = Vec::new();
    let read = std::fs::File::from(descriptor).read_to_end(&mut text);
    read.map_err(|source| init::Error::Read { path: path(), source })?;
    serde_json::from_slice(&text).map_err(|source| init::Error::Parse { path: path(), source })
}
