//! Docker, containerd and podman as callers: each runs, enters, pauses, limits and stops containers through this runtime.
//!
//! Every caller works on folders, sockets and a cgroup of its own, and leaves nothing of them. No network is made for a
//! container. Needs Debian's docker.io, containerd, podman and skopeo, and the test image of busybox.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sampan_runtime::cgroup::Cgroup;

use crate::fixture::{DEADLINE, Done, RUNTIME, eventually};

/// What every image here is called.
const IMAGE: &str = "localhost/busybox:test";

/// The layout that images are loaded from, made if it is missing.
fn layout() -> PathBuf {
    let images =
        std::env::var_os("SAMPAN_TEST_IMAGES").unwrap_or_else(|| "/var/cache/sampan-test-images".into());
    let layout = Path::new(&images).join("busybox");
    if !layout.join("index.json").exists() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/images/make-images.sh");
        assert!(
            Command::new(script).arg(&images).arg("busybox").status().unwrap().success(),
            "make the image"
        );
    }
    layout
}

/// A folder, a cgroup, and a daemon where there is one. All gone in the end.
struct Place {
    dir: tempfile::TempDir,
    cgroup: String,
    daemon: Option<Child>,
}

impl Place {
    fn new(caller: &str) -> Place {
        let cgroup = format!("sampan-{caller}-{}", std::process::id());
        Place { dir: tempfile::tempdir().unwrap(), cgroup, daemon: None }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn start(&mut self, command: &mut Command) {
        let log = fs::File::create(self.path("log")).unwrap();
        command.env("HOME", self.dir.path()).stdin(Stdio::null());
        let command = command.stdout(log.try_clone().unwrap()).stderr(log);
        self.daemon = Some(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")));
    }

    /// The image as an archive of the kind that skopeo calls `transport`.
    fn archive(&self, transport: &str) -> String {
        let archive = self.path("busybox.tar");
        let source = format!("oci:{}", layout().display());
        let target = format!("{transport}:{archive}:{IMAGE}");
        done(Command::new("skopeo").args(["copy", "--quiet", &source, &target])).success();
        archive
    }

    /// A control file of the only container, by its name in version 2 and in version 1.
    fn control(&self, v2: &str, v1: &str) -> String {
        let paths = Cgroup::new(&self.cgroup).unwrap().paths();
        let (parent, file) = match paths.get("unified") {
            Some(path) => (path.clone(), v2),
            None => (paths[v1.split('.').next().unwrap()].clone(), v1),
        };
        let below = fs::read_dir(&parent).unwrap().filter_map(|entry| entry.ok()).map(|entry| entry.path());
        let mut below = below.filter(|path| path.is_dir() && !path.ends_with("conmon"));
        let text = fs::read_to_string(below.next().expect("a container").join(file)).unwrap();
        text.trim().to_owned()
    }
}

impl Place {
    /// Those who were told of the folder: shims and monitors, which outlive their daemon.
    fn kill_all(&self) {
        let own = self.dir.path().to_str().unwrap();
        for entry in fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()) {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(own) {
                // One that has gone meanwhile is what is wanted.
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let pid = rustix::process::Pid::from_child(daemon);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = daemon.wait();
        }
        self.kill_all();
        // What a daemon that has gone leaves: mounts of its own, and the cgroup above its containers'.
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own = |line: &&str| line.contains(self.dir.path().to_str().unwrap());
        for target in table.lines().filter(own).filter_map(|line| line.split(' ').nth(4)) {
            let _ = Command::new("umount").args(["-l", target]).status();
        }
        let cgroup = Cgroup::new(&self.cgroup).unwrap();
        let killed = cgroup.kill();
        let removed = cgroup.remove(DEADLINE);
        // podman makes folders for hierarchies that aren't mounted, too.
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir_all(hierarchy.path().join(&self.cgroup));
        }
        if !std::thread::panicking() {
            killed.unwrap();
            removed.unwrap();
        }
    }
}

fn done(command: &mut Command) -> Done {
    let output = command.stdin(Stdio::null()).output();
    Done::of(output.unwrap_or_else(|error| panic!("{command:?}: {error}")))
}

/// Both parts of what a command wrote, for texts that callers put where they like.
fn told(done: &Done) -> String {
    format!("{}{}", done.stdout, done.stderr)
}

#[test]
fn docker_runs_containers_with_it() {
    let mut place = Place::new("docker");
    fs::write(place.path("daemon.json"), "{}").unwrap();
    let socket = format!("unix://{}", place.path("sock"));
    let mut daemon = Command::new("dockerd");
    daemon.args(["--iptables=false", "--ip-masq=false", "--bridge=none", "--storage-driver=vfs"]);
    for (option, name) in [
        ("--config-file", "daemon.json"),
        ("--data-root", "data"),
        ("--exec-root", "exec"),
        ("--pidfile", "pid"),
    ] {
        daemon.args([option, &place.path(name)]);
    }
    daemon.args(["--host", &socket, "--cgroup-parent", &format!("/{}", place.cgroup)]);
    daemon.args(["--add-runtime", &format!("sampan={RUNTIME}")]);
    place.start(&mut daemon);
    let docker = |arguments: &[&str]| {
        done(Command::new("docker").env("DOCKER_HOST", &socket).env_remove("DOCKER_CONTEXT").args(arguments))
    };
    eventually("dockerd answers", || docker(&["version"]).code == 0);
    docker(&["load", "--quiet", "--input", &place.archive("docker-archive")]).success();
    let run = |options: &[&str], command: &[&str]| {
        let mut all = vec!["run", "--runtime", "sampan", "--network", "none"];
        all.extend(options);
        all.push(IMAGE);
        all.extend(command);
        docker(&all)
    };
    let once = run(&["--rm"], &["sh", "-c", "echo out; exit 42"]);
    assert_eq!((once.code, once.stdout.as_str()), (42, "out\n"), "{once:?}");
    let missing = run(&["--rm"], &["nope"]);
    assert_eq!(missing.code, 127, "{missing:?}");
    assert_eq!(run(&["--rm"], &["/etc"]).code, 126);
    let user = run(&["--rm", "-t", "--read-only", "--user", "1000:1000", "--cap-drop", "all"], &["tty"]);
    assert_eq!((user.code, user.stdout.trim()), (0, "/dev/pts/0"), "{user:?}");

    run(&["--detach", "--name", "first", "--memory", "64m", "--pids-limit", "50"], &["sleep", "1000"])
        .success();
    let exec = docker(&["exec", "first", "sh", "-c", "echo in; exit 7"]);
    assert_eq!((exec.code, exec.stdout.as_str()), (7, "in\n"), "{exec:?}");
    assert!(told(&docker(&["exec", "first", "nope"])).contains("executable file not found in $PATH"));
    let status = || docker(&["inspect", "--format", "{{.State.Status}}", "first"]).success();
    docker(&["pause", "first"]).success();
    assert_eq!(status(), "paused\n");
    docker(&["unpause", "first"]).success();
    assert_eq!(status(), "running\n");
    docker(&["update", "--memory", "32m", "--memory-swap", "64m", "--pids-limit", "20", "first"]).success();
    assert_eq!(place.control("memory.max", "memory.limit_in_bytes"), (32 << 20).to_string());
    assert_eq!(place.control("pids.max", "pids.max"), "20");
    docker(&["exec", "first", "sh", "-c", "echo x >/dev/null"]).success();
    assert!(docker(&["top", "first"]).success().contains("sleep 1000"));
    docker(&["stop", "--time", "1", "first"]).success();
    let code = || docker(&["inspect", "--format", "{{.State.ExitCode}}", "first"]).success();
    assert_eq!(code(), "137\n");
    docker(&["start", "first"]).success();
    docker(&["kill", "--signal", "KILL", "first"]).success();
    eventually("it has ended", || status() == "exited\n");
    docker(&["rm", "first"]).success();
}

#[test]
fn containerd_runs_containers_with_it() {
    let mut place = Place::new("containerd");
    let text = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
        place.path("root"),
        place.path("state"),
        place.path("sock")
    );
    fs::write(place.path("config.toml"), text).unwrap();
    place.start(Command::new("containerd").args(["--config", &place.path("config.toml")]));
    let namespace = place.cgroup.clone();
    let ctr = |arguments: &[&str]| {
        done(
            Command::new("ctr")
                .args(["--address", &place.path("sock"), "--namespace", &namespace])
                .args(arguments),
        )
    };
    eventually("containerd answers", || ctr(&["version"]).code == 0);
    ctr(&["image", "import", "--snapshotter", "native", &place.archive("oci-archive")]);
    let image = ctr(&["image", "ls", "-q"]).success().trim().to_owned();
    let run = |options: &[&str], id: &str, command: &[&str]| {
        let mut all = vec!["run", "--snapshotter", "native", "--runtime", "io.containerd.runc.v2"];
        all.extend(["--runc-binary", RUNTIME]);
        all.extend(options);
        all.extend([image.as_str(), id]);
        all.extend(command);
        ctr(&all)
    };
    let once = run(&["--rm"], "once", &["sh", "-c", "echo out; exit 42"]);
    assert_eq!((once.code, once.stdout.as_str()), (42, "out\n"), "{once:?}");
    let missing = run(&["--rm"], "missing", &["nope"]);
    assert!(
        missing.code != 0 && told(&missing).contains("executable file not found in $PATH"),
        "{missing:?}"
    );

