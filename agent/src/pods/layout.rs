//! What a container is made of before its process is: root file system, mounts' sources, volumes, user, bundle.
//!
//! Everything here is on disk when [`lay_out`] returns; what it leaves after a failure, the container's removal takes away.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};
use sampan_runtime::{
    delegate::Runtime,
    seccomp,
    user::{self, User},
    users::UserNamespace,
};

use super::{
    cdi,
    checkpoint::Checkpoint,
    config::{AppArmorProfile, IdMappings, MountConfig, Propagation, SeccompProfile, Security},
    device, files,
    record::{ContainerRecord, PodRecord, UserIds},
    source::{self, Images},
    spec, storage,
};
use crate::{
    context::Context,
    error::{Error, Result, at, chain},
};

/// Prepares the writable layer, with what a checkpoint has of it, mounts the root, resolves the user against it, and writes
/// the bundle. Tells which other runtime is to make the container, if one is.
pub(super) fn lay_out(
    context: &Context,
    pod: &PodRecord,
    mut record: ContainerRecord,
    images: &Images,
    hostname: &str,
    checkpoint: Option<&Checkpoint>,
) -> Result<(ContainerRecord, Option<Runtime>)> {
    let id = record.id.clone();
    let (key, image) = (id.as_str(), &images.root);
    let snapshots = context.store.snapshots();
    let limit = storage::limit(&record.config.annotations, context.config.runtime.writable_bytes)?;
    let mounts = snapshots.prepare(key, Some(image.chain_id()))?;
    if let Some(bytes) = limit {
        snapshots.limit(key, bytes)?;
    }
    if let Some(checkpoint) = checkpoint {
        checkpoint.lay_out(context, &pod.id, &record.id)?;
    }
    let rootfs = snapshots.directories(key)?.merged;
    let users = users(pod)?;
    sampan_runtime::mount::mount_all(&mounts, &rootfs, users.as_ref())
        .map_err(|source| Error::Mount { container: key.to_owned(), source })?;
    source::resolve(context, &pod.config, &mut record, &images.volumes, users.as_ref())?;
    let image_config = image.config.config().as_ref();
    let user =
        resolve_user(&rootfs, &record.config.security, image_config.and_then(|c| c.user().as_deref()))?;
    record.user = UserIds { uid: user.uid, gid: user.gid, groups: user.additional_gids.clone() };
    record.volumes = make_volumes(context, pod, &record, &rootfs, image_config)?;
    let folder = context.pod_state(&pod.id);
    let named = record.config.devices.iter().map(device::named).collect::<Result<Vec<_>>>()?;
    let mut devices = named.concat();
    if record.config.security.privileged {
        devices.extend(device::all_of_host(Path::new("/dev"), &devices));
    }
    if let AppArmorProfile::Localhost(profile) = &record.config.security.apparmor
        && !apparmor_loaded(profile)
    {
        return Err(Error::Invalid(format!("AppArmor profile {profile:?} is not loaded on this host")));
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
        open_files: &context.open_files,
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

/// A folder for each volume that is asked for, or by the image where the request mounts nothing, with what the image has there.
fn make_volumes(
    context: &Context,
    pod: &PodRecord,
    record: &ContainerRecord,
    rootfs: &Path,
    image: Option<&oci_spec::image::Config>,
) -> Result<Vec<MountConfig>> {
    let of_image = image.and_then(|image| image.volumes().clone()).unwrap_or_default();
    let wanted = record.config.volumes.iter().cloned().chain(of_image.into_iter().map(PathBuf::from));
    let folder = context.records.volumes(&pod.id, &record.id);
    let root = pod.config.users.as_ref().map_or((0, 0), IdMappings::root);
    let mut volumes = Vec::new();
    for path in wanted {
        // A path's form is its components: no trailing slash or dot makes it another.
        let container_path: PathBuf = Path::new("/").join(&path).components().collect();
        let taken = |mount: &MountConfig| mount.container_path.components().eq(container_path.components());
        if container_path == Path::new("/") || record.config.mounts.iter().chain(&volumes).any(taken) {
            continue;
        }
        let host_path = folder.join(volumes.len().to_string());
        sampan_runtime::copyup::seed(rootfs, &container_path, &host_path, root)
            .map_err(at("make the volume", &container_path))?;
        volumes.push(MountConfig {
            container_path,
            host_path,
            source: None,
            relabel: false,
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
    apparmor_loaded(PROFILE).then_some(PROFILE)
}

/// Each line of the kernel's list is a name, which may have spaces in it, and a mode in parentheses.
fn apparmor_loaded(profile: &str) -> bool {
    let loaded = fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
    loaded.lines().any(|line| line.rsplit_once(" (").is_some_and(|(name, _)| name == profile))
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

/// The primary group is among the others, and first: a process that changes its primary group must not get rid of what a
/// file denies to that group (CVE-2022-2990).
pub(super) fn with_primary(gid: u32, mut groups: Vec<u32>) -> Vec<u32> {
    groups.retain(|group| *group != gid);
    groups.insert(0, gid);
    groups
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
    user.additional_gids = match (security.strict_groups, &user.name) {
        (true, _) => Vec::new(),
        // A group that the request names takes the primary one's place and no other's.
        (false, Some(name)) if security.run_as_group.is_some() => user::member_groups(root.as_fd(), name)?,
        (false, _) => user.additional_gids,
    };
    user.additional_gids = with_primary(user.gid, user.additional_gids);
    for group in &security.supplemental_groups {
        let gid = u32::try_from(*group).ok().filter(|gid| *gid <= i32::MAX as u32);
        let gid = gid.ok_or_else(|| Error::Invalid(format!("supplemental group {group} is out of range")))?;
        if !user.additional_gids.contains(&gid) {
            user.additional_gids.push(gid);
        }
    }
    Ok(user)
}
