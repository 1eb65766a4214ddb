//! One agent, with everything of its own, and the frame that every test runs in.
//!
//! Whatever a test does, nothing of its agent stays on the machine: `Drop` kills, unmounts and removes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use sampan_proto::cri;
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::Channel;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::oracle::{self, Scope, Snapshot};
use crate::{Cli, Cri, Pod, binary, connect, eventually_sync, fixture};

/// What differs from an agent with defaults.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where the agent's own temporary directory is made: `/tmp` when absent.
    pub base_in: Option<PathBuf>,
    /// The directory of what survives; in the agent's own temporary directory when absent.
    pub root: Option<PathBuf>,
    /// The directory of what a reboot makes void; in the agent's own temporary directory when absent. Unix sockets in it
    /// have names of at most 107 bytes.
    pub state: Option<PathBuf>,
    /// Further registries to speak plain HTTP to.
    pub insecure: Vec<String>,
    /// Where to find `sampand` and its runtime, when not where tests find them.
    pub binaries: Option<PathBuf>,
    /// More of the configuration: whole tables.
    pub configuration: String,
    /// The length of the prefix of the pods' IPv4 network: 24 when absent.
    pub subnet_bits: Option<u8>,
    /// What is logged; what a developer follows when absent.
    pub log_level: Option<String>,
}

/// A running `sampand`.
#[derive(Debug)]
pub struct Agent {
    base: TempDir,
    process: Mutex<Option<Child>>,
    scope: Scope,
    binaries: Option<PathBuf>,
    channel: Channel,
}

/// From exec to a health check that says SERVING: beside a test that makes hundreds of pods, one waits seconds for the
/// kernel's lock on interfaces.
const START_LIMIT: Duration = Duration::from_secs(60);
/// What asynchronous cleanup may take before it counts as a leak: an overlay that ends has its file system written out.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

impl Agent {
    /// Starts an agent with defaults and waits until it serves.
    pub async fn start() -> Agent {
        Agent::start_with(Options::default()).await
    }

