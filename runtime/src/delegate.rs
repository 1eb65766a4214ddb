//! Containers that another OCI runtime makes, seen as if this program had made them.
//!
//! A delegate is a process between the monitor and the other runtime. It calls `create`, `start`, `exec` and `delete`
//! and reports as a child on its way to its program does; as a subreaper it becomes the parent of the container's
//! process, and it ends as that process ends. So a monitor, which waits for nobody, needs to know no other runtime:
//! its child is the delegate, and the pid that the delegate reports is the container's.
//!
//! What this leaves to the other runtime: the container's cgroup, its hooks, its seccomp filter, its terminal.

mod call;

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{LinuxNamespaceBuilder, LinuxNamespaceType, Spec};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{WaitOptions, WaitStatus, getpid, set_child_subreaper, wait};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::container::{Birth, Child, Error as SpawnError, PidNamespace, Reporter};
use crate::{init, sys};
use call::{Call, Console};

/// In the bundle's folder: processes of the container were killed for want of memory, as its cgroup told before it was
/// removed.
pub(crate) const OUT_OF_MEMORY: &str = "oom";

/// Longer than any runtime takes, shorter than kubelet waits.
const LIMIT: Duration = Duration::from_secs(100);

/// A runtime with runc's command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// Its program.
    pub program: PathBuf,
    /// Where it keeps its state (`--root`).
    pub root: PathBuf,
}

/// A container that another runtime is to make.
pub(crate) struct Container<'a> {
    pub(crate) runtime: &'a Runtime,
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
    pub(crate) cgroup: &'a str,
    /// The process whose pid namespace it shares.
    pub(crate) pid_namespace_of: Option<i32>,
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    pub(crate) console: Option<BorrowedFd<'a>>,
}

/// A process that another runtime is to run in its container.
pub(crate) struct Exec<'a> {
    pub(crate) runtime: &'a Runtime,
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
    /// That of the container.
    pub(crate) cgroup: &'a str,
    /// Tells the files of one exec from those of another.
    pub(crate) number: u32,
    /// A file with an OCI `Process`.
    pub(crate) process: BorrowedFd<'a>,
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    pub(crate) console: Option<BorrowedFd<'a>>,
}

