//! `config.json`: reading it, and what is wrong with it before anything is made.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

use super::{Context, Error, OCI_VERSION, Result};
use crate::{hook, init};

/// A bundle's configuration, and its text to be kept.
pub(super) fn read(context: &Context, bundle: &Path) -> Result<(Spec, Vec<u8>)> {
    let path = bundle.join("config.json");
    let text =
        std::fs::read(&path).map_err(|source| Error::io(format!("read {}", path.display()), source))?;
    let (spec, text) = parse(context, bundle, text)
        .map_err(|source| Error::Json { path: path.display().to_string(), source })?;
    check(&spec)?;
    Ok((spec, text))
}

fn parse(context: &Context, bundle: &Path, text: Vec<u8>) -> serde_json::Result<(Spec, Vec<u8>)> {
    let parsed = serde_json::from_slice::<Spec>(&text);
    if parsed
        .as_ref()
        .is_ok_and(|spec| !limits_tasks_to_zero(spec) && !mounts_by_the_hosts_path(spec, bundle))
    {
        return parsed.map(|spec| (spec, text));
    }
    let mut value: serde_json::Value = serde_json::from_slice(&text)?;
    let amended = [
        amend_process(context, &mut value["process"]),
        drop_unset_pids(&mut value["linux"]["resources"]),
        strip_root(&mut value, bundle),
    ];
    if amended == [false; 3] {
        return parsed.map(|spec| (spec, text));
    }
    let text = serde_json::to_vec(&value)?;
    serde_json::from_slice(&text).map(|spec| (spec, text))
}

/// The path that the root has on the host; `None` for the host's own root, which every path begins with.
fn root_on_host(path: &Path, bundle: &Path) -> Option<PathBuf> {
    Some(bundle.join(path)).filter(|root| root != Path::new("/"))
}

/// Whether a destination begins with the path that the root has on the host.
fn mounts_by_the_hosts_path(spec: &Spec, bundle: &Path) -> bool {
    let root = spec.root().as_ref().and_then(|root| root_on_host(root.path(), bundle));
    root.is_some_and(|root| {
        spec.mounts().iter().flatten().any(|mount| mount.destination().starts_with(&root))
    })
}

/// Makes such destinations paths inside of the container, as runc does and its callers mean it. Whether there were any.
fn strip_root(value: &mut serde_json::Value, bundle: &Path) -> bool {
    let root = value["root"]["path"].as_str().and_then(|path| root_on_host(Path::new(path), bundle));
    let Some(root) = root else { return false };
    let mut stripped = false;
    for mount in value["mounts"].as_array_mut().into_iter().flatten() {
        let inside = mount["destination"].as_str().and_then(|path| Path::new(path).strip_prefix(&root).ok());
        let inside = inside.and_then(|inside| Path::new("/").join(inside).to_str().map(str::to_owned));
        if let Some(inside) = inside {
            mount["destination"] = inside.into();
            stripped = true;
        }
    }
    stripped
}

fn limits_tasks_to_zero(spec: &Spec) -> bool {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources.and_then(|resources| resources.pids().as_ref()).is_some_and(|pids| pids.limit() == 0)
}

/// Takes away `pids` without a limit, which [`oci_spec`] doesn't tell from a limit of 0. Whether it was there.
pub(super) fn drop_unset_pids(resources: &mut serde_json::Value) -> bool {
    let unset = resources["pids"].is_object() && resources["pids"]["limit"].is_null();
    if unset {
        resources["pids"] = serde_json::Value::Null;
    }
    unset
}

/// Makes of a process what [`oci_spec`] can read, as far as the specification wants it read. Whether anything was to be done.
pub(super) fn amend_process(context: &Context, process: &mut serde_json::Value) -> bool {
    let unknown = take_unknown_capabilities(process);
    warn_of_ignored(context, &unknown);
    rename_scheduler_flags(process) || !unknown.is_empty()
}

/// Gives flags the names that [`oci_spec`] has for them, which are not those of the specification. Whether there were any.
fn rename_scheduler_flags(process: &mut serde_json::Value) -> bool {
    let flags = process.pointer_mut("/scheduler/flags").and_then(|flags| flags.as_array_mut());
    let mut renamed = false;
    for flag in flags.into_iter().flatten() {
        *flag = match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => "SCHED_RESET_ON_FORK".into(),
            Some("SCHED_FLAG_DL_OVERRUN") => "SCHED_FLAG_D_L_OVERRUN".into(),
            _ => continue,
        };
        renamed = true;
    }
    renamed
}

/// As the specification wants it of what a process asks for and can't have.
pub(super) fn warn_of_withheld(context: &Context, process: &Process) -> Result<()> {
    let Some(asked) = process.capabilities() else { return Ok(()) };
    let withheld =
        init::withheld_capabilities(asked).map_err(Error::call("look for this process's capabilities"))?;
    warn_of_ignored(context, &Vec::from_iter(withheld.lacking));
    for capability in &withheld.ambient {
        let why = "it is not both permitted and inheritable";
        context.log.warn(&format!("can't raise ambient capability {capability}: {why}"));
    }
    Ok(())
}

