//! Making a container's first process.
//!
//! ```text
//!  spawn() ──clone3──▶ child: reads config.json, namespaces, mounts, pivot_root …
//!     │                  │
//!     │   ◀──── Ready ───┤ (or Failed)
//!     ├────── start() ──▶│ rlimits, user, capabilities, seccomp
//!     │   ◀── Executed ──┘ exec (or Failed, and the child exits with 127, 126 or 128)
//! ```
//!
//! The caller is single-threaded and never waits here: the child does all work, and reports over a
//! [`Channel`] that can be polled. The caller reaps the child through its pidfd.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use oci_spec::runtime::{Spec, State};
use rustix::thread::ThreadNameSpaceType;

use crate::cgroup::{Cgroup, Layout};
use crate::init;
use crate::init::terminal::LineEnds;
use crate::seccomp::Filter;
use crate::sys::{self, process::Forked};

mod channel;

pub use channel::{Channel, ExecFailure, Report};
pub(crate) use channel::{Reporter, pair};

/// The pid namespace of a new container, which has to be known before its configuration is read.
#[derive(Debug, Clone, Copy)]
pub enum PidNamespace<'a> {
    /// One of its own, in which the container's first process has pid 1.
    New,
    /// That of a pidfd's process, or of an open `/proc/PID/ns/pid`.
    Join(BorrowedFd<'a>),
    /// The caller's.
    Inherit,
}

/// What [`spawn`] needs to know.
#[derive(Debug, Clone, Copy)]
pub struct SpawnOptions<'a> {
    /// Holds `config.json`, and `seccomp.bpf` if the filter is compiled already. Relative to the caller's working directory.
    pub bundle: &'a Path,
    /// Path of the container's cgroup below the roots of the hierarchies, or its scope (`slice:prefix:name`).
    pub cgroup: &'a str,
    /// Where the container's pids live.
    pub pid_namespace: PidNamespace<'a>,
    /// What becomes descriptors 0, 1 and 2.
    pub stdio: [BorrowedFd<'a>; 3],
    /// A socket to send the master of the process's terminal to. None: there is no terminal to make.
    pub console: Option<BorrowedFd<'a>>,
    /// The pod's user namespace, which its configuration doesn't name. None: it has none, or the command line's
    /// configuration tells.
    pub users: Option<BorrowedFd<'a>>,
    /// The mount namespace that the container's own begins as a copy of ([`crate::mount::MinimalNamespace`]). None: the caller's.
    pub mounts: Option<BorrowedFd<'a>>,
    /// What a caller of the command line asks for on top; None for a monitor.
    pub command_line: Option<&'a CommandLine<'a>>,
}

/// What the command line asks for and a monitor never does. The bundle's own `seccomp.bpf` doesn't count then.
#[derive(Debug, Clone, Copy)]
pub struct CommandLine<'a> {
    /// The configuration, read and checked already.
    pub(crate) spec: &'a Spec,
    /// What hooks are told, but for the status and the pid of their moment.
    pub(crate) state: &'a State,
    /// The filter to load, compiled.
    pub(crate) seccomp: Option<&'a Filter>,
    /// A listening socket over which the start comes, from another process. None: the start comes over the channel.
    pub(crate) start: Option<BorrowedFd<'a>>,
    /// How many descriptors above the standard ones the program keeps.
    pub(crate) preserved: u32,
    /// Whether the root is changed by pivot_root, which a root on a RAM disk doesn't take.
    pub(crate) pivot: bool,
    /// Whether it gets a session keyring of its own.
    pub(crate) keyring: bool,
    /// Of its terminal, if it has one.
    pub(crate) line_ends: LineEnds,
}

/// A process that is on its way to exec.
#[derive(Debug)]
pub struct Child {
    /// Its pid, as the caller sees it.
    pub pid: i32,
    /// Becomes readable when it exits.
    pub pidfd: OwnedFd,
    /// Reports of its progress.
    pub channel: Channel,
}

