//! A pod for a test: a shim of the built binary with a directory, a socket and cgroups of its own.
//!
//! Whatever the test does, its processes and cgroups are gone when the pod is dropped.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use sampan_runtime::cgroup::Cgroup;
use sampan_runtime::shim::protocol::{Exit, PidMode, Request, Response};
use serde_json::{Value, json};

use crate::client::{Client, DEADLINE};

/// A root file system of busybox and nothing else, shared by all tests; only `/tmp` is written, which is each container's own.
static ROOTFS: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let root = tempfile::tempdir().unwrap();
    for directory in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
        fs::create_dir(root.path().join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.path().join("bin/busybox")).expect("busybox-static is installed");
    for applet in [
        "sh", "sleep", "echo", "cat", "true", "setsid", "dd", "tr", "head", "hostname", "ps", "seq", "yes",
        "tty", "stty", "mkfifo",
    ] {
        symlink("busybox", root.path().join("bin").join(applet)).unwrap();
    }
    fs::write(root.path().join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").unwrap();
    root
});

pub(crate) struct Pod {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) shim: Child,
    cgroup: String,
}

/// How a test's container differs from the usual one.
#[derive(Default)]
pub(crate) struct Variation {
    pub(crate) pid: PidMode,
    pub(crate) resources: Value,
    pub(crate) log: Option<PathBuf>,
    pub(crate) no_log: bool,
    pub(crate) stdin: bool,
    pub(crate) terminal: bool,
}

impl Pod {
    pub(crate) fn new() -> Pod {
        Pod::with(&[])
    }

    pub(crate) fn with(options: &[&str]) -> Pod {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("/sampan-shim-test-{}-{number}", std::process::id());
        let directory = tempfile::tempdir().unwrap();
        let listener = listener(&directory.path().join("shim.sock"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_sampan-runtime"));
        command.args(["shim", "--pod", "test", "--cgroup", &format!("{cgroup}/monitor")]).args(options);
        command.current_dir(directory.path()).stdin(Stdio::from(listener)).stdout(Stdio::null());
        command.stderr(fs::File::create(directory.path().join("shim.log")).unwrap());
        let shim = command.spawn().unwrap();
        Pod { directory, shim, cgroup }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(&self.path("shim.sock"))
    }

    /// A connection that gets events.
    pub(crate) fn subscribe(&self) -> Client {
        let client = self.connect();
        client.done(&Request::Subscribe);
        client
    }

    pub(crate) fn shim_pid(&self) -> i32 {
        self.shim.id() as i32
    }

    pub(crate) fn cgroup_of(&self, container: &str) -> Cgroup {
        Cgroup::new(&format!("{}/{container}", self.cgroup)).unwrap()
    }

    /// Writes a bundle and returns the request that makes its container.
    pub(crate) fn bundle(&self, id: &str, command: &[&str], variation: Variation) -> Request {
        let bundle = self.path(id);
        fs::create_dir_all(&bundle).unwrap();
        let spec = specification(command, &variation);
        fs::write(bundle.join("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        let log = variation.log.unwrap_or_else(|| bundle.join("log"));
        Request::Create {
            id: id.to_owned(),
            bundle: bundle.clone(),
            cgroup: format!("{}/{id}", self.cgroup),
            log: (!variation.no_log).then_some(log),
            pid: variation.pid,
            stdin: variation.stdin,
            terminal: variation.terminal,
            runtime: None,
        }
    }

    pub(crate) fn create(&self, client: &Client, id: &str, command: &[&str], variation: Variation) -> i32 {
        match client.ask(&self.bundle(id, command, variation)) {
            Response::Created { pid } => pid,
            other => panic!("create {id}: {other:?}; {}", self.log()),
        }
    }

    pub(crate) fn start(&self, client: &Client, id: &str) -> i64 {
        match client.ask(&Request::Start { id: id.to_owned() }) {
            Response::Started { started_at, .. } => started_at,
            other => panic!("start {id}: {other:?}; {}", self.log()),
        }
    }

    pub(crate) fn run(&self, client: &Client, id: &str, command: &[&str], variation: Variation) -> i32 {
        let pid = self.create(client, id, command, variation);
        self.start(client, id);
        pid
    }

    /// Runs a shell script to its end.
    pub(crate) fn run_script(&self, id: &str, script: &str, variation: Variation) -> Exit {
        let events = self.subscribe();
        self.run(&self.connect(), id, &["/bin/sh", "-c", script], variation);
        events.exit_of(id)
    }

    /// Starts a process in a container. Descriptor 0 is `/dev/null`, 1 and 2 the same pipe, whose other end is returned.
    pub(crate) fn exec(&self, id: &str, command: &[&str]) -> (Client, OwnedFd) {
        let client = self.connect();
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let process = memory_file(&process(command));
        let null = fs::File::open("/dev/null").unwrap();
        let request = Request::Exec { id: id.to_owned(), exec: "test".to_owned() };
        client.send_with(&request, &[process.as_fd(), null.as_fd(), writer.as_fd(), writer.as_fd()]);
        (client, reader)
    }

    /// A log's lines without their times, which are checked.
    pub(crate) fn lines(&self, id: &str) -> Vec<String> {
        log_lines(&self.path(id).join("log"))
    }

    /// What the shim has to say.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("shim.log")).unwrap()
    }

    /// Waits for the shim's own end.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        eventually("the shim ends", || {
            status = self.shim.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let cgroup = Cgroup::new(&self.cgroup).unwrap();
        if self.shim.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.shim.kill();
        }
        let _ = self.shim.wait();
        let _ = cgroup.kill();
        if let Err(error) = cgroup.remove(Duration::from_secs(10)) {
            assert!(std::thread::panicking(), "left behind: {error}");
        }
    }
}

/// A listening socket as the agent makes it.
pub(crate) fn listener(path: &Path) -> OwnedFd {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(&socket, 16).unwrap();
    socket
}

pub(crate) fn log_lines(path: &Path) -> Vec<String> {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    assert!(text.is_empty() || text.ends_with('\n'), "half a line at the end of the log");
    let line = |line: &str| {
        let (time, rest) = line.split_once(' ').unwrap_or_else(|| panic!("no log line: {line:?}"));
        assert!(time.len() == 30 && time.ends_with('Z') && time.starts_with("20"), "{line:?}");
        rest.to_owned()
    };
    text.lines().map(line).collect()
}

pub(crate) fn memory_file(value: &Value) -> OwnedFd {
    let file = rustix::fs::memfd_create("process", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::io::pwrite(&file, &serde_json::to_vec(value).unwrap(), 0).unwrap();
    file
}

pub(crate) fn process(command: &[&str]) -> Value {
    json!({ "cwd": "/", "args": command, "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } })
}

fn specification(command: &[&str], variation: &Variation) -> Value {
    let mut namespaces = vec![json!({ "type": "mount" }), json!({ "type": "cgroup" })];
    if variation.pid == PidMode::Private {
        namespaces.push(json!({ "type": "pid" }));
    }
    let mut resources = variation.resources.clone();
    if resources.is_null() {
        resources = json!({});
    }
    resources["devices"] = json!([{ "allow": false, "access": "rwm" }]);
    let mut process = process(command);
    process["terminal"] = json!(variation.terminal);
    json!({
        "ociVersion": "1.2.0",
        "process": process,
        "root": { "path": ROOTFS.path(), "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620"] },
            { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"] },
        ],
        "linux": { "namespaces": namespaces, "resources": resources },
    })
}

/// Waits for a condition, which is a level and not an edge.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < DEADLINE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
