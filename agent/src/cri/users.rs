//! Users of a pod's own, as CRI asks for them (`UserNamespace`).
//!
//! Who orchestrates chooses the ids on the host, so that no two pods have the same; here it is only seen to that the
//! request makes sense. A container has the users of its pod.

use sampan_proto::cri::{self, NamespaceMode};

use crate::{
    error::{Error, Result},
    pods::config::{IdMappings, IdRun},
};

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::Invalid(text.into()))
}

/// The mapping that a pod asks for; none: its users are the host's.
pub(super) fn of_pod(namespaces: &cri::NamespaceOption) -> Result<Option<IdMappings>> {
    let Some(mappings) = asked(namespaces)? else { return Ok(None) };
    let of_host = |mode: i32| mode == NamespaceMode::Node as i32;
    // The host's processes and their memory would have no owner that the pod's root could be trusted with.
    if of_host(namespaces.pid) || of_host(namespaces.ipc) {
        return invalid("a pod with a user namespace cannot have the host's process or IPC namespace");
    }
    Ok(Some(mappings))
}

/// A container may repeat what its pod has, and ask for nothing else.
pub(super) fn of_container(namespaces: &cri::NamespaceOption, pod: Option<&IdMappings>) -> Result<()> {
    if namespaces.userns_options.is_none() {
        return Ok(());
    }
    match (asked(namespaces)?, pod) {
        (asked, pod) if asked.as_ref() == pod => Ok(()),
        _ => invalid("the container's user namespace is not that of its pod"),
    }
}

/// What is told of a pod.
pub(super) fn told(mappings: &IdMappings) -> cri::UserNamespace {
    let told = |runs: &[IdRun]| {
        let mapping = |run: &IdRun| cri::IdMapping {
            host_id: run.outside,
            container_id: run.inside,
            length: run.length,
        };
        runs.iter().map(mapping).collect()
    };
    cri::UserNamespace {
        mode: NamespaceMode::Pod as i32,
        uids: told(&mappings.uids),
        gids: told(&mappings.gids),
    }
}

fn asked(namespaces: &cri::NamespaceOption) -> Result<Option<IdMappings>> {
    let Some(options) = &namespaces.userns_options else { return Ok(None) };
    match NamespaceMode::try_from(options.mode) {
        Ok(NamespaceMode::Node) if options.uids.is_empty() && options.gids.is_empty() => Ok(None),
        Ok(NamespaceMode::Node) => invalid("id mappings make no sense with the host's user namespace"),
        Ok(NamespaceMode::Pod) => {
            let mappings = IdMappings { uids: vec![run(&options.uids)?], gids: vec![run(&options.gids)?] };
            Ok(Some(mappings))
        }
        _ => invalid("a user namespace has the mode POD or NODE"),
    }
}

/// As in every runtime that kubelet knows: one run of ids, which begins with root.
fn run(mappings: &[cri::IdMapping]) -> Result<IdRun> {
    match mappings {
        [mapping] if mapping.container_id == 0 && mapping.length > 0 && mapping.host_id > 0 => {
            if mapping.host_id.checked_add(mapping.length).is_none() {
                return invalid(format!("the id mapping from {} on has too many ids", mapping.host_id));
            }
            Ok(IdRun { outside: mapping.host_id, inside: 0, length: mapping.length })
        }
        [_] => {
            invalid("the id mapping of a user namespace begins with id 0 in it, and not with the host's root")
        }
        _ => invalid(format!(
            "a user namespace has exactly one mapping of users and one of groups; the request has {}",
            mappings.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(mode: NamespaceMode, runs: &[(u32, u32, u32)]) -> cri::NamespaceOption {
        let mapping = |&(container_id, host_id, length): &(u32, u32, u32)| cri::IdMapping {
            host_id,
            container_id,
            length,
        };
        let runs: Vec<_> = runs.iter().map(mapping).collect();
        let users = cri::UserNamespace { mode: mode as i32, uids: runs.clone(), gids: runs };
        cri::NamespaceOption { userns_options: Some(users), ..Default::default() }
    }

    #[test]
    fn one_run_from_root_on_is_taken_and_told_as_it_was() {
        let asked = options(NamespaceMode::Pod, &[(0, 100_000, 65_536)]);
        let mappings = of_pod(&asked).unwrap().unwrap();
        assert_eq!(mappings.uids, [IdRun { outside: 100_000, inside: 0, length: 65_536 }]);
        assert_eq!(Some(told(&mappings)), asked.userns_options);
        assert!(of_container(&asked, Some(&mappings)).is_ok());
        assert!(of_container(&asked, None).is_err());
        assert!(of_container(&options(NamespaceMode::Node, &[]), Some(&mappings)).is_err());
        assert!(of_container(&cri::NamespaceOption::default(), Some(&mappings)).is_ok());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (mode, runs) in [
            (NamespaceMode::Pod, &[][..]),
            (NamespaceMode::Pod, &[(0, 1, 2), (2, 3, 4)]),
            (NamespaceMode::Pod, &[(1, 100_000, 65_536)]),
            (NamespaceMode::Pod, &[(0, 0, 65_536)]),
            (NamespaceMode::Pod, &[(0, 100_000, 0)]),
            (NamespaceMode::Pod, &[(0, u32::MAX, 65_536)]),
            (NamespaceMode::Node, &[(0, 100_000, 65_536)]),
            (NamespaceMode::Container, &[(0, 100_000, 65_536)]),
            (NamespaceMode::Target, &[(0, 100_000, 65_536)]),
        ] {
            assert!(of_pod(&options(mode, runs)).is_err(), "{mode:?} {runs:?}");
        }
        let node = NamespaceMode::Node as i32;
        let asked = options(NamespaceMode::Pod, &[(0, 100_000, 65_536)]);
        assert!(of_pod(&cri::NamespaceOption { pid: node, ..asked.clone() }).is_err());
        assert!(of_pod(&cri::NamespaceOption { ipc: node, ..asked }).is_err());
    }
}
