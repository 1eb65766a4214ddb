//! What is started: a root with a static busybox and the configuration beside it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::mount::MountFlags;
use serde_json::{Value, json};

use crate::folder;

pub(crate) const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
pub(crate) const READONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Two namespaces and nothing more.
    Minimal,
    /// What containers usually have.
    Full,
}

impl Kind {
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Kind::Minimal => "Minimal: mount and pid namespace, /proc",
            Kind::Full => "Full: six namespaces, the usual mounts and masks, default seccomp, limits",
        }
    }

    pub(crate) fn namespaces(self) -> &'static [&'static str] {
        match self {
            Kind::Minimal => &["mount", "pid"],
            Kind::Full => &["mount", "pid", "network", "ipc", "uts", "cgroup"],
        }
    }
}

pub(crate) struct Bundle {
    dir: tempfile::TempDir,
    pub(crate) kind: Kind,
}

impl Bundle {
    pub(crate) fn make(kind: Kind) -> Result<Bundle> {
        let bundle = Bundle { dir: tempfile::tempdir().context("make a folder")?, kind };
        for name in ["bin", "proc", "sys", "dev"] {
            folder(&bundle.rootfs().join(name))?;
        }
        // State is kept in memory on any machine that is set up well; the folder goes with this program's mounts.
        let state = bundle.path().join("state");
        folder(&state)?;
        rustix::mount::mount("tmpfs", &state, "tmpfs", MountFlags::empty(), None).context("mount a tmpfs")?;
        let busybox = bundle.rootfs().join("bin/true");
        fs::copy("/bin/busybox", &busybox).context("copy /bin/busybox: apt-get install busybox-static")?;
        let text = configuration(kind)?.to_string();
        fs::write(bundle.path().join("config.json"), text).context("write config.json")?;
        Ok(bundle)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// Of a runtime's own.
    pub(crate) fn state(&self, runtime: &str) -> PathBuf {
        self.dir.path().join("state").join(runtime)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // Or the folder couldn't be removed; that it can't be unmounted will then be told.
        let _ = rustix::mount::unmount(self.path().join("state"), rustix::mount::UnmountFlags::DETACH);
    }
}

fn configuration(kind: Kind) -> Result<Value> {
    let namespaces: Vec<Value> = kind.namespaces().iter().map(|name| json!({ "type": name })).collect();
    let capabilities = json!(["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs", "readonly": false },
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/true"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": { "bounding": capabilities, "permitted": capabilities, "effective": capabilities },
        },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": namespaces },
    });
    if kind == Kind::Full {
        spec["hostname"] = json!("bench");
        spec["mounts"] = usual_mounts();
        let linux = &mut spec["linux"];
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READONLY);
        linux["resources"] = json!({
            "devices": [{ "allow": false, "access": "rwm" }],
            "memory": { "limit": 64 << 20 },
            "cpu": { "shares": 512, "quota": 100_000, "period": 100_000 },
            "pids": { "limit": 64 },
        });
        let profile = sampan_runtime::seccomp::default_profile(&HashSet::new());
        linux["seccomp"] = serde_json::to_value(profile).context("the default profile")?;
    }
    Ok(spec)
}

fn usual_mounts() -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    json!([
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ])
}