    /// Starts an agent and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start_with(options: Options) -> Agent {
        let base_in = options.base_in.unwrap_or_else(|| "/tmp".into());
        let base = tempfile::Builder::new().prefix("sp-").tempdir_in(base_in).expect("a temporary directory");
        let [a, b] = rand::random::<[u8; 2]>();
        let id = rand::random::<u16>();
        let bridge = format!("spt{id:04x}{a:02x}");
        let root = options.root.unwrap_or_else(|| base.path().join("r"));
        let state = options.state.unwrap_or_else(|| base.path().join("s"));
        let cgroup = format!("/sampan-test-{id:04x}{a:02x}{b:02x}");
        let low = id & 0xff;
        let bits = options.subnet_bits.unwrap_or(24);
        let third = b & u8::MAX.checked_shl(24_u32.saturating_sub(bits.into())).unwrap_or(0);
        let subnets =
            [format!("10.{}.{third}.0/{bits}", 100 + a % 150), format!("fd{a:02x}:{b:02x}{low:02x}::/64")];
        let mut insecure = options.insecure;
        insecure.push(fixture().address().to_owned());
        let level = options.log_level.as_deref().unwrap_or("info,sampan_agent=debug,sampan_imagestore=debug");
        let config = format!(
            "[log]\nlevel = {level:?}\n[network]\nbridge = {bridge:?}\nsubnets = {subnets:?}\n\
             cni_configurations = {:?}\ncni_plugins = [{:?}, \"/usr/lib/cni\"]\n\
             [registry]\ninsecure = {insecure:?}\nsettings = {:?}\ncredentials = {:?}\npolicy = {:?}\n\
             [cgroup]\nroot = {cgroup:?}\n[runtime]\ncdi_folders = [{:?}]\n{}",
            base.path().join("cni.d"),
            base.path().join("cni.bin"),
            base.path().join("certs.d"),
            base.path().join("auth.json"),
            base.path().join("policy.json"),
            base.path().join("cdi"),
            options.configuration
        );
        std::fs::write(base.path().join("config.toml"), config).expect("write the configuration");
        let channel = connect(&state.join("sampan.sock"));
        let scope = Scope { base: base.path().into(), root, state, bridge, cgroup, pid: 0 };
        let mut agent = Agent { base, process: Mutex::new(None), scope, binaries: options.binaries, channel };
        agent.spawn();
        agent.wait_until_serving().await;
        agent
    }

    /// CRI, through a client that we did not write.
    pub fn cri(&self) -> Cri {
        Cri::new(self.channel.clone())
    }

    /// A channel to the agent, for any other service. It outlives restarts.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Makes a container with settings that are newer than the independent client, and tells its id.
    pub async fn create(&self, pod: &str, config: cri::ContainerConfig) -> Result<String, Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(cri::PodSandboxConfig::default()),
        };
        let mut runtime = cri::runtime_service_client::RuntimeServiceClient::new(self.channel());
        Ok(runtime.create_container(request).await?.into_inner().container_id)
    }

    /// The command line, speaking to this agent.
    pub fn cli(&self) -> Cli {
        Cli::new(self.socket())
    }

    /// The gRPC socket.
    pub fn socket(&self) -> PathBuf {
        self.scope.state.join("sampan.sock")
    }

    /// A directory of the test's own, gone with the agent.
    pub fn base(&self) -> &Path {
        self.base.path()
    }

    /// Where the agent and all that belongs to it is found on the machine.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// A pod configuration with a name of its own.
    pub fn pod(&self, name: &str) -> Pod {
        Pod::new(&crate::unique(name), &self.base().join("logs"))
    }

    /// What the agent logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.base().join("agent.log")).unwrap_or_default()
    }

    /// Kills the agent as a crash does. What it started goes on.
    pub fn kill(&self) {
        let mut process = self.process.lock().expect("no panic while held");
        let mut child = process.take().expect("a running agent");
        child.kill().expect("kill the agent");
        child.wait().expect("wait for the agent");
    }

    /// Ends the agent as systemd does. What it started goes on.
    ///
    /// # Panics
    /// When it has not ended within ten seconds.
    pub fn terminate(&self) {
        let mut process = self.process.lock().expect("no panic while held");
        let mut child = process.take().expect("a running agent");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("terminate the agent");
        let ended = eventually_sync(SETTLE_LIMIT, || child.try_wait().is_ok_and(|status| status.is_some()));
        if !ended {
            drop(child.kill());
            drop(child.wait());
            panic!("the agent ignores SIGTERM");
        }
    }

    /// Starts it again after `kill` or `terminate`, until it serves.
    pub async fn restart(&mut self) {
        self.spawn();
        self.wait_until_serving().await;
    }

    /// Everything of this agent that is on the machine now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(&self.scope)
    }

    /// Compares with what was there before.
    ///
    /// # Panics
    /// When something stays that was not there, naming each.
    pub fn assert_clean(&self, before: &Snapshot) {
        let mut differences = Vec::new();
        let clean = eventually_sync(SETTLE_LIMIT, || {
            differences = before.differences(&self.snapshot());
            differences.is_empty()
        });
        assert!(clean, "left behind:\n  {}", differences.join("\n  "));
    }

    fn spawn(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.base().join("agent.log"))
            .expect("open the log");
        let path = match &self.binaries {
            Some(directory) => directory.join("sampand"),
            None => binary("sampand"),
        };
        // As a shell starts it: 1024 descriptors, and more for who asks.
        let mut command = Command::new("prlimit");
        command.arg("--nofile=1024:").arg(&path);
        // What the tests are told by the environment is none of the agent's configuration.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"SAMPAN_"))
        {
            command.env_remove(name);
        }
        let child = command
            .arg("--config")
            .arg(self.base().join("config.toml"))
            .arg("--root")
            .arg(&self.scope.root)
            .arg("--state")
            .arg(&self.scope.state)
            .arg("--socket")
            .arg(self.socket())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicate a descriptor"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", path.display()));
        self.scope.pid = child.id();
        *self.process.lock().expect("no panic while held") = Some(child);
    }

    async fn wait_until_serving(&self) {
        let end = Instant::now() + START_LIMIT;
        loop {
            let request = HealthCheckRequest { service: String::new() };
            let answer = HealthClient::new(self.channel()).check(request).await;
            if answer.as_ref().is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving) {
                return;
            }
            let ended = self
                .process
                .lock()
                .expect("no panic")
                .as_mut()
                .and_then(|child| child.try_wait().ok())
                .flatten();
            assert!(ended.is_none(), "the agent ended with {ended:?}:\n{}", self.log());
            assert!(Instant::now() < end, "not serving within {START_LIMIT:?}: {answer:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(25)..];
            #[allow(clippy::print_stderr)] // beside the panic's own message, for the person who reads it
            {
                eprintln!("---- the agent's last lines:\n{}\n----", last.join("\n"));
            }
        }
        if let Some(mut child) = self.process.lock().ok().and_then(|mut process| process.take()) {
            drop(child.kill());
            drop(child.wait());
        }
        oracle::sweep(&self.scope);
    }
}

/// Runs a test against an agent of its own; nothing may be left behind at its end.
pub async fn with_agent(test: impl AsyncFnOnce(&mut Agent)) {
    with_agent_of(Options::default(), test).await;
}

/// The same with an agent that is not all defaults.
pub async fn with_agent_of(options: Options, test: impl AsyncFnOnce(&mut Agent)) {
    let mut agent = Agent::start_with(options).await;
    let before = agent.snapshot();
    test(&mut agent).await;
    agent.assert_clean(&before);
}
