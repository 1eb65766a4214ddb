//! What a device changes in a container's specification.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use oci_spec::runtime::{
    Hook, HookBuilder, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder,
    LinuxDeviceType, MountBuilder, Spec,
};

use super::file::{Edits, Hook as AskedHook, Mount, Node};
use crate::error::{Error, Result};

/// `device` is for people.
pub(super) fn apply(spec: &mut Spec, edits: &Edits, device: &str) -> Result<()> {
    let invalid = |problem: String| Error::Invalid(format!("CDI device {device}: {problem}"));
    environment(spec, &edits.env);
    for node in &edits.device_nodes {
        add_node(spec, node).map_err(invalid)?;
    }
    for mount in &edits.mounts {
        add_mount(spec, mount).map_err(invalid)?;
    }
    for hook in &edits.hooks {
        add_hook(spec, hook).map_err(invalid)?;
    }
    if let Some(process) = spec.process_mut() {
        let mut groups = process.user().additional_gids().clone().unwrap_or_default();
        // Root's group is nobody's to give.
        let more = edits.additional_gids.iter().filter(|gid| **gid != 0);
        for gid in more {
            if !groups.contains(gid) {
                groups.push(*gid);
            }
        }
        process.user_mut().set_additional_gids(Some(groups));
    }
    if let Some(linux) = spec.linux_mut() {
        if let Some(rdt) = &edits.intel_rdt {
            linux.set_intel_rdt(Some(rdt.clone()));
        }
        if !edits.net_devices.is_empty() {
            let mut devices = linux.net_devices().clone().unwrap_or_default();
            devices.extend(
                edits.net_devices.iter().map(|net| (net.host_interface_name.clone(), net.in_container())),
            );
            linux.set_net_devices(Some(devices));
        }
    }
    Ok(())
}

/// A later variable takes the place of an earlier.
fn environment(spec: &mut Spec, pairs: &[String]) {
    let Some(process) = spec.process_mut() else { return };
    let mut all = process.env().clone().unwrap_or_default();
    for pair in pairs {
        let name = pair.split('=').next();
        match all.iter_mut().find(|other| other.split('=').next() == name) {
            Some(place) => place.clone_from(pair),
            None => all.push(pair.clone()),
        }
    }
    process.set_env(Some(all));
}

fn add_node(spec: &mut Spec, node: &Node) -> Result<(), String> {
    if !node.path.is_absolute() {
        return Err(format!("the node {} is not an absolute path", node.path.display()));
    }
    let (kind, major, minor) = numbers(node)?;
    let user = spec.process().as_ref().map(|process| (process.user().uid(), process.user().gid()));
    let mut builder = LinuxDeviceBuilder::default().path(&node.path).typ(kind).major(major).minor(minor);
    if let Some(mode) = node.file_mode {
        builder = builder.file_mode(mode);
    }
    // A process that is not root is to reach its device.
    if let Some(uid) = node.uid.or(user.map(|(uid, _)| uid).filter(|uid| *uid != 0)) {
        builder = builder.uid(uid);
    }
    if let Some(gid) = node.gid.or(user.map(|(_, gid)| gid).filter(|gid| *gid != 0)) {
        builder = builder.gid(gid);
    }
    let device = builder.build().map_err(|error| error.to_string())?;
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let mut devices: Vec<LinuxDevice> = linux.devices().clone().unwrap_or_default();
    devices.retain(|other| other.path() != device.path());
    devices.push(device);
    linux.set_devices(Some(devices));
    if kind == LinuxDeviceType::P {
        return Ok(());
    }
    let access = node.permissions.as_deref().unwrap_or("rwm");
    if access.is_empty() || access.bytes().any(|b| !b"rwm".contains(&b)) {
        return Err(format!("permissions {access:?} of {} are not some of r, w and m", node.path.display()));
    }
    let rule =
        LinuxDeviceCgroupBuilder::default().allow(true).typ(kind).major(major).minor(minor).access(access);
    let rule = rule.build().map_err(|error| error.to_string())?;
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules: Vec<LinuxDeviceCgroup> = resources.devices().clone().unwrap_or_default();
    rules.push(rule);
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    Ok(())
}