/// The specification wants a warning for such capabilities and no failure; it is in runc's words.
fn warn_of_ignored(context: &Context, capabilities: &[String]) {
    if !capabilities.is_empty() {
        let names = capabilities.join(" ");
        context.log.warn(&format!("ignoring unknown or unavailable capabilities: [{names}]"));
    }
}

fn take_unknown_capabilities(process: &mut serde_json::Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let Some(sets) = process.get_mut("capabilities").and_then(|sets| sets.as_object_mut()) else {
        return unknown;
    };
    for list in sets.values_mut().filter_map(|set| set.as_array_mut()) {
        list.retain(|name| {
            let known = serde_json::from_value::<oci_spec::runtime::Capability>(name.clone()).is_ok();
            if !known {
                unknown.push(name.as_str().unwrap_or_default().to_owned());
            }
            known
        });
    }
    unknown.sort();
    unknown.dedup();
    unknown
}

fn check(spec: &Spec) -> Result<()> {
    check_version(spec.version())?;
    if spec.root().is_none() {
        return Err(Error::refused("the configuration has no root"));
    }
    if spec.linux().is_none() {
        return Err(Error::refused("the configuration has no linux"));
    }
    if spec.annotations().iter().flatten().any(|(key, _)| key.is_empty()) {
        return Err(Error::refused("the key of an annotation is empty"));
    }
    if let Some(hooks) = spec.hooks() {
        #[allow(deprecated, reason = "hooks of the old kind are still in use")]
        let lists = [
            ("prestart", hooks.prestart()),
            ("createRuntime", hooks.create_runtime()),
            ("createContainer", hooks.create_container()),
            ("startContainer", hooks.start_container()),
            ("poststart", hooks.poststart()),
            ("poststop", hooks.poststop()),
        ];
        for (kind, list) in lists {
            hook::check(kind, list.as_ref()).map_err(Error::Hook)?;
        }
    }
    Ok(())
}

/// Semantic versioning: what complies with an older version of 1 complies with this one.
fn check_version(version: &str) -> Result<()> {
    let refused = |why: &str| Err(Error::refused(format!("ociVersion {version:?} {why}")));
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<Option<u64>> = core
        .split('.')
        .map(|part| part.parse().ok().filter(|_| part == "0" || !part.starts_with(['0', '+'])))
        .collect();
    let [Some(major), Some(minor), Some(_)] = numbers[..] else {
        return refused("is no semantic version");
    };
    let newest: u64 = OCI_VERSION.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or(0);
    match (major, minor) {
        (1, minor) if minor <= newest => Ok(()),
        _ => refused(&format!("is not supported; 1.0.0 to {OCI_VERSION} are")),
    }
}

/// Whether a container has a namespace of its own of this kind, and the path of one that is to be joined.
pub(super) fn namespace(spec: &Spec, kind: LinuxNamespaceType) -> Option<Option<&Path>> {
    let namespaces = spec.linux().iter().filter_map(|linux| linux.namespaces().as_ref()).flatten();
    let mut found = namespaces.filter(|namespace| namespace.typ() == kind);
    let path = found.next()?.path().as_deref();
    Some(path.filter(|path| !path.as_os_str().is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_semantic_and_not_newer_than_this() {
        for version in ["1.0.0", "1.0.2-dev", "1.3.0", "1.2.1+x"] {
            assert!(check_version(version).is_ok(), "{version}");
        }
        for version in ["", "1", "1.0", "2.0.0", "0.9.0", "1.4.0", "a.b.c", "1.00.0", "1.0.0.0"] {
            assert!(check_version(version).is_err(), "{version}");
        }
    }

    #[test]
    fn a_limit_of_no_tasks_is_told_from_none() {
        for (pids, kept) in [("{}", false), (r#"{"limit":null}"#, false), (r#"{"limit":0}"#, true)] {
            let mut resources = serde_json::from_str(&format!(r#"{{"pids":{pids}}}"#)).unwrap();
            assert_eq!(drop_unset_pids(&mut resources), !kept, "{pids}");
            assert_eq!(resources["pids"].is_object(), kept, "{pids}");
        }
    }

    #[test]
    fn flags_of_a_scheduler_have_the_specifications_names() {
        let mut process = serde_json::json!({ "scheduler": { "policy": "SCHED_DEADLINE", "flags": [
            "SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM", "SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_KEEP_POLICY",
            "SCHED_FLAG_KEEP_PARAMS", "SCHED_FLAG_UTIL_CLAMP_MIN", "SCHED_FLAG_UTIL_CLAMP_MAX",
        ] } });
        assert!(rename_scheduler_flags(&mut process));
        let scheduler: oci_spec::runtime::Scheduler =
            serde_json::from_value(process["scheduler"].take()).unwrap();
        assert_eq!(scheduler.flags().as_ref().map(Vec::len), Some(7));
        assert!(!rename_scheduler_flags(&mut serde_json::json!({ "scheduler": {} })));
    }

    #[test]
    fn capabilities_that_nobody_knows_are_left_out() {
        let mut process =
            serde_json::json!({ "capabilities": { "bounding": ["CAP_CHOWN", "CAP_X", "CAP_X"] } });
        assert_eq!(take_unknown_capabilities(&mut process), ["CAP_X"]);
        assert_eq!(process["capabilities"]["bounding"], serde_json::json!(["CAP_CHOWN"]));
    }
}
