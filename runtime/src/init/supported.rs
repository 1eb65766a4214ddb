//! What a configuration may ask for and this runtime doesn't do: said before anything is done,
//! and never ignored, because whoever asked relies on it.

use oci_spec::runtime::{Hooks, LinuxNamespaceType, Process, Spec};

use super::{Error, Result};

pub(super) fn check(spec: &Spec) -> Result<()> {
    refuse(spec.hooks().as_ref().is_some_and(has_any), "hooks")?;
    for mount in spec.mounts().iter().flatten() {
        refuse(
            is_given(mount.uid_mappings()) || is_given(mount.gid_mappings()),
            &format!("id mapping of the mount at {}", mount.destination().display()),
        )?;
    }
    let Some(linux) = spec.linux() else { return Ok(()) };
    for namespace in linux.namespaces().iter().flatten() {
        let unsupported = matches!(namespace.typ(), LinuxNamespaceType::User | LinuxNamespaceType::Time);
        refuse(unsupported, &format!("a {} namespace", namespace.typ()))?;
    }
    refuse(is_given(linux.uid_mappings()) || is_given(linux.gid_mappings()), "id mapping")?;
    refuse(linux.time_offsets().is_some(), "timeOffsets")?;
    refuse(linux.net_devices().is_some(), "netDevices")?;
    refuse(linux.intel_rdt().is_some(), "intelRdt")?;
    refuse(linux.memory_policy().is_some(), "memoryPolicy")?;
    refuse(linux.personality().is_some(), "personality")?;
    refuse(linux.mount_label().as_ref().is_some_and(|label| !label.is_empty()), "mountLabel")
}

/// The same for a process, that of a container or of an exec.
pub(super) fn check_process(process: &Process) -> Result<()> {
    let asked = |value: &Option<String>| value.as_ref().is_some_and(|value| !value.is_empty());
    let profile = process.apparmor_profile();
    refuse(asked(profile) && profile.as_deref() != Some("unconfined"), "an AppArmor profile")?;
    refuse(asked(process.selinux_label()), "an SELinux label")?;
    refuse(process.io_priority().is_some(), "ioPriority")?;
    refuse(process.scheduler().is_some(), "scheduler")?;
    refuse(process.exec_cpu_affinity().is_some(), "execCPUAffinity")
}

fn has_any(hooks: &Hooks) -> bool {
    #[allow(deprecated, reason = "a hook of the old kind would be lost as well")]
    let lists = [hooks.prestart(), hooks.create_runtime(), hooks.create_container()];
    let lists = lists.into_iter().chain([hooks.start_container(), hooks.poststart(), hooks.poststop()]);
    lists.into_iter().any(is_given)
}

fn is_given<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_some_and(|list| !list.is_empty())
}

fn refuse(asked: bool, what: &str) -> Result<()> {
    if asked { Err(Error::Unsupported { what: what.to_owned() }) } else { Ok(()) }
}
