//! A bundle with a busybox in it, and running it to its end.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use sampan_runtime::cgroup::Cgroup;
use sampan_runtime::container::{self, Child, PidNamespace, Report, SpawnOptions, spawn};
use sampan_runtime::exec::{ExecOptions, exec};
use sampan_runtime::mount::MinimalNamespace;
use serde_json::{Value, json};

/// Nothing here takes as long, however loaded the machine is.
const DEADLINE: Duration = Duration::from_secs(30);

static FEW_MOUNTS: OnceLock<MinimalNamespace> = OnceLock::new();

/// From now on containers' mount namespaces begin as a copy of one with few mounts.
pub(crate) fn make_from_few_mounts() {
    FEW_MOUNTS.get_or_init(|| MinimalNamespace::make().unwrap());
    wait_for_threads();
}

/// A thread that has been joined is the kernel's for a moment more, and who clones must be alone.
pub(crate) fn wait_for_threads() {
    let since = Instant::now();
    while fs::read_dir("/proc/self/task").unwrap().count() > 1 {
        assert!(since.elapsed() < DEADLINE, "a thread goes on");
        std::thread::yield_now();
    }
}

/// A directory with `config.json` and `rootfs`, removed in the end.
pub(crate) struct Bundle {
    dir: tempfile::TempDir,
    pub(crate) spec: Value,
    pub(crate) cgroup: String,
}

impl Bundle {
    /// With the mounts, masks and namespaces that a container usually has, running `args`.
    pub(crate) fn new(args: &[&str]) -> Bundle {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        for name in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in
            ["sh", "true", "cat", "ls", "id", "sleep", "stat", "mount", "readlink", "env", "kill", "mkdir"]
        {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // Where systemd is the first process, the same cases run with scopes that it makes.
        let cgroup = match std::env::var_os("SAMPAN_TEST_CGROUP").is_some_and(|driver| driver == "scope") {
            true => format!("system.slice:sampan-test:{}-{number}", std::process::id()),
            false => format!("/sampan-test-{}-{number}", std::process::id()),
        };
        Bundle { dir, spec: spec(args), cgroup }
    }

    pub(crate) fn shell(script: &str) -> Bundle {
        Bundle::new(&["sh", "-c", script])
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path of the host, below the container's root.
    pub(crate) fn inside(&self, path: &str) -> PathBuf {
        self.dir.path().join("rootfs").join(path)
    }

    /// Changes the configuration at a JSON pointer.
    pub(crate) fn set(mut self, pointer: &str, value: Value) -> Bundle {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.spec.pointer_mut(parent).unwrap()[key] = value;
        self
    }

    pub(crate) fn add_mount(mut self, mount: Value) -> Bundle {
        self.spec["mounts"].as_array_mut().unwrap().push(mount);
        self
    }

    pub(crate) fn without_namespace(mut self, kind: &str) -> Bundle {
        self.spec["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|namespace| namespace["type"] != kind);
        self
    }

    pub(crate) fn spawn(&self) -> Container<'_> {
        self.spawn_in(PidNamespace::New)
    }

    pub(crate) fn spawn_in(&self, pid_namespace: PidNamespace<'_>) -> Container<'_> {
        self.spawn_with(pid_namespace, None)
    }

    /// With a mount namespace that begins as a copy of another than the one that is usual.
    pub(crate) fn spawn_from(&self, mounts: BorrowedFd<'_>) -> Container<'_> {
        self.spawn_by(PidNamespace::New, None, Some(mounts))
    }

    fn spawn_with(&self, pid_namespace: PidNamespace<'_>, console: Option<BorrowedFd<'_>>) -> Container<'_> {
        self.spawn_by(pid_namespace, console, FEW_MOUNTS.get().map(AsFd::as_fd))
    }

    fn spawn_by(
        &self,
        pid_namespace: PidNamespace<'_>,
        console: Option<BorrowedFd<'_>>,
        mounts: Option<BorrowedFd<'_>>,
    ) -> Container<'_> {
        fs::write(self.path().join("config.json"), self.spec.to_string()).unwrap();
        let stdio = Stdio::new();
        let options = SpawnOptions {
            bundle: self.path(),
            cgroup: &self.cgroup,
            pid_namespace,
            stdio: stdio.for_child(),
            console,
            users: None,
            mounts,
            command_line: None,
        };
        let child = spawn(&options).unwrap();
        Container { bundle: self, process: Process::new(child, stdio) }
    }

    /// From the creation to the exit.
    pub(crate) fn run(&self) -> Outcome {
        Bundle::run_to_the_end(self.spawn())
    }

    /// The same with a terminal, whose master goes to a socket.
    pub(crate) fn run_with_console(&self, console: BorrowedFd<'_>) -> Outcome {
        Bundle::run_to_the_end(self.spawn_with(PidNamespace::New, Some(console)))
    }

    fn run_to_the_end(container: Container<'_>) -> Outcome {
        let report = container.process.report();
        if report == Report::Ready {
            container.process.child.channel.start().unwrap();
        }
        container.finish(report)
    }

    /// Runs to a success and returns what it wrote.
    pub(crate) fn output(&self) -> String {
        let outcome = self.run();
        assert_eq!(outcome.report, Report::Executed, "{outcome:?}");
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.stdout
    }

    /// Runs to a failure before exec and returns its message and the exit code.
    pub(crate) fn failure(&self) -> (String, i32) {
        self.failure_of(self.spawn())
    }

    /// The same of a container that is on its way.
    pub(crate) fn failure_of(&self, container: Container<'_>) -> (String, i32) {
        let outcome = Bundle::run_to_the_end(container);
        match outcome.report {
            Report::Failed { message, .. } => (message, outcome.code),
            other => panic!("{other:?}, and not a failure: {} {}", outcome.stdout, outcome.stderr),
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let removed = Cgroup::new(&self.cgroup).unwrap().remove(DEADLINE);
        if std::thread::panicking() {
            return;
        }
        removed.unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.path().to_str().unwrap()), "a mount has got out");
    }
}

/// What is left of a process.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The last report.
    pub(crate) report: Report,
    /// 128 and the signal if it was one.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) struct Container<'a> {
    bundle: &'a Bundle,
    pub(crate) process: Process,
}

