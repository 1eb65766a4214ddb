//! Hooks: programs of a configuration that run at certain moments of a container's life.
//!
//! A hook gets the container's state on standard input and the arguments that the configuration gives it. Its environment
//! is the configuration's too; a hook that has none there gets the caller's, or the process's once that is about to
//! start, as with runc. What it writes is kept for the error that tells of its failure. It runs in the namespaces of
//! whoever calls this; the caller is single-threaded.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use oci_spec::runtime::{ContainerState, Hook, State};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};

use crate::sys::{self, process::Forked, process::Strings};

/// As much of a hook's output as goes into an error.
const MAX_OUTPUT: u64 = 1024;

/// A hook that stops what is going on.
#[derive(Debug, thiserror::Error)]
#[error("error running {kind} hook #{number}: {}", path.display())]
pub(crate) struct Error {
    kind: &'static str,
    /// Counted from 0.
    number: usize,
    path: PathBuf,
    #[source]
    cause: Cause,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("its path is not absolute")]
    Relative,
    #[error("its timeout is not greater than zero")]
    Timeout,
    #[error("an argument or variable holds a null byte")]
    NullByte,
    #[error("give it the state")]
    State(#[source] std::io::Error),
    #[error("run it")]
    Call(#[source] sys::Error),
    #[error("{outcome}{output}")]
    Failed { outcome: String, output: String },
}

/// When hooks run.
pub(crate) struct Moment<'a> {
    /// As the hooks are told.
    pub(crate) status: ContainerState,
    pub(crate) pid: Option<i32>,
    /// For hooks without one of their own; none: that of this process.
    pub(crate) environment: Option<&'a [String]>,
    /// What a hook gives up before it is executed: one of the container's own files, which is no safer than its program.
    pub(crate) restrict: Option<&'a dyn Fn() -> crate::init::Result<()>>,
}

impl Moment<'_> {
    /// Of hooks that have the environment and the rights of this process.
    pub(crate) fn new(status: ContainerState, pid: Option<i32>) -> Self {
        Moment { status, pid, environment: None, restrict: None }
    }
}

/// Runs `hooks` in their order; the first that fails ends it. `kind` is their name in the configuration.
pub(crate) fn run_all(
    kind: &'static str,
    hooks: Option<&Vec<Hook>>,
    state: &State,
    moment: Moment<'_>,
) -> Result<(), Error> {
    let hooks = hooks.map(Vec::as_slice).unwrap_or_default();
    if hooks.is_empty() {
        return Ok(());
    }
    let mut state = state.clone();
    state.set_status(moment.status).set_pid(moment.pid);
    hooks.iter().enumerate().try_for_each(|(number, hook)| {
        let failed = |cause| Error { kind, number, path: hook.path().clone(), cause };
        run(hook, &state, &moment).map_err(failed)
    })
}

/// What is wrong with hooks before any has run.
pub(crate) fn check(kind: &'static str, hooks: Option<&Vec<Hook>>) -> Result<(), Error> {
    hooks.into_iter().flatten().enumerate().try_for_each(|(number, hook)| {
        let checked = match (hook.path().is_absolute(), hook.timeout()) {
            (false, _) => Err(Cause::Relative),
            (true, Some(..=0)) => Err(Cause::Timeout),
            (true, _) => Ok(()),
        };
        checked.map_err(|cause| Error { kind, number, path: hook.path().clone(), cause })
    })
}

fn run(hook: &Hook, state: &State, moment: &Moment<'_>) -> Result<(), Cause> {
    let c_string = |bytes: &[u8]| CString::new(bytes).map_err(|_| Cause::NullByte);
    let path = c_string(hook.path().as_os_str().as_bytes())?;
    let arguments = match hook.args().as_deref() {
        None | Some([]) => vec![path.clone()],
        Some(arguments) => {
            arguments.iter().map(|text| c_string(text.as_bytes())).collect::<Result<_, _>>()?
        }
    };
    let environment = match hook.env().as_deref().or(moment.environment) {
        Some(given) => given.iter().map(|text| c_string(text.as_bytes())).collect::<Result<_, _>>()?,
        None => own_environment(),
    };
    let (arguments, environment) = (Strings::new(arguments), Strings::new(environment));

    let input = memory().and_then(|mut file| {
        file.write_all(&serde_json::to_vec(state)?)?;
        file.rewind().map(|()| file)
    });
    let input = input.map_err(Cause::State)?;
    let mut output = memory().map_err(Cause::State)?;
    match sys::process::fork(0, None).map_err(Cause::Call)? {
        Forked::Child => {
            let kept = sys::process::keep_only([input.as_fd(), output.as_fd(), output.as_fd()], 0, &[]);
            if kept.is_ok() && sys::process::reset_signals().is_ok() {
                let why = match moment.restrict.map_or(Ok(()), |restrict| restrict()) {
                    Ok(()) => format!("exec: {}", sys::process::execve(&path, &arguments, &environment)),
                    Err(error) => format!("restrict it: {error}"),
                };
                // The parent reads it from the output.
                let _ = rustix::io::write(sys::process::stdio()[2], why.as_bytes());
            }
            sys::process::exit(127)
        }
        Forked::Parent { pidfd, .. } => {
            let outcome = wait(&pidfd, hook.timeout()).map_err(Cause::Call)?;
            if outcome.is_empty() {
                return Ok(());
            }
            Err(Cause::Failed { outcome, output: tail(&mut output) })
        }
    }
}

fn own_environment() -> Vec<CString> {
    let variables =
        std::env::vars_os().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
    variables.filter_map(|variable| CString::new(variable).ok()).collect()
}

fn memory() -> std::io::Result<File> {
    Ok(rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC)?.into())
}

/// What it wrote last, in front of which comes a colon.
fn tail(output: &mut File) -> String {
    let mut text = Vec::new();
    let length = output.metadata().map_or(0, |metadata| metadata.len());
    let read = output
        .seek(std::io::SeekFrom::Start(length.saturating_sub(MAX_OUTPUT)))
        .and_then(|_| output.take(MAX_OUTPUT).read_to_end(&mut text));
    match (read, String::from_utf8_lossy(&text).trim()) {
        (Ok(_), "") | (Err(_), _) => String::new(),
        (Ok(_), text) => format!(": {text}"),
    }
}

/// Waits for the end, kills at the timeout (in seconds), and says what was wrong: nothing, when it was a success.
fn wait(pidfd: impl AsFd, timeout: Option<i64>) -> sys::Result<String> {
    let since = std::time::Instant::now();
    let mut expired = false;
    loop {
        let left = timeout.map(|seconds| {
            let left = std::time::Duration::from_secs(seconds.unsigned_abs()).saturating_sub(since.elapsed());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], left.as_ref()) {
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(sys::Error::new("poll(pidfd)", errno)),
            Ok(0) => {
                expired = true;
                // One that has ended at this moment needs no killing.
                let _ = sys::signal::pidfd_send_signal(&pidfd, libc::SIGKILL);
            }
            Ok(_) => {}
        }
        let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        let status = status.map_err(|errno| sys::Error::new("waitid(pidfd)", errno))?;
        return Ok(match status {
            _ if expired => format!("it took longer than {} s and was killed", timeout.unwrap_or_default()),
            Some(status) => describe(&status),
            None => "it can't be waited for".to_owned(),
        });
    }
}

fn describe(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => String::new(),
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(libc::SIGSYS)) => "killed by signal 31 (bad system call)".to_owned(),
        (None, signal) => format!("killed by signal {}", signal.unwrap_or_default()),
    }
}
