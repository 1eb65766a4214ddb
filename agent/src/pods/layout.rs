//! What a container is made of before its process is: root file system, mounts' sources, volumes, user, bundle.
//!
//! Everything here is on disk when [`lay_out`] returns; what it leaves after a failure, the container's removal takes away.

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};
use sampan_imagestore::Image;
use sampan_runtime::{
    delegate::Runtime,
    seccomp,
    user::{self, User},
    users::UserNamespace,
};

use super::{
    PodId, cdi,
    config::{DeviceConfig, ImageVolume, MountConfig, Propagation, SeccompProfile, Security},
    files,
    record::{ContainerRecord, PodRecord, UserIds},
    spec::{self, HostDevice},
    storage,
};
use crate::{
    context::Context,
    error::{Error, Result, at, chain},
};

/// Prepares the writable layer, mounts the root, resolves the user against it, and writes the bundle. Tells which other
/// runtime is to make the container, if one is.
pub(super) fn lay_out(
    context: &Context,
    pod: &PodRecord,
    mut record: ContainerRecord,
    image: &Image,
    hostname: &str,
) -> Result<(ContainerRecord, Option<Runtime>)> {
    let key = record.id.as_str();
    let snapshots = context.store.snapshots();
    let limit = storage::limit(&record.config.annotations, context.config.runtime.writable_bytes)?;
    let mounts = snapshots.prepare(key, Some(image.chain_id()))?;
    if let Some(bytes) = limit {
        snapshots.limit(key, bytes)?;
    }
    let rootfs = snapshots.directories(key)?.merged;
    let users = users(pod)?;
    sampan_runtime::mount::mount_all(&mounts, &rootfs, users.as_ref())
        .map_err(|source| Error::Mount { container: key.to_owned(), source })?;
    for number in 0..record.config.mounts.len() {
        if let Some(volume) = record.config.mounts[number].image.clone() {
            let key = record.image_volume_key(number);
            let host_path = mount_image(context, &record, &key, &volume, users.as_ref())?;
            record.config.mounts[number].host_path = host_path;
        }
    }
    for mount in &mut record.config.mounts {
        // The source as it is now, links followed: what is checked is what will be mounted.
        mount.host_path = mount.host_path.canonicalize().map_err(|error| {
            Error::Invalid(format!(
                "mount source {} for {}: {error}",
                mount.host_path.display(),
                mount.container_path.display()
            ))
        })?;
    }
    let image_config = image.config.config().as_ref();
    let user =
        resolve_user(&rootfs, &record.config.security, image_config.and_then(|c| c.user().as_deref()))?;
    record.user = UserIds { uid: user.uid, gid: user.gid, groups: user.additional_gids.clone() };
    record.volumes = make_volumes(context, &pod.id, &record, &rootfs, image_config)?;
    let folder = context.pod_state(&pod.id);
    let mut devices = record.config.devices.iter().map(host_device).collect::<Result<Vec<_>>>()?;
    if record.config.security.privileged {
        devices.extend(host_devices(Path::new("/dev"), &devices));
    }
    let mut spec = spec::build(&spec::Input {
        pod: &pod.config,
        container: &record.config,
        image: image_config,
        user: &record.user,
        home: user.home.as_deref(),
        hostname,
        rootfs: &rootfs,
        cgroup: &record.cgroup,
        pod_files: &files::mounts(&folder, &pod.config),
        volumes: &record.volumes,
        devices: &devices,
        default_apparmor: default_apparmor(),
    })?;
    cdi::inject(&mut spec, &record.config.cdi_devices, &context.config.runtime.cdi_folders)?;
    let hooked = spec.hooks().is_some();
    let delegate =
        context.delegate(&pod.config.runtime_handler)?.or_else(|| hooked.then(|| context.own_delegate()));
    if delegate.is_some() && pod.config.users.is_some() {
        return Err(Error::Precondition("hooks of devices do not go with a pod's user namespace".into()));
    }
    write_bundle(context, &folder.join(key), spec, &record.config.security, delegate.is_some())?;
    if let Some(directory) = record.log_path.as_deref().and_then(Path::parent) {
        fs::create_dir_all(directory).map_err(at("create", directory))?;
    }
    Ok((record, delegate))
}

