//! Which mounts of a container are the host's, and what the host has for them when the container comes back.
//!
//! CRIU makes a container's own file systems anew: proc, tmpfs, devpts and the like. A mount whose file system is mounted
//! on the host too comes from there, by a mount of the configuration or by masking. The root is neither: it is a mount
//! that is made by others and given to CRIU.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::{Error, Result, at};
use crate::beneath;
use crate::cgroup::Cgroup;
use crate::init::cgroup_directory;
use crate::mountinfo::{self, Entry};

/// A mount of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct External {
    /// Where it is in the container.
    pub(super) path: PathBuf,
    origin: Origin,
}

/// Where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Origin {
    /// It masks a file.
    Null,
    /// The mount of the configuration with this destination, or something mounted below that.
    Mount { destination: PathBuf, below: PathBuf },
}

/// A mount, as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MountPoint {
    id: u64,
    device: String,
    root: PathBuf,
    path: PathBuf,
    kind: String,
}

/// The mounts of a process.
pub(super) fn of_process(pid: &str) -> Result<Vec<MountPoint>> {
    let path = format!("/proc/{pid}/mountinfo");
    let text = std::fs::read_to_string(&path).map_err(at(path))?;
    Ok(text.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<MountPoint> {
    let entry = Entry::parse(line)?;
    let (device, kind) = (entry.device.to_owned(), entry.kind.to_owned());
    Some(MountPoint { id: entry.id, device, root: entry.root(), path: entry.path(), kind })
}

/// Where a mount of the configuration has come to be: its destination may lead over symbolic links.
#[derive(Debug)]
pub(super) struct Made {
    destination: PathBuf,
    id: u64,
}

/// Finds the configuration's mounts in a running container.
pub(super) fn made(spec: &Spec, pid: i32) -> Result<Vec<Made>> {
    let path = format!("/proc/{pid}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::openat(CWD, &path, flags, Mode::empty()).map_err(|errno| at(&path)(errno.into()))?;
    let mut found = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        // What the container has covered or taken away meanwhile is not among its mounts.
        let Ok(Some(place)) = beneath::find(&root, mount.destination()) else { continue };
        let id = mountinfo::id_of(&place).map_err(|errno| at(mount.destination())(errno.into()))?;
        found.push(Made { destination: mount.destination().clone(), id });
    }
    Ok(found)
}

/// The host's mounts among a container's.
pub(super) fn externals(
    of_container: &[MountPoint],
    of_host: &[MountPoint],
    made: &[Made],
) -> Result<Vec<External>> {
    let on_host: HashSet<&str> = of_host.iter().map(|mount| mount.device.as_str()).collect();
    let root = of_container.iter().find(|mount| mount.path == Path::new("/"));
    let root = root.map(|mount| mount.device.as_str());
    let is_external = |mount: &&MountPoint| match Some(mount.device.as_str()) == root {
        // A volume may lie on the root's file system.
        true => mount.path != Path::new("/") && made.iter().any(|made| made.id == mount.id),
        false => on_host.contains(mount.device.as_str()),
    };
    let places: Vec<(&Path, &Made)> = made
        .iter()
        .filter_map(|made| {
            Some((of_container.iter().find(|mount| mount.id == made.id)?.path.as_path(), made))
        })
        .collect();
    of_container.iter().filter(is_external).map(|mount| external(mount, &places)).collect()
}

fn external(mount: &MountPoint, places: &[(&Path, &Made)]) -> Result<External> {
    let path = mount.path.clone();
    if mount.kind == "devtmpfs" && mount.root == Path::new("/null") {
        return Ok(External { path, origin: Origin::Null });
    }
    let around = places.iter().filter(|(place, _)| *place != Path::new("/") && path.starts_with(place));
    let nearest = around.max_by_key(|(place, _)| place.components().count());
    let (place, made) = nearest.ok_or_else(|| Error::UnknownMount { path: path.clone() })?;
    let below = path.strip_prefix(place).unwrap_or(Path::new("")).to_owned();
    Ok(External { path, origin: Origin::Mount { destination: made.destination.clone(), below } })
}

/// What the host has for such a mount of a container with this configuration.
pub(super) fn source(external: &External, spec: &Spec, bundle: &Path, cgroup: &Cgroup) -> Result<PathBuf> {
    let missing = || Error::NoSource { path: external.path.clone() };
    let (destination, below) = match &external.origin {
        Origin::Null => return Ok("/dev/null".into()),
        Origin::Mount { destination, below } => (destination, below),
    };
    let mounts = spec.mounts().iter().flatten();
    // The last one is on top.
    let mount = mounts.rev().find(|mount| mount.destination() == destination).ok_or_else(missing)?;
    let of = |root: &Path| if below.as_os_str().is_empty() { root.to_owned() } else { root.join(below) };
    match (mount.typ().as_deref(), mount.source()) {
        (Some("cgroup" | "cgroup2"), _) => cgroup_directory(cgroup, below).ok_or_else(missing),
        // A pod on the host's network or IPC has the host's own.
        (Some("sysfs"), _) => Ok(of(Path::new("/sys"))),
        (Some("mqueue"), _) => Ok(of(Path::new("/dev/mqueue"))),
        (_, Some(source)) => Ok(of(&bundle.join(source))),
        (_, None) => Err(missing()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:6 / /dev rw,relatime - devtmpfs devtmpfs rw
24 22 0:20 / /run rw,nosuid - tmpfs tmpfs rw
25 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
26 22 0:60 / /var/lib/sampan/snapshots/active/c/merged rw - overlay overlay rw";

    const CONTAINER: &str = "\
69 45 0:60 / / rw,relatime - overlay overlay rw
70 69 0:41 / /proc rw,relatime - proc proc rw
71 69 0:42 / /dev rw,nosuid - tmpfs tmpfs rw
75 69 0:45 / /sys ro - sysfs sysfs rw
77 75 0:26 /sampan/p/c /sys/fs/cgroup ro - cgroup2 cgroup rw
78 69 0:20 /sampan/pods/p/hosts /etc/hosts rw - tmpfs tmpfs rw
79 69 254:0 /data /run/my\\040data rw shared:3 - ext4 /dev/vda rw
80 79 0:20 /x /run/my\\040data/below rw - tmpfs tmpfs rw
87 70 0:6 /null /proc/keys rw - devtmpfs devtmpfs rw
94 70 0:41 /sys /proc/sys ro - proc proc rw";

    fn table(text: &str) -> Vec<MountPoint> {
        let table: Vec<_> = text.lines().filter_map(parse).collect();
        assert_eq!(table.len(), text.lines().count());
        table
    }

    fn made() -> Vec<Made> {
        let made = |destination: &str, id| Made { destination: destination.into(), id };
        vec![
            made("/proc", 70),
            made("/dev", 71),
            made("/sys", 75),
            made("/sys/fs/cgroup", 77),
            made("/etc/hosts", 78),
            made("/var/run/my data", 79),
        ]
    }

    fn mount(path: &str, destination: &str, below: &str) -> External {
        let origin = Origin::Mount { destination: destination.into(), below: below.into() };
        External { path: path.into(), origin }
    }

    #[test]
    fn mounts_of_the_host_are_told_from_a_containers_own() {
        let found = externals(&table(CONTAINER), &table(HOST), &made()).unwrap();
        let expected = [
            mount("/sys/fs/cgroup", "/sys/fs/cgroup", ""),
            mount("/etc/hosts", "/etc/hosts", ""),
            mount("/run/my data", "/var/run/my data", ""),
            mount("/run/my data/below", "/var/run/my data", "below"),
            External { path: "/proc/keys".into(), origin: Origin::Null },
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_mount_of_the_host_that_nobody_asked_for_is_refused() {
        let table_of_container =
            table("69 45 0:60 / / rw - overlay o rw\n70 69 254:0 /x /mnt rw - ext4 e rw");
        let error = externals(&table_of_container, &table(HOST), &[]).unwrap_err();
        assert!(error.to_string().contains("/mnt"), "{error}");
    }

    #[test]
    fn a_volume_on_the_file_system_of_the_root_is_the_hosts() {
        let of_container = table("69 45 254:0 /rootfs / rw - ext4 e rw\n70 69 254:0 /x /mnt rw - ext4 e rw");
        let made = [Made { destination: "/mnt".into(), id: 70 }];
        assert_eq!(externals(&of_container, &table(HOST), &made).unwrap(), [mount("/mnt", "/mnt", "")]);
    }

    #[test]
    fn sources_are_those_of_the_new_configuration() {
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.2.0",
            "mounts": [
                {"destination": "/data", "type": "bind", "source": "/old"},
                {"destination": "/data", "type": "bind", "source": "/srv/data"},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
            ],
        }))
        .unwrap();
        let cgroup = Cgroup::new("/sampan-test/c").unwrap();
        let of = |external: &External| source(external, &spec, Path::new("/bundle"), &cgroup);
        assert_eq!(of(&mount("/data", "/data", "")).unwrap(), Path::new("/srv/data"));
        assert_eq!(of(&mount("/data/x", "/data", "x")).unwrap(), Path::new("/srv/data/x"));
        assert_eq!(of(&mount("/sys", "/sys", "")).unwrap(), Path::new("/sys"));
        assert!(of(&mount("/other", "/other", "")).unwrap_err().to_string().contains("/other"));
    }
}
