//! Kernel parameters of a container's own namespaces.
//!
//! Only parameters that belong to a namespace of the container are written, through a procfs that
//! is mounted nowhere: whatever is at `/proc` has no say in where a write goes.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{OFlags, ResolveFlags};
use rustix::mount::MountAttrFlags;

use super::{Error, Result, namespace::Namespaces};
use crate::sys::{self, file, mount::Context};

pub(super) fn set(sysctls: &HashMap<String, String>, namespaces: &Namespaces) -> Result<()> {
    let mut proc = None;
    for (name, value) in sysctls {
        let refused = |reason| Error::SysctlRefused { name: name.clone(), reason };
        let failed = |source| Error::Sysctl { name: name.clone(), source };
        let path = path(name).map_err(refused)?;
        let kind = namespace_of(&path).ok_or_else(|| refused("it doesn't belong to a namespace"))?;
        if !namespaces.has_own(kind) {
            return Err(refused("the container shares the namespace that it belongs to"));
        }
        if value.contains(['\n', '\0']) {
            return Err(refused("its value has more than one line"));
        }
        let proc = match &proc {
            Some(proc) => proc,
            None => proc.insert(private_procfs().map_err(failed)?),
        };
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let opened = file::openat2(proc, &path, OFlags::WRONLY, inside);
        opened.and_then(|opened| file::write(&opened, value.as_bytes())).map_err(failed)?;
    }
    Ok(())
}

fn private_procfs() -> sys::Result<std::os::fd::OwnedFd> {
    Context::open("proc")?.mount(MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC)
}

/// `net.ipv4.ip_forward` or `net/ipv4/conf/eth0.1/forwarding`: the first separator is the one that counts.
fn path(name: &str) -> std::result::Result<PathBuf, &'static str> {
    let dotted = name.find(['.', '/']).is_some_and(|index| name.as_bytes()[index] == b'.');
    let parts: Vec<String> = if dotted {
        name.split('.').map(|part| part.replace('/', ".")).collect()
    } else {
        name.split('/').map(str::to_owned).collect()
    };
    let plain = |part: &String| {
        !matches!(part.as_str(), "" | "." | "..")
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.@:".contains(&byte))
    };
    if parts.len() < 2 || !parts.iter().all(plain) {
        return Err("it isn't a name of a parameter");
    }
    Ok(PathBuf::from("sys").join(parts.iter().collect::<PathBuf>()))
}

fn namespace_of(path: &std::path::Path) -> Option<LinuxNamespaceType> {
    const IPC: [&str; 9] = [
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
        "kernel/shm_rmid_forced",
        "kernel/msg_next_id",
    ];
    let path = path.strip_prefix("sys").ok()?;
    if path.starts_with("net") {
        Some(LinuxNamespaceType::Network)
    } else if path.starts_with("fs/mqueue") || IPC.iter().any(|name| path == std::path::Path::new(name)) {
        Some(LinuxNamespaceType::Ipc)
    } else if path == std::path::Path::new("kernel/domainname") {
        Some(LinuxNamespaceType::Uts)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_separators_are_understood() {
        assert_eq!(path("net.ipv4.ip_forward"), Ok("sys/net/ipv4/ip_forward".into()));
        assert_eq!(path("net/ipv4/conf/eth0.1/forwarding"), Ok("sys/net/ipv4/conf/eth0.1/forwarding".into()));
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding"), Ok("sys/net/ipv4/conf/eth0.1/forwarding".into()));
    }

    #[test]
    fn names_that_are_more_than_names_are_refused() {
        for name in [
            "",
            "net",
            "net..x",
            "net.../x",
            "/net/x",
            "net.a+b",
            "net.a\nb",
            "../x",
            "net/../kernel/core_pattern",
        ] {
            assert!(path(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn only_parameters_of_namespaces_are_known() {
        let kind = |name| namespace_of(&path(name).unwrap());
        assert_eq!(kind("net.core.somaxconn"), Some(LinuxNamespaceType::Network));
        assert_eq!(kind("kernel.shmmax"), Some(LinuxNamespaceType::Ipc));
        assert_eq!(kind("fs.mqueue.msg_max"), Some(LinuxNamespaceType::Ipc));
        for name in
            ["kernel.core_pattern", "vm.overcommit_memory", "kernel.hostname", "fs.file-max", "network.x"]
        {
            assert_eq!(kind(name), None, "{name}");
        }
    }
}