/// What went wrong beside the other runtime.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("become a subreaper")]
    Subreaper(#[source] std::io::Error),
    #[error("call {}", program.display())]
    Call {
        program: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// In its own words.
    #[error("{} {verb}: {message}", program.display())]
    Failed { program: PathBuf, verb: &'static str, message: String },
    #[error("{}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("terminal from {}", program.display())]
    Terminal {
        program: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("wait for the container's process")]
    Wait(#[source] std::io::Error),
}

type Result<T> = std::result::Result<T, Error>;

/// Starts the delegate of a container; it reports `Born`, `Ready` and, after the start, `Executed`.
pub(crate) fn create(container: &Container<'_>) -> std::result::Result<Child, SpawnError> {
    let birth = birth(container.stdio);
    let inherited: Vec<_> = container.console.into_iter().collect();
    birth.clone_process(&inherited, |reporter, inherited| {
        let console = inherited.into_iter().next();
        match live(container, console, reporter)? {
            Some(status) => end_as(status),
            None => Err(init::Error::Abandoned),
        }
    })
}

/// Starts the delegate of an exec; it reports `Born` and `Executed`.
pub(crate) fn exec(exec: &Exec<'_>) -> std::result::Result<Child, SpawnError> {
    let birth = birth(exec.stdio);
    let inherited: Vec<_> = [exec.process].into_iter().chain(exec.console).collect();
    birth.clone_process(&inherited, |reporter, inherited| {
        let mut inherited = inherited.into_iter();
        let (process, console) = (inherited.next(), inherited.next());
        let process = process.ok_or(init::Error::Missing { field: "process" })?;
        end_as(run(exec, &process, console, reporter)?)
    })
}

fn birth(stdio: [BorrowedFd<'_>; 3]) -> Birth<'_> {
    Birth { pid_namespace: PidNamespace::Inherit, cgroup: None, stdio, preserved: 0 }
}

/// The life of a container; `None` when the monitor has gone before it was started.
fn live(
    container: &Container<'_>,
    console: Option<OwnedFd>,
    reporter: &Reporter,
) -> init::Result<Option<WaitStatus>> {
    set_child_subreaper(Some(getpid())).map_err(|errno| Error::Subreaper(errno.into()))?;
    if let Some(pid) = container.pid_namespace_of {
        share_pids(container.bundle, pid)?;
    }
    let runtime = container.runtime;
    let call = Call { runtime, cgroup: container.cgroup, bundle: container.bundle, limit: LIMIT };
    let pid_file = container.bundle.join("pid");
    let server = console.as_ref().map(|_| Console::listen(container.bundle, 0)).transpose()?;
    let made = (|| {
        let mut arguments: Vec<&std::ffi::OsStr> =
            vec!["--bundle".as_ref(), container.bundle.as_ref(), "--pid-file".as_ref(), pid_file.as_ref()];
        if let Some(server) = &server {
            arguments.extend(["--console-socket".as_ref(), server.path().as_os_str()]);
        }
        arguments.push(container.id.as_ref());
        call.run("create", &arguments, true)?;
        pass_on(server, console, runtime)?;
        read_pid(&pid_file)
    })();
    let pid = match made {
        Ok(pid) => pid,
        Err(error) => {
            delete(&call, container.id);
            return Err(error.into());
        }
    };
    // The container has its own copies; ours would keep its pipes open.
    release_stdio()?;
    let pidfd = sys::process::pidfd_open(pid).map_err(init::Error::Talk)?;
    reporter.born(pid).map_err(init::Error::Talk)?;
    if !wait_for_start(reporter, &pidfd).map_err(init::Error::Talk)? {
        // It is ended by now, or nobody is left who could ever start it.
        delete(&call, container.id);
        return Ok(None);
    }
    if let Err(error) = call.run("start", &[container.id.as_ref()], false) {
        delete(&call, container.id);
        return Err(error.into());
    }
    reporter.executed().map_err(init::Error::Talk)?;
    let status = wait_for(pid)?;
    let killed = Cgroup::new(container.cgroup).and_then(|cgroup| cgroup.oom_kills());
    if killed.is_ok_and(|count| count > 0) {
        // Without the mark the end is told as that by any other SIGKILL.
        let _ = File::create(container.bundle.join(OUT_OF_MEMORY));
    }
    delete(&call, container.id);
    Ok(Some(status))
}

fn run(
    exec: &Exec<'_>,
    process: &OwnedFd,
    console: Option<OwnedFd>,
    reporter: &Reporter,
) -> init::Result<WaitStatus> {
    set_child_subreaper(Some(getpid())).map_err(|errno| Error::Subreaper(errno.into()))?;
    let call = Call { runtime: exec.runtime, cgroup: exec.cgroup, bundle: exec.bundle, limit: LIMIT };
    let pid_file = exec.bundle.join(format!("pid-{}", exec.number));
    let process = format!("/proc/{}/fd/{}", getpid().as_raw_nonzero(), process.as_raw_fd());
    let server = console.as_ref().map(|_| Console::listen(exec.bundle, exec.number)).transpose()?;
    let started = (|| {
        let mut arguments: Vec<&std::ffi::OsStr> = vec![
            "--detach".as_ref(),
            "--process".as_ref(),
            process.as_ref(),
            "--pid-file".as_ref(),
            pid_file.as_ref(),
        ];
        if let Some(server) = &server {
            arguments.extend(["--console-socket".as_ref(), server.path().as_os_str()]);
        }
        arguments.push(exec.id.as_ref());
        call.run("exec", &arguments, true)?;
        pass_on(server, console, exec.runtime)?;
        read_pid(&pid_file)
    })();
    let _ = fs::remove_file(&pid_file);
    let pid = started?;
    release_stdio()?;
    reporter.born(pid).map_err(init::Error::Talk)?;
    reporter.executed().map_err(init::Error::Talk)?;
    Ok(wait_for(pid)?)
}

/// Has the container live in the pid namespace of another process.
fn share_pids(bundle: &Path, pid: i32) -> Result<()> {
    let path = bundle.join("config.json");
    let failed = |source| Error::File { path: path.clone(), source };
    let mut spec: Spec =
        fs::read(&path).and_then(|text| serde_json::from_slice(&text).map_err(Into::into)).map_err(failed)?;
    let built =
        LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Pid).path(format!("/proc/{pid}/ns/pid"));
    let namespace = built.build().map_err(|error| failed(std::io::Error::other(error)))?;
    if let Some(linux) = spec.linux_mut() {
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Pid);
        namespaces.push(namespace);
        linux.set_namespaces(Some(namespaces));
    }
    let text = serde_json::to_vec(&spec).map_err(|error| failed(error.into()))?;
    fs::write(&path, text).map_err(failed)
}

/// What the runtime sent us goes on to whoever serves the terminal.
fn pass_on(server: Option<Console>, console: Option<OwnedFd>, runtime: &Runtime) -> Result<()> {
    let (Some(server), Some(console)) = (server, console) else { return Ok(()) };
    let failed = |source| Error::Terminal { program: runtime.program.clone(), source };
    let master = server.receive().map_err(failed)?;
    let masters = [master.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&masters));
    let name = [IoSlice::new(b"/dev/ptmx")];
    sendmsg(&console, &name, &mut control, SendFlags::NOSIGNAL).map_err(|errno| failed(errno.into()))?;
    Ok(())
}

fn read_pid(path: &Path) -> Result<i32> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(failed)?;
    text.trim().parse().map_err(|error| failed(std::io::Error::other(error)))
}

fn release_stdio() -> init::Result<()> {
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
    let null = null.map_err(|errno| Error::File { path: "/dev/null".into(), source: errno.into() })?;
    sys::process::replace_stdio(&null).map_err(init::Error::Descriptors)
}

/// Says `Ready` and waits until the parent starts the container, or has gone, or the container has ended.
fn wait_for_start(reporter: &Reporter, pidfd: &OwnedFd) -> sys::Result<bool> {
    reporter.ready()?;
    loop {
        let mut sources = [PollFd::new(reporter, PollFlags::IN), PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut sources, None) {
            Ok(_) if !sources[0].revents().is_empty() => return reporter.wait(),
            Ok(_) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(sys::Error::new("poll(start)", errno)),
        }
    }
}

/// Waits for the container's process, and meanwhile for its orphans, whose parent we are too.
fn wait_for(pid: i32) -> Result<WaitStatus> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if ended.as_raw_nonzero().get() == pid => return Ok(status),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::Wait(errno.into())),
        }
    }
}

/// Whatever is left then, the container's removal finds by its cgroup.
fn delete(call: &Call<'_>, id: &str) {
    let _ = call.run("delete", &["--force".as_ref(), id.as_ref()], false);
}

/// Ends this process as the container's ended.
fn end_as(status: WaitStatus) -> init::Result<Infallible> {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or_default(),
    };
    sys::process::exit(code)
}
