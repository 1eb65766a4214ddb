//! Debian's containerd with runc and the CNI bridge, in directories of its own, gone with its last drop.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sampan_tests::{Cri, Scope, connect, eventually_sync, fixture, sweep};
use tempfile::TempDir;

/// The sandbox image that every pod of containerd needs.
const PAUSE: &str = "localhost/pause:1";

/// A running containerd.
#[derive(Debug)]
pub(crate) struct Containerd {
    base: TempDir,
    child: Child,
    scope: Scope,
}

impl Containerd {
    /// Starts it, with its directory in `folder` and its state there too when it has no other, and gives it the sandbox
    /// image.
    pub(crate) async fn start(folder: &Path, state: Option<PathBuf>) -> Result<Containerd> {
        let base = tempfile::Builder::new().prefix("sp-ctd-").tempdir_in(folder)?;
        let id = rand::random::<u16>();
        let scope = Scope {
            base: base.path().into(),
            root: base.path().join("root"),
            state: state.unwrap_or_else(|| base.path().join("state")),
            bridge: format!("spc{id:04x}"),
            cgroup: format!("/sampan-bench-{id:04x}"),
            pid: 0,
        };
        let socket = base.path().join("containerd.sock");
        write_configuration(&scope, &socket, id)?;
        let log = File::create(base.path().join("log"))?;
        let child = Command::new("containerd")
            .arg("--config")
            .arg(base.path().join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start containerd: apt-get install containerd runc containernetworking-plugins")?;
        let containerd = Containerd { base, child, scope };
        let serves = eventually_sync(Duration::from_secs(20), || ctr(&socket, &["version"]).is_ok());
        ensure!(serves, "containerd does not serve:\n{}", containerd.log());
        let pause = containerd.base().join("pause.tar");
        make_pause_image(&pause)?;
        ctr(&socket, &["--namespace", "k8s.io", "images", "import", &pause.display().to_string()])?;
        containerd.wait_for_network().await?;
        Ok(containerd)
    }

    pub(crate) fn cri(&self) -> Cri {
        Cri::new(connect(&self.base().join("containerd.sock")))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn base(&self) -> &Path {
        self.base.path()
    }

    pub(crate) fn cgroup(&self) -> &str {
        &self.scope.cgroup
    }

    fn log(&self) -> String {
        fs::read_to_string(self.base().join("log")).unwrap_or_default()
    }

    async fn wait_for_network(&self) -> Result<()> {
        for _ in 0..100 {
            let request = k8s_cri::v1::StatusRequest { verbose: false };
            let status = self.cri().runtime.status(request).await?.into_inner().status.unwrap_or_default();
            if status.conditions.iter().all(|condition| condition.status) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("containerd has no network:\n{}", self.log())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        sweep(&self.scope);
    }
}

/// As a kubelet node has it, but for what this kind of machine does not allow.
fn write_configuration(scope: &Scope, socket: &Path, id: u16) -> Result<()> {
    let (base, root, state) = (scope.base.display(), scope.root.display(), scope.state.display());
    let socket = socket.display();
    let config = format!(
        r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"]
[grpc]
address = "{socket}"
[ttrpc]
address = "{socket}.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
# Where root may not lower it.
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{base}/cni"
"#
    );
    fs::write(scope.base.join("config.toml"), config)?;
    let [high, low] = id.to_be_bytes();
    let bridge = &scope.bridge;
    let network = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": bridge,
        "plugins": [
            {
                "type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": format!("{base}/ipam"),
                    "ranges": [
                        [{"subnet": format!("10.{}.{low}.0/24", high % 99 + 1)}],
                        [{"subnet": format!("fd{high:02x}:{low:02x}01::/64")}],
                    ],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    fs::create_dir(scope.base.join("cni"))?;
    fs::write(scope.base.join("cni/10-bench.conflist"), network.to_string())?;
    Ok(())
}

/// busybox that sleeps: Debian has no package of the usual one.
fn make_pause_image(archive: &Path) -> Result<()> {
    let layout = archive.with_extension("layout");
    let run = |program: &str, arguments: &[&str]| -> Result<()> {
        let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
        ensure!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    let layout = layout.display().to_string();
    run("cp", &["-a", &fixture().images().join("busybox").display().to_string(), &layout])?;
    let image = format!("{layout}:latest");
    run("umoci", &["config", "--image", &image, "--config.cmd", "sleep", "--config.cmd", "1000000"])?;
    let target = format!("docker-archive:{}:{PAUSE}", archive.display());
    run("skopeo", &["--insecure-policy", "copy", "--quiet", &format!("oci:{image}"), &target])
}

fn ctr(socket: &Path, arguments: &[&str]) -> Result<()> {
    let output = Command::new("ctr").arg("--address").arg(socket).args(arguments).output().context("ctr")?;
    ensure!(output.status.success(), "ctr {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
