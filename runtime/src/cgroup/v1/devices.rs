//! The `devices` controller: an ordered list of rules, written as text.
//!
//! Everything is denied first, then the specification's rules follow in their order, then those that the OCI
//! specification has every runtime allow. Version 2 has no such files: its filter is a BPF program.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::cgroup::Error;
use crate::cgroup::directory::Directory;

/// Allowed to every container: mknod of anything, the default devices, terminals.
const DEFAULT: [&str; 11] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

pub(super) fn apply(directory: &Directory, rules: &[LinuxDeviceCgroup]) -> Result<(), Error> {
    directory.write("devices.deny", "a")?;
    // Consecutive rules of a kind share an open file.
    for group in rules.chunk_by(|a, b| a.allow() == b.allow()) {
        let name = if group[0].allow() { "devices.allow" } else { "devices.deny" };
        directory.write_each(name, group.iter().map(text))?;
    }
    directory.write_each("devices.allow", DEFAULT.iter())
}

fn text(rule: &LinuxDeviceCgroup) -> String {
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => return "a".to_owned(),
        Some(LinuxDeviceType::B) => 'b',
        Some(_) => 'c',
    };
    let number = |value: Option<i64>| match value {
        Some(value) if value >= 0 => value.to_string(),
        _ => "*".to_owned(),
    };
    let access = rule.access().as_deref().unwrap_or("rwm");
    format!("{kind} {}:{} {access}", number(rule.major()), number(rule.minor()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    fn rule(typ: LinuxDeviceType, major: i64, access: &str) -> LinuxDeviceCgroup {
        let rule = LinuxDeviceCgroupBuilder::default().allow(true).typ(typ).major(major).access(access);
        rule.build().unwrap()
    }

    #[test]
    fn rules_have_the_kernels_text() {
        assert_eq!(text(&rule(LinuxDeviceType::C, 10, "rw")), "c 10:* rw");
        assert_eq!(text(&rule(LinuxDeviceType::B, -1, "r")), "b *:* r");
        assert_eq!(text(&rule(LinuxDeviceType::A, 1, "rwm")), "a");
    }

    #[test]
    fn all_is_denied_before_anything_is_allowed() {
        let fake = Fake::with(&[("devices.allow", ""), ("devices.deny", "")]);
        apply(&fake.directory(), &[rule(LinuxDeviceType::C, 10, "rw")]).unwrap();
        assert_eq!(fake.text("devices.deny"), "a");
        // Plain files keep all the writes that the open file got.
        assert_eq!(fake.text("devices.allow"), DEFAULT.concat());
    }
}