    run(&["--detach", "--memory-limit", "67108864"], "first", &["sleep", "1000"]).success();
    assert_eq!(place.control("memory.max", "memory.limit_in_bytes"), (64 << 20).to_string());
    let exec = ctr(&["task", "exec", "--exec-id", "e", "first", "sh", "-c", "echo in; exit 7"]);
    assert_eq!((exec.code, exec.stdout.as_str()), (7, "in\n"), "{exec:?}");
    let shows = |state: &str| {
        let list = ctr(&["task", "ls"]).success();
        list.lines().any(|line| line.starts_with("first") && line.contains(state))
    };
    ctr(&["task", "pause", "first"]).success();
    assert!(shows("PAUSED"));
    ctr(&["task", "resume", "first"]).success();
    assert!(shows("RUNNING"));
    assert!(ctr(&["task", "metrics", "first"]).success().contains("67108864"));
    ctr(&["task", "kill", "--signal", "KILL", "first"]).success();
    eventually("it has ended", || shows("STOPPED"));
    let removed = ctr(&["task", "rm", "first"]);
    assert!(told(&removed).contains("code 137"), "{removed:?}");
    ctr(&["container", "rm", "first"]).success();
}

#[test]
fn podman_runs_containers_with_it() {
    let place = Place::new("podman");
    let podman = |arguments: &[&str]| {
        let mut command = Command::new("podman");
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.args([option, &place.path(name)]);
        }
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
        done(command.args(["--runtime", RUNTIME]).args(arguments))
    };
    podman(&["load", "--quiet", "--input", &place.archive("oci-archive")]).success();
    let parent = format!("/{}", place.cgroup);
    let run = |options: &[&str], command: &[&str]| {
        let mut all = vec!["run", "--network", "none", "--cgroup-parent", &parent];
        // Its defaults are above what this machine may allow.
        all.extend(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
        all.extend(options);
        all.push(IMAGE);
        all.extend(command);
        podman(&all)
    };
    let once = run(&["--rm"], &["sh", "-c", "echo out; exit 42"]);
    assert_eq!((once.code, once.stdout.as_str()), (42, "out\n"), "{once:?}");
    assert_eq!(run(&["--rm"], &["nope"]).code, 127);
    assert_eq!(run(&["--rm"], &["/etc"]).code, 126);
    let mapping = ["--rm", "--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
    let mapped = run(&mapping, &["cat", "/proc/self/uid_map"]);
    assert!(mapped.stdout.contains("100000"), "{mapped:?}");

    run(&["--detach", "--name", "first", "--memory", "64m", "--pids-limit", "50"], &["sleep", "1000"])
        .success();
    let exec = podman(&["exec", "first", "sh", "-c", "echo in; exit 7"]);
    assert_eq!((exec.code, exec.stdout.as_str()), (7, "in\n"), "{exec:?}");
    assert_eq!(podman(&["exec", "first", "nope"]).code, 127);
    assert_eq!(podman(&["exec", "-t", "first", "tty"]).success().trim(), "/dev/pts/0");
    let status = || podman(&["inspect", "--format", "{{.State.Status}}", "first"]).success();
    podman(&["pause", "first"]).success();
    assert_eq!(status(), "paused\n");
    podman(&["unpause", "first"]).success();
    assert_eq!(status(), "running\n");
    podman(&["update", "--memory", "32m", "first"]).success();
    assert_eq!(place.control("memory.max", "memory.limit_in_bytes"), (32 << 20).to_string());
    // It warns that one second was too short.
    assert_eq!(podman(&["stop", "--time", "1", "first"]).code, 0);
    let code = podman(&["inspect", "--format", "{{.State.ExitCode}}", "first"]).success();
    assert_eq!(code, "137\n");
    podman(&["start", "first"]).success();
    podman(&["kill", "first"]).success();
    eventually("it has ended", || status() == "exited\n");
    podman(&["rm", "first"]).success();
}
