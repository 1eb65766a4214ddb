//! A program with what a profile says about loading it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};

use super::{Error, Program};

/// A program, the flags to load it with and who gets its notifications.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) program: Program,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub(crate) flags: u64,
    /// The socket that gets the notification descriptor; Some when the program notifies at all.
    pub(crate) listener: Option<PathBuf>,
    /// Handed on with it.
    pub(crate) metadata: String,
}

impl Filter {
    /// `program` is what `profile` compiles to.
    pub(crate) fn new(profile: &LinuxSeccomp, program: Program) -> Result<Filter, Error> {
        // As runc has it: a profile that says nothing of flags has no say in the processor's speculation. Kernels since
        // 5.16 do the same by themselves.
        let mut flags = match profile.flags() {
            Some(_) => 0,
            None => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        };
        for flag in profile.flags().iter().flatten() {
            flags |= match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                    libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
                }
                // The process that loads it has one thread.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            };
        }
        let metadata = profile.listener_metadata().clone().unwrap_or_default();
        let path = profile.listener_path().clone().filter(|path| !path.as_os_str().is_empty());
        if path.is_none() && !metadata.is_empty() {
            return Err(refused("listenerMetadata without listenerPath"));
        }
        let notified = notified(profile)?;
        let killable = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
        let listener = match (notified.is_empty(), path) {
            (true, _) => None,
            (false, None) => return Err(refused("SCMP_ACT_NOTIFY needs listenerPath")),
            (false, path) => path,
        };
        match listener {
            Some(_) => flags |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            None if flags & killable != 0 => {
                return Err(refused("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV without SCMP_ACT_NOTIFY"));
            }
            None => {}
        }
        Ok(Filter { program, flags, listener, metadata })
    }
}

/// The calls that are notified of.
fn notified(profile: &LinuxSeccomp) -> Result<BTreeSet<&str>, Error> {
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(refused("SCMP_ACT_NOTIFY can't be the default action"));
    }
    let rules = profile.syscalls().iter().flatten();
    let rules = rules.filter(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify);
    let names: BTreeSet<&str> = rules.flat_map(|rule| rule.names()).map(String::as_str).collect();
    // The descriptor is announced by it, when nobody listens yet.
    if names.contains("write") {
        return Err(refused("SCMP_ACT_NOTIFY cannot be used for the write syscall"));
    }
    Ok(names)
}

fn refused(reason: &str) -> Error {
    Error::Profile { reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::compile;

    fn filter(profile: &str) -> Result<Filter, Error> {
        let profile: LinuxSeccomp = serde_json::from_str(profile).unwrap();
        Filter::new(&profile, compile(&profile)?)
    }

    #[test]
    fn flags_and_listener_come_from_the_profile() {
        let filter = filter(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/s","listenerMetadata":"m",
                "flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_TSYNC"],
                "syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]}"#,
        );
        let filter = filter.unwrap();
        let flags = libc::SECCOMP_FILTER_FLAG_LOG | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        assert_eq!(
            (filter.flags, filter.listener, filter.metadata.as_str()),
            (flags, Some("/s".into()), "m")
        );
    }

    #[test]
    fn a_path_that_nothing_is_notified_of_is_ignored() {
        let filter = filter(r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/s","flags":[]}"#).unwrap();
        assert_eq!((filter.flags, filter.listener), (0, None));
    }

    #[test]
    fn without_flags_speculation_is_left_alone() {
        let filter = filter(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
        assert_eq!(filter.flags, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW);
    }

    #[test]
    fn notification_that_can_not_work_is_refused() {
        for (call, path) in [("mkdir", ""), ("write", r#","listenerPath":"/s""#)] {
            let profile = format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW"{path},"syscalls":[{{"names":["{call}"],"action":"SCMP_ACT_NOTIFY"}}]}}"#
            );
            assert!(matches!(filter(&profile), Err(Error::Profile { .. })), "{call}");
        }
        assert!(filter(r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerMetadata":"m"}"#).is_err());
    }
}