/// Why no child could be made. What goes wrong inside the child comes as [`Report::Failed`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No channel to the child.
    #[error("make the channel to the container's process")]
    Channel(#[source] sys::Error),
    /// The pid namespace to be joined can't be, or the caller's own can't be returned to.
    #[error("enter the pid namespace")]
    PidNamespace(#[source] sys::Error),
    /// The cgroup that the child is to be born in can't be made.
    #[error("make cgroup {path:?}")]
    Cgroup {
        /// Below the hierarchy's root.
        path: String,
        /// Why.
        #[source]
        source: Box<crate::cgroup::Error>,
    },
    /// The child can't be made.
    #[error("clone the container's process")]
    Clone(#[source] sys::Error),
    /// The channel doesn't carry what was to be sent or received.
    #[error("talk to the container's process")]
    Talk(#[source] sys::Error),
}

impl Error {
    pub(crate) fn cgroup(path: &str, source: crate::cgroup::Error) -> Error {
        Error::Cgroup { path: path.to_owned(), source: Box::new(source) }
    }
}

/// Clones the first process of a container and returns at once; for a command line, once the cgroup is made.
pub fn spawn(options: &SpawnOptions<'_>) -> Result<Child, Error> {
    let cgroup = Cgroup::new(options.cgroup).map_err(|source| Error::cgroup(options.cgroup, source))?;
    let cradle = cradle(&cgroup)?;
    // With a user or time namespace the process that is cloned here only prepares the birth of the container's own.
    let midwife =
        options.users.is_some() || options.command_line.is_some_and(|asked| init::needs_midwife(asked.spec));
    let birth = Birth {
        pid_namespace: if midwife { PidNamespace::Inherit } else { options.pid_namespace },
        cgroup: cradle.directory.as_ref().map(AsFd::as_fd),
        stdio: options.stdio,
        preserved: options.command_line.map_or(0, |asked| asked.preserved),
    };
    let start = options.command_line.and_then(|asked| asked.start);
    let pids = match options.pid_namespace {
        PidNamespace::Join(namespace) if options.users.is_some() => Some(namespace),
        _ => None,
    };
    let inherited: Vec<_> =
        [options.console, start, options.users, options.mounts, pids].into_iter().flatten().collect();
    let child = birth.clone_process(&inherited, |reporter, inherited| {
        let mut inherited = inherited.into_iter();
        let console = options.console.and_then(|_| inherited.next());
        let start = start.and_then(|_| inherited.next());
        let command_line = options.command_line.map(|line| init::Asked { line, start });
        let users = options.users.and_then(|_| inherited.next());
        let mounts = options.mounts.and_then(|_| inherited.next());
        let pids = pids.and_then(|_| inherited.next());
        let setup = init::Setup {
            bundle: options.bundle,
            cgroup: &cgroup,
            in_cgroup: cradle.whole,
            console,
            command_line,
            pod: init::PodNamespaces { users, pids },
            mounts,
            midwife,
        };
        init::run(setup, reporter)
    })?;
    if options.command_line.is_some() && !cradle.whole && !cgroup.is_scope() {
        // The child makes it where it comes to it; who would only wait can be quicker. What is wrong with it the child tells.
        let _ = cgroup.create();
    }
    Ok(child)
}

/// Where a child is born.
#[derive(Default)]
pub(crate) struct Cradle {
    /// The directory of version 2.
    pub(crate) directory: Option<OwnedFd>,
    /// Whether that is the whole of its cgroup.
    pub(crate) whole: bool,
}

impl Cradle {
    /// In a cgroup that exists.
    pub(crate) fn of(cgroup: &Cgroup) -> Result<Cradle, crate::cgroup::Error> {
        let whole = crate::cgroup::layout()? == Layout::V2;
        Ok(Cradle { directory: cgroup.directory()?, whole })
    }
}

/// On version 2 the child starts inside its cgroup, which must exist by then. On version 1 the
/// child makes its cgroups itself and moves in, which costs the caller nothing. A scope of systemd begins with a process,
/// so there the child asks too.
pub(crate) fn cradle(cgroup: &Cgroup) -> Result<Cradle, Error> {
    if cgroup.is_scope() {
        return Ok(Cradle::default());
    }
    let made = cgroup.create_birthplace().and_then(|()| Cradle::of(cgroup));
    made.map_err(|source| Error::cgroup(cgroup.path(), source))
}

/// How a child comes into the world; the same for a container's first process and for an exec.
pub(crate) struct Birth<'a> {
    pub(crate) pid_namespace: PidNamespace<'a>,
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    pub(crate) preserved: u32,
}

impl Birth<'_> {
    /// Clones. The child runs `body` with its reporter and its own copies of `inherited`; it has no other descriptors.
    pub(crate) fn clone_process(
        &self,
        inherited: &[BorrowedFd<'_>],
        body: impl FnOnce(&Reporter, Vec<OwnedFd>) -> init::Result<Infallible>,
    ) -> Result<Child, Error> {
        let (channel, reporter) = pair().map_err(Error::Channel)?;
        match self.fork()? {
            Forked::Parent { pid, pidfd } => Ok(Child { pid, pidfd, channel }),
            // Never returns: the caller's frames, and all they own, belong to the other process.
            Forked::Child => sys::process::exit(self.child(&reporter, inherited, body)),
        }
    }

    fn fork(&self) -> Result<Forked, Error> {
        const NEWPID: u64 = libc::CLONE_NEWPID as u64;
        match self.pid_namespace {
            PidNamespace::New => sys::process::fork(NEWPID, self.cgroup).map_err(Error::Clone),
            PidNamespace::Inherit => sys::process::fork(0, self.cgroup).map_err(Error::Clone),
            PidNamespace::Join(namespace) => {
                // Children are born into the namespace that their parent chose last, which has to be undone.
                let own = sys::process::own_pidfd().map_err(Error::PidNamespace)?;
                let pid = ThreadNameSpaceType::PROCESS_ID;
                sys::process::setns(namespace, pid).map_err(Error::PidNamespace)?;
                let forked = sys::process::fork(0, self.cgroup).map_err(Error::Clone);
                if !matches!(forked, Ok(Forked::Child)) {
                    sys::process::setns(&own, pid).map_err(Error::PidNamespace)?;
                }
                forked
            }
        }
    }

    fn child(
        &self,
        reporter: &Reporter,
        inherited: &[BorrowedFd<'_>],
        body: impl FnOnce(&Reporter, Vec<OwnedFd>) -> init::Result<Infallible>,
    ) -> i32 {
        let mut others = vec![reporter.as_fd()];
        others.extend(inherited);
        let mut kept = match sys::process::keep_only(self.stdio, self.preserved, &others) {
            Ok(kept) => kept,
            Err(error) => return reporter.failed(&init::Error::Descriptors(error)),
        };
        let reporter = Reporter::from(kept.remove(0));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            sys::process::reset_signals().map_err(init::Error::Signals)?;
            // Until exec the process has the runtime's memory and descriptors, while it may be visible in the container.
            sys::process::set_not_dumpable().map_err(init::Error::Dumpable)?;
            body(&reporter, kept)
        }));
        match outcome {
            Ok(Err(error)) => reporter.failed(&error),
            Err(_) => reporter.failed(&init::Error::Panicked),
        }
    }
}
