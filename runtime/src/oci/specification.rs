//! `spec`: a configuration to begin with, for a shell in a terminal.

use serde_json::{Value, json};

use super::{Error, OCI_VERSION, Result, arguments};
use crate::cgroup::{self, Layout};

pub(super) fn write(arguments: &arguments::Spec) -> Result<()> {
    let path = arguments.bundle.join("config.json");
    if path.exists() {
        return Err(Error::refused(format!("File {} exists. Remove it first", path.display())));
    }
    // As runc has it: callers add the namespace where they want it on the others.
    let own_cgroups = matches!(cgroup::layout(), Ok(Layout::V2));
    let mut spec = specification();
    if arguments.rootless {
        for_user(&mut spec);
    }
    if own_cgroups && let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    let text = serde_json::to_string_pretty(&spec)
        .map_err(|source| Error::Json { path: path.display().to_string(), source })?;
    super::write_whole(&path, format!("{text}\n").as_bytes())
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

fn namespaces(kinds: &[&str]) -> Value {
    kinds.iter().map(|kind| json!({ "type": kind })).collect()
}

fn specification() -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "sampan",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": namespaces(&["pid", "network", "ipc", "uts", "mount"]),
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
                "/sys/devices/virtual/powercap"
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// In a user namespace of the caller's own, without what it may not do there.
fn for_user(spec: &mut Value) {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let linux = &mut spec["linux"];
    linux["uidMappings"] = json!([{ "containerID": 0, "hostID": uid, "size": 1 }]);
    linux["gidMappings"] = json!([{ "containerID": 0, "hostID": gid, "size": 1 }]);
    linux["namespaces"] = namespaces(&["pid", "ipc", "uts", "mount", "user"]);
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        for mount in mounts.iter_mut() {
            match mount["destination"].as_str() {
                Some("/dev/pts") => {
                    if let Some(options) = mount["options"].as_array_mut() {
                        options.retain(|option| option != "gid=5");
                    }
                }
                Some("/sys") => {
                    *mount =
                        self::mount("/sys", "none", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"]);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut spec = specification();
        let parsed: oci_spec::runtime::Spec = serde_json::from_value(spec.clone()).unwrap();
        assert_eq!(parsed.process().as_ref().unwrap().terminal(), Some(true));
        for_user(&mut spec);
        serde_json::from_value::<oci_spec::runtime::Spec>(spec).unwrap();
    }
}
