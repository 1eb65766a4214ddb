//! Debian's dockerd in directories of its own, without a network, gone with its last drop.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sampan_tests::eventually_sync;
use tempfile::TempDir;

/// A running dockerd.
#[derive(Debug)]
pub(crate) struct Docker {
    base: TempDir,
    child: Child,
}

impl Docker {
    pub(crate) fn start() -> Result<Docker> {
        let base = tempfile::Builder::new().prefix("sp-dkr-").tempdir_in("/tmp")?;
        let log = File::create(base.path().join("log"))?;
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
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start dockerd: apt-get install docker.io")?;
        let docker = Docker { base, child };
        let serves = eventually_sync(Duration::from_secs(30), || docker.run(&["version"]).is_ok());
        let log = || std::fs::read_to_string(docker.base.path().join("log")).unwrap_or_default();
        ensure!(serves, "dockerd does not serve:\n{}", log());
        Ok(docker)
    }

    /// One command of its client.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new("docker")
            .arg(format!("--host=unix://{}", self.base.path().join("sock").display()))
            .args(arguments)
            .output()
            .context("docker")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "docker {arguments:?}: {said}");
        Ok(())
    }

    /// The daemon, its containerd, and what it runs to unpack.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let own = self.child.id();
        let children =
            std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        std::iter::once(own).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        drop(self.child.wait());
    }
}
