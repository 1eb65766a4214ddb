//! A bundle with a busybox in it and a root of its own for the runtime, both gone in the end.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sampan_runtime::cgroup::Cgroup;
use serde_json::{Value, json};

/// Nothing here takes as long, however loaded the machine is.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) const RUNTIME: &str = env!("CARGO_BIN_EXE_sampan-runtime");

pub(crate) struct Bundle {
    dir: tempfile::TempDir,
    pub(crate) spec: Value,
    /// A name that no other test has.
    pub(crate) id: String,
}

/// What a verb did.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    pub(crate) fn of(output: Output) -> Done {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Done {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Its standard output; a success says nothing on standard error.
    #[track_caller]
    pub(crate) fn success(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{}", self.stdout);
        self.stdout
    }

    /// Its standard error.
    #[track_caller]
    pub(crate) fn failure(self) -> String {
        assert_ne!(self.code, 0, "{} {}", self.stdout, self.stderr);
        self.stderr
    }
}

impl Bundle {
    pub(crate) fn new(args: &[&str]) -> Bundle {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        for name in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "true", "cat", "ls", "id", "sleep", "stat", "env", "tty", "stty", "touch", "uname",
            "readlink",
        ] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let made = Command::new(RUNTIME).arg("spec").arg("--bundle").arg(dir.path()).output().unwrap();
        Done::of(made).success();
        let text = fs::read_to_string(dir.path().join("config.json")).unwrap();
        let mut spec: Value = serde_json::from_str(&text).unwrap();
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(args);
        spec["root"]["readonly"] = json!(false);
        let id = format!("sampan-oci-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Bundle { dir, spec, id }
    }

    pub(crate) fn shell(script: &str) -> Bundle {
        Bundle::new(&["sh", "-c", script])
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn inside(&self, path: &str) -> PathBuf {
        self.dir.path().join("rootfs").join(path)
    }

    /// Changes the configuration at a JSON pointer.
    pub(crate) fn set(mut self, pointer: &str, value: Value) -> Bundle {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.spec.pointer_mut(parent).unwrap()[key] = value;
        self
    }

    pub(crate) fn push(mut self, pointer: &str, value: Value) -> Bundle {
        self.spec.pointer_mut(pointer).unwrap().as_array_mut().unwrap().push(value);
        self
    }

    /// With a user namespace in which root is an ordinary user of the host.
    pub(crate) fn mapped(self) -> Bundle {
        let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        let owned = Command::new("chown").args(["-R", "100000:100000"]).arg(self.inside("")).status();
        assert!(owned.unwrap().success());
        self.push("/linux/namespaces", json!({ "type": "user" }))
            .set("/linux/uidMappings", mapping.clone())
            .set("/linux/gidMappings", mapping)
    }

    /// The cgroup as the machine arranges them, made by systemd where SAMPAN_TEST_CGROUP says so.
    pub(crate) fn cgroup(&self) -> Cgroup {
        match by_systemd() {
            true => Cgroup::new(&format!("system.slice:runc:{}", self.id)).unwrap(),
            false => Cgroup::new(&format!("/{}", self.id)).unwrap(),
        }
    }

    /// A control file, by its name in version 2 and in version 1.
    pub(crate) fn control(&self, v2: &str, v1: &str) -> String {
        let paths = self.cgroup().paths();
        let path = match paths.get("unified") {
            Some(path) => path.join(v2),
            None => paths[v1.split('.').next().unwrap()].join(v1),
        };
        let text = fs::read_to_string(&path);
        text.unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
    }

    pub(crate) fn write(&self) {
        fs::write(self.path().join("config.json"), self.spec.to_string()).unwrap();
    }

    /// A verb with its arguments, under the runtime's global options.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(RUNTIME);
        command.arg("--root").arg(self.path().join("state")).stdin(Stdio::null());
        if by_systemd() {
            command.arg("--systemd-cgroup");
        }
        command.args(arguments);
        command
    }

    pub(crate) fn verb(&self, arguments: &[&str]) -> Done {
        Done::of(self.command(arguments).output().unwrap())
    }

    pub(crate) fn run(&self) -> Done {
        self.write();
        self.verb(&["run", "--bundle", self.path().to_str().unwrap(), &self.id])
    }

    /// The container's process writes to a file: a pipe would be open as long as it lives.
    pub(crate) fn create(&self) -> Done {
        self.write();
        let file = |name: &str| fs::File::create(self.path().join(name)).unwrap();
        let mut command = self.command(&["create", "--bundle", self.path().to_str().unwrap(), &self.id]);
        let code = command.stdout(file("out")).stderr(file("err")).status().unwrap().code().unwrap_or(-1);
        Done { code, stdout: String::new(), stderr: fs::read_to_string(self.path().join("err")).unwrap() }
    }

    pub(crate) fn written(&self) -> String {
        fs::read_to_string(self.path().join("out")).unwrap()
    }

    pub(crate) fn started(self) -> Bundle {
        self.create().success();
        self.verb(&["start", &self.id]).success();
        self
    }

    pub(crate) fn status(&self) -> String {
        let state: Value = serde_json::from_str(&self.verb(&["state", &self.id]).success()).unwrap();
        state["status"].as_str().unwrap().to_owned()
    }

    pub(crate) fn exec(&self, arguments: &[&str]) -> Done {
        let mut all = vec!["exec", self.id.as_str()];
        all.extend(arguments);
        self.verb(&all)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let done = self.verb(&["delete", "--force", &self.id]);
        if std::thread::panicking() {
            return;
        }
        done.success();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.path().to_str().unwrap()), "a mount has got out");
        for path in self.cgroup().paths().values() {
            assert!(!path.exists(), "{} is left", path.display());
        }
    }
}

/// Where systemd is the first process, the same cases run with scopes that it makes.
fn by_systemd() -> bool {
    std::env::var_os("SAMPAN_TEST_CGROUP").is_some_and(|driver| driver == "scope")
}

#[track_caller]
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < DEADLINE, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
