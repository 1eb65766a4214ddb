//! Kernel parameters under /proc/sys/net.
//!
//! The directory shows the namespace of the thread that opens it. A value that
//! is already right is not written, so a read-only /proc/sys does no harm then.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const PROC: &str = "/proc";

/// A parameter that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("set /proc/sys/net/{name} to {value}")]
pub struct Error {
    name: String,
    value: &'static str,
    #[source]
    source: io::Error,
}

/// Sets the parameter `name`, a path below /proc/sys/net.
pub(super) fn set(name: &str, value: &'static str) -> Result<(), Error> {
    set_by(Path::new(PROC), name, value)
}

/// Sets the parameter `name` by the procfs at `procfs`.
pub(super) fn set_by(procfs: &Path, name: &str, value: &'static str) -> Result<(), Error> {
    if get_by(procfs, name).as_deref() == Some(value) {
        return Ok(());
    }
    OpenOptions::new()
        .write(true)
        .open(path(procfs, name))
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| Error { name: name.to_owned(), value, source })
}

/// The value of a parameter; `None` where the kernel has no such one.
pub(super) fn get(name: &str) -> Option<String> {
    get_by(Path::new(PROC), name)
}

fn get_by(procfs: &Path, name: &str) -> Option<String> {
    fs::read_to_string(path(procfs, name)).ok().map(|text| text.trim().to_owned())
}

fn path(procfs: &Path, name: &str) -> PathBuf {
    procfs.join("sys/net").join(name)
}

/// Whether the kernel has IPv6 at all, which is the same in every namespace.
pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf").is_dir()
}

/// Lets the host forward packets of a family.
///
/// A host that forwards IPv6 ignores router advertisements and drops the routes
/// learned from them, unless `accept_ra` is 2: interfaces that listen to
/// advertisements now are first told to go on doing so.
pub(super) fn forward(ipv6: bool) -> Result<(), Error> {
    if !ipv6 {
        return set("ipv4/ip_forward", "1");
    }
    if get("ipv6/conf/all/forwarding").as_deref() == Some("1") {
        return Ok(());
    }
    for entry in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten() {
        let Ok(entry) = entry else { continue };
        let Ok(interface) = entry.file_name().into_string() else {
            continue;
        };
        // New interfaces, such as our bridge, are to go on ignoring them.
        if interface == "all" || interface == "default" {
            continue;
        }
        let name = format!("ipv6/conf/{interface}/accept_ra");
        if get(&name).as_deref() == Some("1") {
            set(&name, "2")?;
        }
    }
    set("ipv6/conf/all/forwarding", "1")
}
