//! Devices of the host that a container gets, with their numbers looked up.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use super::{config::DeviceConfig, spec::HostDevice};
use crate::error::{Error, Result, at};

/// Deeper than any device of a host lies.
const MAX_DEPTH: usize = 16;

/// What a request names: a device, or a folder that stands for all devices in it.
pub(super) fn named(device: &DeviceConfig) -> Result<Vec<HostDevice>> {
    // Links are followed, as /dev/disk/by-id is made of them.
    let metadata = fs::metadata(&device.host_path).map_err(|error| {
        Error::Invalid(format!("device {} of the host: {error}", device.host_path.display()))
    })?;
    if !metadata.is_dir() {
        return Ok(vec![described(device, &metadata)?]);
    }
    let mut devices = Vec::new();
    tree(device, 0, &mut devices)?;
    if devices.is_empty() {
        return Err(Error::Invalid(format!("no device is in {}", device.host_path.display())));
    }
    Ok(devices)
}

fn tree(folder: &DeviceConfig, depth: usize, devices: &mut Vec<HostDevice>) -> Result<()> {
    let path = &folder.host_path;
    if depth > MAX_DEPTH {
        return Err(Error::Invalid(format!("the folders of {} are too deep", path.display())));
    }
    for entry in fs::read_dir(path).map_err(at("read", path))?.flatten() {
        // One that goes away meanwhile is none. Links in a folder name what is elsewhere.
        let Ok(metadata) = entry.metadata() else { continue };
        let below = DeviceConfig {
            container_path: folder.container_path.join(entry.file_name()),
            host_path: entry.path(),
            permissions: folder.permissions.clone(),
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            tree(&below, depth + 1, devices)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            devices.push(described(&below, &metadata)?);
        }
    }
    Ok(())
}

fn described(device: &DeviceConfig, metadata: &fs::Metadata) -> Result<HostDevice> {
    let kind = metadata.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        return Err(Error::Invalid(format!("{} is not a device", device.host_path.display())));
    }
    let number = metadata.rdev();
    Ok(HostDevice {
        path: device.container_path.clone(),
        block: kind.is_block_device(),
        major: i64::from(rustix::fs::major(number)),
        minor: i64::from(rustix::fs::minor(number)),
        mode: metadata.mode() & 0o777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        permissions: device.permissions.clone(),
    })
}

/// The devices of the host but for those of terminals and those that the request names.
pub(super) fn all_of_host(folder: &Path, named: &[HostDevice]) -> Vec<HostDevice> {
    /// What every container has of its own.
    const OWN: [&str; 6] = ["pts", "shm", "mqueue", "fd", "console", "ptmx"];
    let mut devices = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        // One that goes away meanwhile is none.
        let Ok(metadata) = entry.metadata() else { continue };
        if OWN.iter().any(|own| name == *own) || named.iter().any(|device| device.path == path) {
            continue;
        }
        let kind = metadata.file_type();
        if kind.is_dir() {
            devices.extend(all_of_host(&path, named));
        } else if kind.is_char_device() || kind.is_block_device() {
            let config =
                DeviceConfig { container_path: path.clone(), host_path: path, permissions: "rwm".into() };
            devices.extend(described(&config, &metadata));
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(host_path: &str) -> DeviceConfig {
        DeviceConfig {
            container_path: "/dev/x".into(),
            host_path: host_path.into(),
            permissions: "rw".into(),
        }
    }

    #[test]
    fn a_folder_stands_for_the_devices_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("deep")).unwrap();
        fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink("/dev/full", path("link")).unwrap();
        let host_path = folder.path().to_str().unwrap();
        assert!(named(&asked(host_path)).is_err(), "none is in it");
        let number = rustix::fs::makedev(1, 7);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, path("deep/full"), kind, mode, number).unwrap();
        let found = named(&asked(host_path)).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, Path::new("/dev/x/deep/full"));
        assert_eq!((found[0].major, found[0].minor, found[0].permissions.as_str()), (1, 7, "rw"));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        assert_eq!(named(&asked("/dev/null")).unwrap()[0].minor, 3);
        for no_device in ["/etc/passwd", "/no/such"] {
            assert!(matches!(named(&asked(no_device)), Err(Error::Invalid(_))), "{no_device}");
        }
    }
}