/// Type and numbers of a node: what the file says, else those of the host's.
fn numbers(node: &Node) -> Result<(LinuxDeviceType, i64, i64), String> {
    let kind = match node.r#type.as_deref() {
        None | Some("") => None,
        Some("b") => Some(LinuxDeviceType::B),
        Some("c") => Some(LinuxDeviceType::C),
        Some("u") => Some(LinuxDeviceType::U),
        Some("p") => Some(LinuxDeviceType::P),
        Some(other) => return Err(format!("a node has no type {other:?}: b, c, u or p")),
    };
    match (kind, node.major, node.minor) {
        (Some(LinuxDeviceType::P), ..) => Ok((LinuxDeviceType::P, 0, 0)),
        (Some(kind), Some(major), Some(minor)) => Ok((kind, major, minor)),
        (kind, major, minor) => {
            let path = node.host_path.as_deref().unwrap_or(&node.path);
            let (found, host_major, host_minor) = look_at(path)?;
            let fits = kind.is_none_or(|kind| {
                kind == found || kind == LinuxDeviceType::U && found == LinuxDeviceType::C
            });
            if !fits {
                return Err(format!("{} on the host is of another type than the file says", path.display()));
            }
            Ok((kind.unwrap_or(found), major.unwrap_or(host_major), minor.unwrap_or(host_minor)))
        }
    }
}

fn look_at(path: &Path) -> Result<(LinuxDeviceType, i64, i64), String> {
    let metadata = fs::metadata(path).map_err(|error| format!("look at {}: {error}", path.display()))?;
    let kind = match metadata.file_type() {
        kind if kind.is_block_device() => LinuxDeviceType::B,
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_fifo() => LinuxDeviceType::P,
        _ => return Err(format!("{} is no device", path.display())),
    };
    let number = metadata.rdev();
    Ok((kind, i64::from(rustix::fs::major(number)), i64::from(rustix::fs::minor(number))))
}

/// A mount takes the place of an earlier one at its path.
fn add_mount(spec: &mut Spec, mount: &Mount) -> Result<(), String> {
    if !mount.container_path.is_absolute() {
        return Err(format!("the mount path {} is not absolute", mount.container_path.display()));
    }
    let built = MountBuilder::default()
        .destination(&mount.container_path)
        .typ(mount.r#type.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("bind"))
        .source(&mount.host_path)
        .options(options(mount))
        .build()
        .map_err(|error| error.to_string())?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.retain(|other| other.destination() != built.destination());
    // Below what it is to be seen over, above what is to be seen over it.
    let depth = |path: &PathBuf| path.components().count();
    let place = mounts.iter().rposition(|other| depth(other.destination()) <= depth(built.destination()));
    mounts.insert(place.map_or(0, |place| place + 1), built);
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// Those of the file; a mount without a type is a bind.
fn options(mount: &Mount) -> Vec<String> {
    let bound = mount.options.iter().any(|option| option == "bind" || option == "rbind");
    let kind = mount.r#type.as_deref().unwrap_or_default();
    let implied = (!bound && matches!(kind, "" | "bind" | "none")).then(|| "rbind".to_owned());
    implied.into_iter().chain(mount.options.iter().cloned()).collect()
}

fn add_hook(spec: &mut Spec, asked: &AskedHook) -> Result<(), String> {
    let mut builder =
        HookBuilder::default().path(&asked.path).args(asked.args.clone()).env(asked.env.clone());
    if let Some(timeout) = asked.timeout {
        builder = builder.timeout(timeout);
    }
    let hook = builder.build().map_err(|error| error.to_string())?;
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    let with = |list: &Option<Vec<Hook>>| {
        let mut list = list.clone().unwrap_or_default();
        list.push(hook.clone());
        Some(list)
    };
    #[allow(deprecated, reason = "vendors' files name hooks of the old kind")]
    match asked.hook_name.as_str() {
        "prestart" => hooks.set_prestart(with(hooks.prestart())),
        "createRuntime" => hooks.set_create_runtime(with(hooks.create_runtime())),
        "createContainer" => hooks.set_create_container(with(hooks.create_container())),
        "startContainer" => hooks.set_start_container(with(hooks.start_container())),
        "poststart" => hooks.set_poststart(with(hooks.poststart())),
        "poststop" => hooks.set_poststop(with(hooks.poststop())),
        other => return Err(format!("there is no hook {other:?}")),
    };
    spec.set_hooks(Some(hooks));
    Ok(())
}
