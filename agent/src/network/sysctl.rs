//! Kernel parameters under /proc/sys/net.
//!
//! The directory shows the namespace of the thread that opens it. A value that
//! is already right is not written, so a read-only /proc/sys does no harm then.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A parameter that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("set {} to {value}", path.display())]
pub struct Error {
    path: PathBuf,
    value: &'static str,
    #[source]
    source: io::Error,
}

/// Sets the parameter `name`, a path below /proc/sys/net.
pub(super) fn set(name: &str, value: &'static str) -> Result<(), Error> {
    let path = Path::new("/proc/sys/net").join(name);
    if get(name).as_deref() == Some(value) {
        return Ok(());
    }
    OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| Error { path, value, source })
}

/// The value of a parameter; `None` where the kernel has no such one.
pub(super) fn get(name: &str) -> Option<String> {
    fs::read_to_string(Path::new("/proc/sys/net").join(name)).ok().map(|text| text.trim().to_owned())
}

/// Whether the kernel of this namespace has IPv6 at all.
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
