//! Images sent to a registry, and what other tools say of them there.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use sampan_tests::{eventually_sync, fixture, with_agent};
use serde_json::Value;

use super::SOON;
use super::archive::{inspect, tool};

/// A registry of this test's own: what is pushed goes away with it.
pub(crate) struct Registry {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) address: String,
}

impl Registry {
    pub(crate) fn start() -> Registry {
        let directory = tempfile::Builder::new().prefix("sp-registry-").tempdir().unwrap();
        let owner = std::process::id().to_string();
        let address = script("start", &[directory.path().to_str().unwrap(), "0", &owner]);
        Registry { directory, address }
    }

    fn digest(&self, name: &str) -> String {
        let name = format!("docker://{}/{name}", self.address);
        tool("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &name])
    }

    /// How many requests of this method the registry has noted.
    fn requests(&self, method: &str) -> usize {
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        log.matches(&format!("\"http.request.method\":\"{method}\"")).count()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        script("stop", &[self.directory.path().to_str().unwrap()]);
    }
}

fn script(verb: &str, arguments: &[&str]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/registry.sh");
    let output = Command::new(path).arg(verb).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "registry.sh {verb}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_image_keeps_its_digest_and_only_what_is_missing_is_sent() {
    with_agent(async |agent| {
        let registry = Registry::start();
        let cli = agent.cli();
        for name in ["busybox", "nginx", "busybox-zstd"] {
            let image = super::pulled(agent, name).await;
            let target = format!("{}/one/{name}:1", registry.address);
            cli.ok(&["tag", &image, &target]);
            let pushed = cli.run(&["push", &target]);
            assert_eq!(pushed.code, 0, "{pushed:?}");
            assert!(pushed.stderr.contains(": done"), "{pushed:?}");
            let digest = inspect(agent, &image)["ManifestDigest"].as_str().unwrap().to_owned();
            assert!(pushed.stdout.starts_with(&target) && pushed.stdout.contains(&digest), "{pushed:?}");
            assert_eq!(registry.digest(&format!("one/{name}:1")), digest, "byte for byte");
            let digests = inspect(agent, &target)["RepoDigests"].to_string();
            assert!(digests.contains(&format!("{}/one/{name}@{digest}", registry.address)), "{digests}");
        }
        let before = registry.requests("PUT");
        let again = cli.run(&["push", &format!("{}/one/nginx:1", registry.address)]);
        assert!(again.code == 0 && !again.stderr.contains(": done"), "{again:?}");
        assert!(again.stderr.contains(": exists"), "{again:?}");
        assert_eq!(registry.requests("PUT"), before, "nothing is sent twice");
        // Another repository of the registry: the blobs are taken from the first.
        let other = format!("{}/two/nginx:1", registry.address);
        cli.ok(&["tag", &format!("{}/one/nginx:1", registry.address), &other]);
        let mounted = cli.run(&["push", &other]);
        assert!(mounted.code == 0 && mounted.stderr.contains(": mounted"), "{mounted:?}");
        assert!(!mounted.stderr.contains(": done"), "{mounted:?}");
        assert_eq!(registry.digest("two/nginx:1"), registry.digest("one/nginx:1"));
    })
    .await;
}

/// Debian's containerd, on its own.
pub(crate) struct Containerd {
    directory: tempfile::TempDir,
    process: Child,
}

impl Containerd {
    pub(crate) fn start() -> Containerd {
        let directory = tempfile::Builder::new().prefix("sp-ctd-").tempdir_in("/tmp").unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(
            at("config.toml"),
            "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
        )
        .unwrap();
        let process = Command::new("containerd")
            .arg("--config")
            .arg(at("config.toml"))
            .arg("--root")
            .arg(at("root"))
            .arg("--state")
            .arg(at("state"))
            .arg("--address")
            .arg(at("sock"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("containerd is installed: make setup");
        let containerd = Containerd { directory, process };
        assert!(
            eventually_sync(SOON, || containerd.try_ctr(&["version"]).is_some()),
            "containerd does not serve"
        );
        containerd
    }

    pub(crate) fn try_ctr(&self, arguments: &[&str]) -> Option<String> {
        let output =
            Command::new("ctr").arg("-a").arg(self.directory.path().join("sock")).args(arguments).output();
        let output = output.expect("ctr is installed");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}

/// Debian's podman with storage of its own.
struct Podman {
    directory: tempfile::TempDir,
    cgroup: String,
}

impl Podman {
    fn new() -> Podman {
        let directory = tempfile::Builder::new().prefix("sp-podman-").tempdir_in("/tmp").unwrap();
        Podman { directory, cgroup: format!("/{}", sampan_tests::unique("sampan-test-podman")) }
    }

    /// Pulls and runs an image without a network, and gives what it printed.
    fn run(&self, image: &str, command: &[&str]) -> String {
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        let (root, state) = (at("root"), at("state"));
        let global = ["--root", &root, "--runroot", &state, "--storage-driver", "vfs"];
        // runc, because crun refuses hybrid control groups; limits that any root may set.
        let runtime = ["--runtime", "runc", "--cgroup-manager", "cgroupfs"];
        let limits = ["--ulimit", "nofile=512:512", "--ulimit", "nproc=512:512"];
        let run =
            ["run", "-q", "--rm", "--tls-verify=false", "--network=host", "--cgroup-parent", &self.cgroup];
        tool("podman", &[&global[..], &runtime, &run, &limits, &[image], command].concat())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // podman leaves the parent behind in every hierarchy, and in folders for those that aren't mounted, with a cgroup of
        // conmon's, which ends a moment after its container.
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain([root.to_owned()]) {
            let parent = hierarchy.join(self.cgroup.trim_start_matches('/'));
            let gone = eventually_sync(SOON, || {
                for folder in [parent.join("conmon"), parent.clone()] {
                    // What is no hierarchy has files that are no control files.
                    let _ = std::fs::remove_dir(&folder).or_else(|_| std::fs::remove_dir_all(&folder));
                }
                !parent.exists()
            });
            assert!(gone || std::thread::panicking(), "{} is still there", parent.display());
        }
        // And a mount over its storage.
        let _ = rustix::mount::unmount(
            self.directory.path().join("root/vfs"),
            rustix::mount::UnmountFlags::DETACH,
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_buildah_pushes_we_pull_and_run() {
    with_agent(async |agent| {
        let registry = Registry::start();
        let at = |name: &str| registry.directory.path().join(name).display().to_string();
        let (root, state) = (at("root"), at("state"));
        let storage = ["--root", &root, "--runroot", &state, "--storage-driver", "vfs"];
        let buildah = |arguments: &[&str]| tool("buildah", &[&storage[..], arguments].concat());
        let container = buildah(&["from", "--tls-verify=false", &fixture().image("busybox")]);
        let file = at("file");
        std::fs::write(&file, "added by buildah").unwrap();
        buildah(&["copy", &container, &file, "/made"]);
        buildah(&["config", "--cmd", "cat /made", &container]);
        for format in ["oci", "docker"] {
            let target = format!("{}/buildah/{format}:1", registry.address);
            buildah(&["commit", "-q", "--format", format, &container, &target]);
            buildah(&["push", "-q", "--tls-verify=false", &target]);
            assert_eq!(agent.cli().ok(&["run", "-q", "--rm", &target]), "added by buildah", "{format}");
        }
        buildah(&["rm", "-a"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_image_is_pushed_and_pulled_by_others() {
    with_agent(async |agent| {
        let registry = Registry::start();
        let (cli, image) = (agent.cli(), super::busybox(agent).await);
        cli.ok(&["run", "-q", "--name", "c", &image, "sh", "-c", "echo pushed > /made; rm /bin/vi"]);
        let target = format!("{}/made/here:1", registry.address);
        cli.ok(&["commit", "-c", "CMD cat /made", "c", &target]);
        cli.ok(&["rm", "c"]);
        cli.ok(&["push", "-q", &target]);
        let remote = format!("docker://{target}");
        let seen: Value =
            serde_json::from_str(&tool("skopeo", &["inspect", "--tls-verify=false", &remote])).unwrap();
        assert_eq!(
            seen["Layers"].as_array().unwrap().len(),
            inspect(agent, &target)["RootFS"]["Layers"].as_array().unwrap().len()
        );
        let config = tool("skopeo", &["inspect", "--tls-verify=false", "--config", &remote]);
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["config"]["Cmd"], serde_json::json!(["/bin/sh", "-c", "cat /made"]));

        let containerd = Containerd::start();
        let pulled =
            containerd.try_ctr(&["images", "pull", "--plain-http", "--snapshotter", "native", &target]);
        assert!(pulled.is_some(), "containerd pulls and unpacks it");
        let listed = containerd.try_ctr(&["images", "list"]).unwrap();
        assert!(listed.contains(&registry.digest("made/here:1")), "{listed}");
        let cgroup = sampan_tests::unique("sampan-test-ctr");
        let run = ["run", "--rm", "--snapshotter", "native", "--cgroup", &cgroup, &target, "c"];
        assert_eq!(containerd.try_ctr(&run).as_deref(), Some("pushed\n"), "containerd runs it");
        drop(containerd);

        let podman = Podman::new();
        assert_eq!(podman.run(&target, &[]), "pushed");
        let vi = podman.run(&target, &["sh", "-c", "test -e /bin/vi || echo gone"]);
        assert_eq!(vi, "gone", "what was removed is not there");
        let copy = registry.directory.path().join("copy");
        let to = format!("oci:{}:x", copy.display());
        tool("skopeo", &["--insecure-policy", "copy", "-q", "--src-tls-verify=false", &remote, &to]);
        let copied = tool("skopeo", &["inspect", "--format", "{{.Digest}}", &to]);
        assert_eq!(copied, registry.digest("made/here:1"), "a copy has the same digest");

        // And we ourselves, from nothing.
        cli.ok(&["rmi", "-f", &target]);
        assert_eq!(cli.ok(&["run", "-q", "--rm", &target]), "pushed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_cannot_be_says_why() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), super::busybox(agent).await);
        let missing = cli.run(&["push", &format!("{}/not/here:1", fixture().address())]);
        assert!(missing.code == 1 && missing.stderr.contains("not/here"), "{missing:?}");
        // Nobody listens there.
        cli.ok(&["tag", &image, "127.0.0.1:1/x/y:1"]);
        let refused = cli.run(&["push", "127.0.0.1:1/x/y:1"]);
        assert!(refused.code == 1 && refused.stderr.contains("127.0.0.1:1"), "{refused:?}");
    })
    .await;
}
