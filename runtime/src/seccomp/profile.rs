//! The default profile for a set of capabilities, in the terms of the OCI specification.

use std::collections::HashSet;

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use super::table::{self, Test};

/// What a container with `capabilities` may call: a list of what is allowed, and "not permitted" for the rest.
pub fn default_profile(capabilities: &HashSet<Capability>) -> LinuxSeccomp {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let admin = capabilities.contains(&Capability::SysAdmin);
    let mut syscalls = vec![unknown(names(table::UNKNOWN))];
    syscalls.push(allow(names(&table::ALWAYS.concat()), None));
    for (capability, list) in table::WITH_CAPABILITY {
        if capabilities.contains(capability) {
            syscalls.push(allow(names(list), None));
        }
    }
    for (name, test) in table::WITH_ARGUMENT {
        syscalls.push(allow(names(&[name]), Some(argument(test))));
    }
    if !admin {
        let (name, test) = &table::CLONE;
        syscalls.push(allow(names(&[name]), Some(argument(test))));
        syscalls.push(unknown(names(table::UNKNOWN_UNPRIVILEGED)));
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(libc::EPERM as u32)
        .architectures(architectures())
        .syscalls(syscalls)
        .build()
        .expect("every required field is given")
}

/// The native architecture with those whose programs its kernel also runs.
fn architectures() -> Vec<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        _ => vec![Arch::ScmpArchNative],
    }
}

fn allow(names: Vec<String>, argument: Option<LinuxSeccompArg>) -> LinuxSyscall {
    let rule = LinuxSyscallBuilder::default().names(names).action(LinuxSeccompAction::ScmpActAllow);
    let rule = match argument {
        Some(argument) => rule.args(vec![argument]),
        None => rule,
    };
    rule.build().expect("every required field is given")
}

fn unknown(names: Vec<String>) -> LinuxSyscall {
    let rule = LinuxSyscallBuilder::default().names(names).action(LinuxSeccompAction::ScmpActErrno);
    rule.errno_ret(libc::ENOSYS as u32).build().expect("every required field is given")
}

fn argument(test: &Test) -> LinuxSeccompArg {
    let argument = LinuxSeccompArgBuilder::default().index(0usize);
    let argument = match *test {
        Test::Equal(value) => argument.value(value).op(LinuxSeccompOperator::ScmpCmpEq),
        Test::Below(value) => argument.value(value).op(LinuxSeccompOperator::ScmpCmpLt),
        Test::Above(value) => argument.value(value).op(LinuxSeccompOperator::ScmpCmpGt),
        Test::Clear(mask) => argument.value(mask).value_two(0u64).op(LinuxSeccompOperator::ScmpCmpMaskedEq),
    };
    argument.build().expect("every required field is given")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(profile: &LinuxSeccomp) -> Vec<&str> {
        let allowed = profile.syscalls().as_ref().unwrap().iter();
        let allowed = allowed.filter(|rule| rule.action() == LinuxSeccompAction::ScmpActAllow);
        allowed.flat_map(|rule| rule.names()).map(String::as_str).collect()
    }

    #[test]
    fn the_list_has_the_usual_size_and_no_duplicates() {
        let all = table::ALWAYS.concat();
        let unique: HashSet<_> = all.iter().collect();
        assert_eq!(unique.len(), all.len());
        assert!((340..=420).contains(&all.len()), "{}", all.len());
    }

    #[test]
    fn dangerous_calls_are_not_listed() {
        let profile = default_profile(&HashSet::new());
        let listed = names(&profile);
        for name in [
            "io_uring_setup",
            "userfaultfd",
            "keyctl",
            "add_key",
            "request_key",
            "bpf",
            "unshare",
            "setns",
            "mount",
            "kexec_load",
            "open_by_handle_at",
            "init_module",
            "pivot_root",
            "swapon",
            "reboot",
            "clone3",
            "chroot",
        ] {
            assert!(!listed.contains(&name), "{name}");
        }
    }

    #[test]
    fn a_capability_brings_its_calls() {
        let profile = default_profile(&HashSet::from([Capability::SysChroot, Capability::SysTime]));
        let listed = names(&profile);
        assert!(listed.contains(&"chroot") && listed.contains(&"settimeofday") && !listed.contains(&"mount"));
    }
}