/// The user namespace of a pod that has users of its own.
fn users(pod: &PodRecord) -> Result<Option<UserNamespace>> {
    let Some(mappings) = &pod.config.users else { return Ok(None) };
    let gone = || Error::Precondition(format!("pod {} is not ready: it has no monitor", pod.id.short()));
    let found = UserNamespace::of_monitor(pod.monitor_pid.ok_or_else(gone)?, mappings.root());
    found.map(Some).map_err(|error| Error::Internal(chain(&error)))
}

/// Mounts an image for a container to look at; gives the folder of it that is meant.
fn mount_image(
    context: &Context,
    record: &ContainerRecord,
    key: &str,
    volume: &ImageVolume,
    users: Option<&UserNamespace>,
) -> Result<PathBuf> {
    let image = context.store.find(&volume.image)?;
    let image = image.ok_or_else(|| Error::NotFound { object: "image", id: volume.image.clone() })?;
    let snapshots = context.store.snapshots();
    let mounts = snapshots.view(key, image.chain_id())?;
    let root = snapshots.directories(key)?.merged;
    sampan_runtime::mount::mount_all(&mounts, &root, users)
        .map_err(|source| Error::Mount { container: record.id.to_string(), source })?;
    let root = root.canonicalize().map_err(at("resolve", &root))?;
    // Nobody can change what is found here: it is read-only.
    let wanted = |why: String| {
        Error::Invalid(format!("image_sub_path {:?} of image {:?} {why}", volume.sub_path, volume.image))
    };
    let found = root.join(volume.sub_path.trim_start_matches('/')).canonicalize();
    let found = found.map_err(|error| wanted(format!("is not there: {error}")))?;
    if !found.starts_with(&root) {
        return Err(wanted("leads out of the image".into()));
    }
    if !found.is_dir() {
        return Err(wanted("is not a directory".into()));
    }
    Ok(found)
}

/// A folder for each volume of the image that the request mounts nothing at, with what the image has there.
fn make_volumes(
    context: &Context,
    pod: &PodId,
    record: &ContainerRecord,
    rootfs: &Path,
    image: Option<&oci_spec::image::Config>,
) -> Result<Vec<MountConfig>> {
    let wanted = image.and_then(|image| image.volumes().clone()).unwrap_or_default();
    let folder = context.records.volumes(pod, &record.id);
    let mut volumes = Vec::new();
    for path in wanted {
        // A path's form is its components: no trailing slash or dot makes it another.
        let container_path: PathBuf = Path::new("/").join(&path).components().collect();
        let taken = |mount: &MountConfig| mount.container_path.components().eq(container_path.components());
        if container_path == Path::new("/") || record.config.mounts.iter().chain(&volumes).any(taken) {
            continue;
        }
        let host_path = folder.join(volumes.len().to_string());
        sampan_runtime::copyup::seed(rootfs, &container_path, &host_path)
            .map_err(at("make the volume", &container_path))?;
        volumes.push(MountConfig {
            container_path,
            host_path,
            image: None,
            readonly: false,
            recursive_readonly: false,
            propagation: Propagation::Private,
            options: Vec::new(),
            owners: None,
        });
    }
    Ok(volumes)
}

/// The profile that the package brings, where AppArmor is on and somebody has loaded it (systemd does, at the start).
pub(super) fn default_apparmor() -> Option<&'static str> {
    const PROFILE: &str = "sampan-default";
    let loaded = fs::read_to_string("/sys/kernel/security/apparmor/profiles").ok()?;
    loaded.lines().any(|line| line.split(' ').next() == Some(PROFILE)).then_some(PROFILE)
}

