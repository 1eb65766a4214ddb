//! `features`: what this runtime can do, whatever the kernel beneath it can.

use serde_json::json;

use super::{OCI_VERSION, Result, write_json};

const MOUNT_OPTIONS: &str = "async atime bind defaults dev diratime dirsync exec idmap iversion lazytime loud mand \
    noatime nodev nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private \
    ratime rbind rdev rdiratime relatime remount rexec ridmap rnoatime rnodev rnodiratime rnoexec rnorelatime \
    rnostrictatime rnosuid rnosymfollow ro rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow \
    runbindable rw shared silent slave strictatime suid symfollow sync tmpcopyup unbindable";

const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP \
    LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO \
    SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE \
    AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF \
    CHECKPOINT_RESTORE";

const ARCHITECTURES: &str = "X86 X86_64 X32 ARM AARCH64 MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PPC PPC64 \
    PPC64LE S390 S390X PARISC PARISC64 RISCV64";

const ACTIONS: &str = "ALLOW ERRNO KILL KILL_PROCESS KILL_THREAD LOG NOTIFY TRACE TRAP";

const OPERATORS: &str = "EQ GE GT LE LT MASKED_EQ NE";

const FLAGS: &str = "TSYNC LOG SPEC_ALLOW WAIT_KILLABLE_RECV";

const MODES: &str = "DEFAULT BIND INTERLEAVE WEIGHTED_INTERLEAVE PREFERRED PREFERRED_MANY LOCAL";

pub(super) fn features() -> Result<()> {
    let words = |prefix: &str, list: &str| {
        list.split_whitespace().map(|word| format!("{prefix}{word}")).collect::<Vec<_>>()
    };
    write_json(&json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": words("", MOUNT_OPTIONS),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": words("CAP_", CAPABILITIES),
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": true },
            "seccomp": {
                "enabled": true,
                "actions": words("SCMP_ACT_", ACTIONS),
                "operators": words("SCMP_CMP_", OPERATORS),
                "archs": words("SCMP_ARCH_", ARCHITECTURES),
                "knownFlags": words("SECCOMP_FILTER_FLAG_", FLAGS),
                "supportedFlags": words("SECCOMP_FILTER_FLAG_", FLAGS),
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "memoryPolicy": {
                "modes": words("MPOL_", MODES),
                "flags": words("MPOL_F_", "NUMA_BALANCING RELATIVE_NODES STATIC_NODES"),
            },
            "mountExtensions": { "idmap": { "enabled": true } },
            "netDevices": { "enabled": true },
        },
        "annotations": {
            "io.sampan.runtime.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.runc.checkpoint.enabled": "true",
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::Options;

    #[test]
    fn every_mount_option_is_understood() {
        for option in MOUNT_OPTIONS.split_whitespace() {
            let parsed = Options::parse([&option.to_owned()]).unwrap();
            // Words that belong to every file system go to it as they are.
            let of_kernel = ["async", "dirsync", "lazytime", "mand", "nolazytime", "nomand", "sync"];
            assert!(parsed.data.is_empty() || of_kernel.contains(&option), "{option}");
        }
    }

    #[test]
    fn every_capability_and_architecture_is_known() {
        for name in CAPABILITIES.split_whitespace() {
            serde_json::from_value::<oci_spec::runtime::Capability>(json!(format!("CAP_{name}"))).unwrap();
        }
        for name in ARCHITECTURES.split_whitespace() {
            let profile =
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": [format!("SCMP_ARCH_{name}")] });
            let profile: oci_spec::runtime::LinuxSeccomp = serde_json::from_value(profile).unwrap();
            // The library in use may be older than the name; then it says so.
            let _ = crate::seccomp::compile(&profile);
        }
    }
}
