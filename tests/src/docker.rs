//! Debian's dockerd in directories of its own, without a network, gone with its last drop.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::eventually_sync;

/// A running dockerd.
#[derive(Debug)]
pub struct Docker {
    base: TempDir,
    child: Child,
}

impl Docker {
    /// Starts it and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    pub fn start() -> Docker {
        let base = tempfile::Builder::new().prefix("sp-dkr-").tempdir_in("/tmp").expect("a directory");
        let log = File::create(base.path().join("log")).expect("create the log");
        let child = Command::new("dockerd")
            .args(["--iptables=false", "--ip-masq=false", "--bridge=none", "--storage-driver=overlay2"])
            .arg("--data-root")
            .arg(base.path().join("data"))
            .arg("--exec-root")
            .arg(base.path().join("exec"))
            .arg("--pidfile")
            .arg(base.path().join("pid"))
            .arg(format!("--host=unix://{}", base.path().join("sock").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicate a descriptor"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("dockerd is missing ({error}): apt-get install docker.io"));
        let docker = Docker { base, child };
        let serves = eventually_sync(Duration::from_secs(30), || docker.try_run(&["version"]).is_ok());
        let log = || std::fs::read_to_string(docker.base.path().join("log")).unwrap_or_default();
        assert!(serves, "dockerd does not serve:\n{}", log());
        docker
    }

    /// One command of its client; gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments).unwrap_or_else(|said| panic!("docker {arguments:?}: {said}"))
    }

    /// The daemon and its containerd.
    pub fn pids(&self) -> Vec<u32> {
        let own = self.child.id();
        let children =
            std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        std::iter::once(own).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
    }

    fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("docker")
            .arg(format!("--host=unix://{}", self.base.path().join("sock").display()))
            .args(arguments)
            .output()
            .unwrap_or_else(|error| panic!("docker is missing ({error}): apt-get install docker.io"));
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        drop(self.child.wait());
    }
}
