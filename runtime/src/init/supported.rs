//! What a configuration may ask for and this runtime doesn't do: said before anything is done,
//! and never ignored, because whoever asked relies on it.

use oci_spec::runtime::{Hooks, LinuxNamespaceType, Process, Spec};
use rustix::io::Errno;

use super::process::refused;
use super::{Error, Result};
use crate::sys;

/// `commanded`: by the command line, which can do more than a monitor.
pub(super) fn check(spec: &Spec, commanded: bool) -> Result<()> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    if !commanded {
        refuse(spec.hooks().as_ref().is_some_and(has_any), "hooks")?;
        for namespace in linux.namespaces().iter().flatten() {
            let unsupported = matches!(namespace.typ(), LinuxNamespaceType::User | LinuxNamespaceType::Time);
            refuse(unsupported, &format!("a {} namespace", namespace.typ()))?;
        }
        refuse(is_given(linux.uid_mappings()) || is_given(linux.gid_mappings()), "id mapping")?;
    }
    let of_kind = |kind| linux.namespaces().iter().flatten().filter(move |namespace| namespace.typ() == kind);
    for namespace in linux.namespaces().iter().flatten() {
        let kind = namespace.typ();
        if of_kind(kind).count() > 1 {
            return Err(Error::Duplicate { what: format!("namespace {kind}") });
        }
    }
    let has = |kind| of_kind(kind).next().is_some();
    let offsets = linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty());
    refuse(offsets && !has(LinuxNamespaceType::Time), "timeOffsets without a time namespace")?;
    let mapped = is_given(linux.uid_mappings()) || is_given(linux.gid_mappings());
    refuse(mapped && !has(LinuxNamespaceType::User), "id mapping without a user namespace")?;
    refuse(linux.intel_rdt().is_some(), "intelRdt")?;
    super::label::check_mount_label(linux.mount_label().as_deref())
}

/// The same for a process, that of a container or of an exec.
pub(super) fn check_process(process: &Process) -> Result<()> {
    if !process.cwd().is_absolute() {
        let cwd = process.cwd().display();
        return Err(Error::Unsupported {
            what: format!("the working directory {cwd}, which isn't absolute,"),
        });
    }
    let limits = process.rlimits().as_deref().unwrap_or_default();
    for (index, limit) in limits.iter().enumerate() {
        if limits[..index].iter().any(|other| other.typ() == limit.typ()) {
            return Err(Error::Duplicate { what: format!("rlimit {}", limit.typ()) });
        }
        if limit.soft() > limit.hard() {
            return Err(refused(limit)(sys::Error::new("setrlimit()", Errno::INVAL)));
        }
    }
    Ok(())
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
