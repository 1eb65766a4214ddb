//! One call of the other runtime.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Error, Result, Runtime};
use crate::{cgroup, console, sys};

/// As much of a log as is looked through for the reason of a failure.
const MAX_LOG: u64 = 1 << 16;

pub(super) struct Call<'a> {
    pub(super) runtime: &'a Runtime,
    /// That of the container.
    pub(super) cgroup: &'a str,
    /// Where the log of a call is.
    pub(super) bundle: &'a Path,
    pub(super) limit: Duration,
}

impl Call<'_> {
    /// What is the same for every verb.
    fn command(&self, log: &Path) -> Command {
        let mut command = Command::new(&self.runtime.program);
        command.arg("--root").arg(&self.runtime.root).arg("--log").arg(log).args(["--log-format", "json"]);
        if cgroup::names_scope(self.cgroup) {
            command.arg("--systemd-cgroup");
        }
        command.env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs a verb to its end. With `stdio`, our standard descriptors are to become the container's.
    pub(super) fn run(&self, verb: &'static str, arguments: &[&OsStr], stdio: bool) -> Result<()> {
        let program = &self.runtime.program;
        let failed = |source| Error::Call { program: program.clone(), source };
        let log = self.bundle.join(format!("{verb}-{}.log", rustix::process::getpid().as_raw_nonzero()));
        let mut command = self.command(&log);
        command.arg(verb).args(arguments);
        if !stdio {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        }
        let mut child = command.spawn().map_err(failed)?;
        let in_time = sys::process::ends_within(child.id(), self.limit).map_err(failed)?;
        if !in_time {
            child.kill().map_err(failed)?;
        }
        let status = child.wait().map_err(failed)?;
        let said = reason(&log);
        let _ = fs::remove_file(&log);
        if in_time && status.success() {
            return Ok(());
        }
        let message = match said {
            _ if !in_time => format!("it was not done within {:?}", self.limit),
            Some(said) => said,
            None => status.to_string(),
        };
        Err(Error::Failed { program: program.clone(), verb, message })
    }
}

/// The last error in a log of JSON lines, as all of these runtimes write it.
fn reason(log: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(log).ok()?.take(MAX_LOG).read_to_string(&mut text).ok()?;
    let error = |line: &str| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        let grave = entry["level"].as_str().is_some_and(|level| matches!(level, "error" | "fatal"));
        grave.then(|| entry["msg"].as_str().map(str::to_owned)).flatten()
    };
    text.lines().rev().find_map(error)
}

/// A socket that the runtime sends a terminal's master to.
pub(super) struct Console {
    /// An address holds 107 bytes, and a bundle's path is longer. This one goes by our descriptor of the bundle.
    path: PathBuf,
    listener: UnixListener,
    _bundle: OwnedFd,
}

impl Console {
    pub(super) fn listen(bundle: &Path, number: u32) -> Result<Console> {
        let name = format!("tty{number}");
        let failed = |source| Error::File { path: bundle.join(&name), source };
        let folder = sys::mount::open_directory(bundle).map_err(|error| failed(error.into()))?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), folder.as_raw_fd());
        let path = Path::new(&path).join(&name);
        let listener = UnixListener::bind(&path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Console { path, listener, _bundle: folder })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The runtime has sent it before its call ended.
    pub(super) fn receive(self) -> io::Result<OwnedFd> {
        let (connection, _) = self.listener.accept()?;
        Ok(console::receive(&connection)?)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_is_told_when_systemd_makes_the_cgroup() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = Runtime { program: "/usr/sbin/runc".into(), root: folder.path().into() };
        let is_told = |cgroup| {
            let call = Call { runtime: &runtime, cgroup, bundle: folder.path(), limit: Duration::ZERO };
            call.command(Path::new("log")).get_args().any(|argument| argument == "--systemd-cgroup")
        };
        assert!(is_told("kubepods-pod1.slice:sampan:c1"));
        for path in ["/sampan/pod/c1", "sampan/pod/c1", "/a.slice:sampan:c1", "/a.slice/b:sampan:c1"] {
            assert!(!is_told(path), "{path}");
        }
    }

    #[test]
    fn reason_is_the_last_error_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        assert_eq!(reason(&log), None);
        let lines = [
            r#"{"level":"warning","msg":"odd"}"#,
            r#"{"level":"error","msg":"no such file"}"#,
            r#"{"level":"debug","msg":"done"}"#,
            "not json",
        ];
        fs::write(&log, lines.join("\n")).unwrap();
        assert_eq!(reason(&log).as_deref(), Some("no such file"));
    }
}