impl Container<'_> {
    /// Waits for its creation and starts it.
    pub(crate) fn started(self) -> Self {
        assert_eq!(self.process.report(), Report::Ready);
        self.process.child.channel.start().unwrap();
        assert_eq!(self.process.report(), Report::Executed);
        self
    }

    pub(crate) fn exec(&self, process: &Value) -> Outcome {
        let process = self.exec_start(process);
        let report = process.report();
        process.finish(report)
    }

    pub(crate) fn exec_start(&self, process: &Value) -> Process {
        self.try_exec(process).unwrap()
    }

    pub(crate) fn try_exec(&self, process: &Value) -> Result<Process, container::Error> {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, process.to_string().as_bytes()).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let stdio = Stdio::new();
        let child = exec(&ExecOptions {
            pidfd: self.process.child.pidfd.as_fd(),
            container_pid: self.process.child.pid,
            bundle: self.bundle.path(),
            cgroup: &format!("{}/exec-1", self.bundle.cgroup),
            process: file.as_fd(),
            stdio: stdio.for_child(),
            console: None,
            users: None,
            command_line: None,
        })?;
        Ok(Process::new(child, stdio))
    }

    /// Waits until it has exited.
    pub(crate) fn finish(self, report: Report) -> Outcome {
        // The caller has it started by now; what follows Ready is told apart from a failure to create.
        let report = if report == Report::Ready { self.process.report() } else { report };
        self.process.wait(report)
    }

    pub(crate) fn kill(self) -> Outcome {
        pidfd_send_signal(&self.process.child.pidfd, Signal::KILL).unwrap();
        self.process.wait(Report::Executed)
    }
}

pub(crate) struct Process {
    pub(crate) child: Child,
    stdout: File,
    stderr: File,
    waited: std::cell::Cell<bool>,
}