pub(super) fn write_bundle(
    context: &Context,
    bundle: &Path,
    mut spec: oci_spec::runtime::Spec,
    security: &Security,
    delegated: bool,
) -> Result<()> {
    fs::create_dir(bundle).map_err(at("create", bundle))?;
    match &security.seccomp {
        _ if security.privileged => {}
        SeccompProfile::Unconfined => {}
        // What is compiled already, only a monitor takes.
        SeccompProfile::Default if delegated => {
            let profile = seccomp::default_profile(&spec::capabilities(security)?);
            if let Some(linux) = spec.linux_mut() {
                linux.set_seccomp(Some(profile));
            }
        }
        SeccompProfile::Default => {
            let filter = context.seccomp_filter(&spec::capabilities(security)?)?;
            let path = bundle.join("seccomp.bpf");
            fs::write(&path, filter.as_slice()).map_err(at("write", &path))?;
        }
        SeccompProfile::Localhost(path) => {
            let text = fs::read(path).map_err(at("read the seccomp profile", path))?;
            let profile = serde_json::from_slice(&text)
                .map_err(|error| Error::Invalid(format!("seccomp profile {}: {error}", path.display())))?;
            if let Some(linux) = spec.linux_mut() {
                linux.set_seccomp(Some(profile));
            }
        }
    }
    let path = bundle.join("config.json");
    let json = serde_json::to_vec(&spec).map_err(std::io::Error::other).map_err(at("encode", &path))?;
    fs::write(&path, json).map_err(at("write", &path))
}

/// Who the container runs as: numbers and names of the request before those of the image.
pub(super) fn resolve_user(rootfs: &Path, security: &Security, image_user: Option<&str>) -> Result<User> {
    let root: OwnedFd =
        rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(std::io::Error::from)
            .map_err(at("open", rootfs))?;
    let text = match (security.run_as_user, security.run_as_username.as_str()) {
        (Some(uid), _) => match security.run_as_group {
            Some(gid) => format!("{uid}:{gid}"),
            None => uid.to_string(),
        },
        (None, "") if security.run_as_group.is_some() => {
            return Err(Error::Invalid("run_as_group needs run_as_user or run_as_username".into()));
        }
        (None, "") => image_user.unwrap_or_default().to_owned(),
        (None, name) => match security.run_as_group {
            Some(gid) => format!("{name}:{gid}"),
            None => name.to_owned(),
        },
    };
    let mut user = user::resolve(root.as_fd(), &text)?;
    if security.strict_groups {
        user.additional_gids.clear();
    }
    for group in &security.supplemental_groups {
        let gid = u32::try_from(*group).ok().filter(|gid| *gid <= i32::MAX as u32);
        let gid = gid.ok_or_else(|| Error::Invalid(format!("supplemental group {group} is out of range")))?;
        if !user.additional_gids.contains(&gid) {
            user.additional_gids.push(gid);
        }
    }
    Ok(user)
}

fn host_device(device: &DeviceConfig) -> Result<HostDevice> {
    let metadata = fs::metadata(&device.host_path).map_err(at("look at device", &device.host_path))?;
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
fn host_devices(folder: &Path, named: &[HostDevice]) -> Vec<HostDevice> {
    /// What every container has of its own.
    const OWN: [&str; 6] = ["pts", "shm", "mqueue", "fd", "console", "ptmx"];
    let mut devices = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        // One that goes away meanwhile is none.
        let Ok(kind) = entry.file_type() else { continue };
        if OWN.iter().any(|own| name == *own) || named.iter().any(|device| device.path == path) {
            continue;
        }
        if kind.is_dir() {
            devices.extend(host_devices(&path, named));
        } else if kind.is_char_device() || kind.is_block_device() {
            let config =
                DeviceConfig { container_path: path.clone(), host_path: path, permissions: "rwm".into() };
            devices.extend(host_device(&config));
        }
    }
    devices
}
