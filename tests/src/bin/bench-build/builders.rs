//! The three builders, each with everything of its own in a temporary directory, gone with its last drop.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sampan_tests::{Agent, Options, eventually_sync};
use tempfile::TempDir;

/// Something that builds.
pub(crate) enum Builder {
    Sampan(Box<Agent>, PathBuf),
    Docker(Docker),
    Buildah(TempDir),
}

/// What a build took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    /// Processor time of the command that asked for it.
    pub(crate) client: Duration,
}

impl Builder {
    pub(crate) async fn all(binaries: Option<PathBuf>) -> Result<Vec<Builder>> {
        let directory = match &binaries {
            Some(directory) => directory.clone(),
            None => std::env::current_exe()?.parent().context("a directory")?.to_owned(),
        };
        let options = Options { binaries, log_level: Some("info".into()), ..Options::default() };
        let agent = Box::new(Agent::start_with(options).await);
        let buildah = tempfile::Builder::new().prefix("sp-bah-").tempdir_in("/tmp")?;
        Ok(vec![
            Builder::Sampan(agent, directory.join("sampan")),
            Builder::Docker(Docker::start()?),
            Builder::Buildah(buildah),
        ])
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Builder::Sampan(..) => "Sampan",
            Builder::Docker(_) => "docker build",
            Builder::Buildah(_) => "buildah bud --layers",
        }
    }

    /// Builds a folder; every step runs if `anew`.
    pub(crate) fn build(&self, context: &Path, tag: &str, anew: bool) -> Result<Cost> {
        let mut command = self.command();
        match self {
            Builder::Sampan(..) => command.args(["build", "-q"]),
            Builder::Docker(_) => {
                command.args(["build", "-q", "--network", "host"]).env("DOCKER_BUILDKIT", "0")
            }
            Builder::Buildah(_) => {
                command.args(["bud", "-q", "--layers", "--tls-verify=false", "--isolation", "chroot"])
            }
        };
        if anew {
            command.arg("--no-cache");
        }
        command.args(["-t", tag]).arg(context);
        let (before, began) = (children(), Instant::now());
        let output = command.output().with_context(|| format!("start {}", self.name()))?;
        let cost = Cost { wall: began.elapsed(), client: children().saturating_sub(before) };
        succeeded(self.name(), &output)?;
        Ok(cost)
    }

    /// Leaves an image as an OCI layout in a directory, tagged "latest".
    pub(crate) fn export(&self, tag: &str, layout: &Path) -> Result<()> {
        let folder = layout.parent().context("a directory")?;
        let target = format!("oci:{}:latest", layout.display());
        let archive = folder.join(format!("{}.tar", tag.replace(['/', ':'], "-")));
        let mut command = self.command();
        let source = match self {
            Builder::Sampan(..) => {
                command.args(["save", "-o"]).arg(&archive).arg(tag);
                format!("docker-archive:{}", archive.display())
            }
            Builder::Docker(_) => {
                command.args(["save", "-o"]).arg(&archive).arg(tag);
                format!("docker-archive:{}", archive.display())
            }
            Builder::Buildah(_) => {
                command.args(["push", "-q", tag, &target]);
                return succeeded("buildah push", &command.output()?);
            }
        };
        succeeded("save", &command.output()?)?;
        let copied =
            Command::new("skopeo").args(["--insecure-policy", "copy", "-q", &source, &target]).output()?;
        std::fs::remove_file(&archive)?;
        succeeded("skopeo copy", &copied)
    }

    fn command(&self) -> Command {
        let mut command;
        match self {
            Builder::Sampan(agent, program) => {
                command = Command::new(program);
                command.arg("--socket").arg(agent.socket());
            }
            Builder::Docker(docker) => {
                command = Command::new("/usr/bin/docker");
                command.arg("-H").arg(docker.address());
            }
            Builder::Buildah(base) => {
                command = Command::new("buildah");
                command
                    .arg("--root")
                    .arg(base.path().join("root"))
                    .arg("--runroot")
                    .arg(base.path().join("run"));
                command.args(["--storage-driver", "overlay"]);
            }
        }
        command.stdin(Stdio::null());
        command
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        if let Builder::Buildah(_) = self {
            let _ = self.command().args(["rm", "--all"]).output();
            let _ = self.command().args(["rmi", "--all", "--force"]).output();
        }
    }
}

fn succeeded(what: &str, output: &Output) -> Result<()> {
    let tail: String =
        String::from_utf8_lossy(&output.stderr).lines().rev().take(20).collect::<Vec<_>>().join("\n");
    ensure!(output.status.success(), "{what}: {}\n{tail}", output.status);
    Ok(())
}

/// Processor time of this process's children that have ended, in the kernel's ticks of 10 ms.
fn children() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or_default();
    Duration::from_millis(10 * (ticks(13) + ticks(14)))
}

/// Debian's dockerd, which leaves the machine's network alone.
pub(crate) struct Docker {
    base: TempDir,
    process: Child,
}

impl Docker {
    fn start() -> Result<Docker> {
        let base = tempfile::Builder::new().prefix("sp-dkr-").tempdir_in("/tmp")?;
        let at = |name: &str| base.path().join(name);
        let log = File::create(at("log"))?;
        std::fs::write(at("daemon.json"), "{}")?;
        let process = Command::new("dockerd")
            .args(["--iptables=false", "--ip-masq=false", "--bridge=none"])
            .arg("--config-file")
            .arg(at("daemon.json"))
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"))
            .arg("-H")
            .arg(format!("unix://{}", at("sock").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start dockerd: apt-get install docker.io")?;
        let docker = Docker { base, process };
        let serves = || {
            let version =
                Command::new("/usr/bin/docker").arg("-H").arg(docker.address()).arg("version").output();
            version.is_ok_and(|output| output.status.success())
        };
        let served = eventually_sync(Duration::from_secs(60), serves);
        let log = std::fs::read_to_string(docker.base.path().join("log")).unwrap_or_default();
        ensure!(served, "dockerd does not serve:\n{log}");
        Ok(docker)
    }

    fn address(&self) -> String {
        format!("unix://{}", self.base.path().join("sock").display())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let base = self.base.path().display().to_string();
        for at in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with(&base))
        {
            let _ = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH);
        }
    }
}