impl Process {
    fn new(child: Child, stdio: Stdio) -> Process {
        let [stdout, stderr] = stdio.into_ours();
        Process { child, stdout, stderr, waited: std::cell::Cell::new(false) }
    }

    /// The next report.
    pub(crate) fn report(&self) -> Report {
        let since = Instant::now();
        loop {
            if let Some(report) = self.child.channel.receive().unwrap() {
                return report;
            }
            let left = DEADLINE.checked_sub(since.elapsed()).expect("a report in time");
            let mut fds = [PollFd::new(&self.child.channel, PollFlags::IN)];
            poll(&mut fds, Some(&left.try_into().unwrap())).unwrap();
        }
    }

    pub(crate) fn finish(self, report: Report) -> Outcome {
        self.wait(report)
    }

    /// Ends the channel as the parent's death would, and waits until the child has noticed.
    pub(crate) fn lose_channel(&self) {
        rustix::net::shutdown(&self.child.channel, rustix::net::Shutdown::Both).unwrap();
        assert!(self.has_exited(DEADLINE), "the child gives up");
    }

    pub(crate) fn has_exited(&self, within: Duration) -> bool {
        let mut fds = [PollFd::new(&self.child.pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&within.try_into().unwrap())).unwrap() == 1
    }

    /// The numbers of those that it has open.
    pub(crate) fn descriptors(&self) -> Vec<String> {
        let directory = fs::read_dir(format!("/proc/{}/fd", self.child.pid)).unwrap();
        let mut names: Vec<String> =
            directory.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Its pid as the container sees it.
    pub(crate) fn inner_pid(&self) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
        line.split_whitespace().last().unwrap().to_owned()
    }

    fn wait(mut self, report: Report) -> Outcome {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.stdout.read_to_string(&mut stdout).unwrap();
        self.stderr.read_to_string(&mut stderr).unwrap();
        assert!(self.has_exited(DEADLINE), "no exit in time");
        Outcome { report, code: self.reap(), stdout, stderr }
    }

    fn reap(&self) -> i32 {
        self.waited.set(true);
        let status = waitid(WaitId::PidFd(self.child.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
        status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.waited.get() {
            let _ = pidfd_send_signal(&self.child.pidfd, Signal::KILL);
            self.reap();
        }
    }
}

/// The null device and two pipes.
struct Stdio {
    null: File,
    stdout: (OwnedFd, OwnedFd),
    stderr: (OwnedFd, OwnedFd),
}

impl Stdio {
    fn new() -> Stdio {
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        Stdio { null: File::open("/dev/null").unwrap(), stdout: pipe(), stderr: pipe() }
    }

    fn for_child(&self) -> [BorrowedFd<'_>; 3] {
        [self.null.as_fd(), self.stdout.1.as_fd(), self.stderr.1.as_fd()]
    }

    fn into_ours(self) -> [File; 2] {
        [self.stdout.0.into(), self.stderr.0.into()]
    }
}

/// The process of an exec that runs a shell script as the container's root.
pub(crate) fn shell_process(script: &str) -> Value {
    process(&["sh", "-c", script])
}

fn process(args: &[&str]) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_KILL"
    ]);
    json!({
        "user": { "uid": 0, "gid": 0 },
        "args": args,
        "env": ["PATH=/bin:/sbin"],
        "cwd": "/",
        "noNewPrivileges": true,
        "capabilities": { "bounding": capabilities, "permitted": capabilities, "effective": capabilities },
        "oomScoreAdj": 100
    })
}

fn spec(args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.1.0",
        "root": { "path": "rootfs", "readonly": false },
        "hostname": "inner",
        "process": process(args),
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }, { "type": "cgroup" }
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "resources": { "pids": { "limit": 64 } }
        }
    })
}

pub(crate) fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

pub(crate) fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    let mut all = vec!["rbind"];
    all.extend(options);
    mount(destination, "bind", source.to_str().unwrap(), &all)
}
