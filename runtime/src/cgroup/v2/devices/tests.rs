//! The filter in a small interpreter, against the meaning of the rules, and in the kernel, on real devices.

use std::path::PathBuf;
use std::process::Command;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType};

use super::*;
use crate::cgroup::devices::{Devices, MKNOD, READ, WRITE, rules};
use crate::sys::before_exec;

/// Runs a program on one request; it may use only what `program` emits.
fn run(program: &[Instruction], kind: u32, major: u32, minor: u32, access: u8) -> bool {
    let context = [u32::from(access) << 16 | kind, major, minor];
    let mut registers = [0u64; 16];
    let mut next = 0;
    loop {
        let Instruction { operation, registers: fields, offset, value } = program[next];
        let (to, from) = (usize::from(fields & 15), usize::from(fields >> 4));
        next += 1;
        let mut jump = |when: bool| {
            if when {
                next = next.checked_add_signed(offset.into()).unwrap();
            }
        };
        match operation {
            LOAD_WORD => registers[to] = context[offset as usize / 4].into(),
            MOVE => registers[to] = value as u64,
            MOVE_REGISTER => registers[to] = registers[from],
            AND => registers[to] &= i64::from(value) as u64,
            SHIFT_RIGHT => registers[to] >>= value,
            JUMP => jump(true),
            JUMP_IF_NOT_EQUAL => jump(registers[to] as u32 != value as u32),
            JUMP_IF_ANY => jump(registers[to] as u32 & value as u32 != 0),
            EXIT => return registers[usize::from(RESULT)] == 1,
            other => panic!("operation {other:#x}"),
        }
    }
}

/// What the rules mean: for each access the last rule that names the device.
fn granted(rules: &[Rule], kind: Kind, major: u32, minor: u32, access: u8) -> bool {
    [MKNOD, READ, WRITE].iter().filter(|bit| access & **bit != 0).all(|bit| {
        let names = |rule: &&Rule| {
            rule.devices.kind == kind
                && rule.access & bit != 0
                && rule.devices.major.is_none_or(|number| number == major)
                && rule.devices.minor.is_none_or(|number| number == minor)
        };
        rules.iter().rev().find(names).is_some_and(|rule| rule.allow)
    })
}

#[test]
fn the_filter_grants_what_the_rules_grant() {
    // Every combination of two rules over a handful of devices.
    let mut all = Vec::new();
    for allow in [true, false] {
        for kind in [Kind::Block, Kind::Char] {
            for (major, minor) in [(None, None), (Some(8), None), (Some(8), Some(1)), (None, Some(1))] {
                for access in [ALL, READ, READ | WRITE, MKNOD] {
                    all.push(Rule { allow, devices: Devices { kind, major, minor }, access });
                }
            }
        }
    }
    for first in &all {
        for second in &all {
            let rules = [*first, *second];
            let program = program(&rules);
            for (number, kind) in [(1, Kind::Block), (2, Kind::Char)] {
                for (major, minor) in [(8, 1), (8, 2), (9, 1), (u32::MAX, 0)] {
                    for access in 1..=ALL {
                        let expected = granted(&rules, kind, major, minor, access);
                        let found = run(&program, number, major, minor, access);
                        assert_eq!(found, expected, "{rules:?} {kind:?} {major}:{minor} {access}");
                    }
                }
            }
        }
    }
}

/// A cgroup of version 2. Hosts with version 1 controllers have such a hierarchy too, if only for this; where it isn't
/// mounted, it is for the test.
struct Scratch {
    path: PathBuf,
    mount: Option<tempfile::TempDir>,
}

impl Scratch {
    fn new(name: &str) -> Scratch {
        let hierarchies = crate::cgroup::hierarchy::Hierarchies::of_host().unwrap();
        let mount = match hierarchies.unified {
            Some(_) => None,
            None => {
                let point = tempfile::tempdir().unwrap();
                let mounted =
                    Command::new("mount").args(["-t", "cgroup2", "none"]).arg(point.path()).status();
                assert!(mounted.unwrap().success());
                Some(point)
            }
        };
        let root = mount.as_ref().map(|point| point.path()).or(hierarchies.unified.as_deref()).unwrap();
        let path = root.join(format!("sampan-test-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Scratch { path, mount }
    }

    fn directory(&self) -> Directory {
        Directory::open(&self.path).unwrap()
    }

    /// Whether a process in here can do `script`.
    fn can(&self, script: &str) -> bool {
        let path = self.path.clone();
        let mut command = Command::new("sh");
        command.args(["-c", script]).stderr(std::process::Stdio::null());
        before_exec(&mut command, move || {
            Directory::open(&path).and_then(|d| d.write("cgroup.procs", "0")).map_err(std::io::Error::other)
        });
        command.status().unwrap().success()
    }

    fn programs(&self) -> usize {
        bpf::device_programs(self.directory().reopen().unwrap()).unwrap().len()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let since = std::time::Instant::now();
        let _ = crate::cgroup::tree::remove(&self.path, std::time::Duration::from_secs(5), since);
        if let Some(point) = &self.mount {
            let _ = Command::new("umount").arg(point.path()).status();
        }
    }
}

fn allow(typ: LinuxDeviceType, major: i64, minor: i64, access: &str) -> LinuxDeviceCgroup {
    let rule = LinuxDeviceCgroupBuilder::default().allow(true).typ(typ).major(major).minor(minor);
    rule.access(access).build().unwrap()
}

#[test]
fn the_kernel_refuses_what_is_not_allowed_and_takes_a_new_list_in_one_step() {
    let scratch = Scratch::new("devices");
    assert!(scratch.can("head -c1 /dev/kmsg") || scratch.can("true >/dev/kmsg"), "no filter yet");
    apply(&scratch.directory(), &rules(&[]).unwrap()).unwrap();
    assert!(scratch.can("head -c1 /dev/zero >/dev/null"), "the default devices work");
    assert!(!scratch.can("true >/dev/kmsg"));
    assert_eq!(scratch.programs(), 1);

    let kmsg = allow(LinuxDeviceType::C, 1, 11, "w");
    apply(&scratch.directory(), &rules(&[kmsg]).unwrap()).unwrap();
    assert!(scratch.can("true >/dev/kmsg"));
    assert!(!scratch.can("true </dev/kmsg"), "reading was not allowed");
    assert_eq!(scratch.programs(), 1, "replaced and not added");

    let all = LinuxDeviceCgroupBuilder::default().allow(true).access("rwm").build().unwrap();
    apply(&scratch.directory(), &rules(&[all]).unwrap()).unwrap();
    assert!(scratch.can("true </dev/kmsg"));
    assert_eq!(scratch.programs(), 0, "nothing to refuse, no filter");
}

#[test]
fn the_kernel_takes_rules_of_every_shape() {
    let scratch = Scratch::new("shapes");
    let deny = |typ, access: &str| {
        LinuxDeviceCgroupBuilder::default().allow(false).typ(typ).access(access).build().unwrap()
    };
    for specified in [
        vec![allow(LinuxDeviceType::A, -1, -1, "r"), deny(LinuxDeviceType::B, "w")],
        vec![allow(LinuxDeviceType::A, -1, -1, "rwm"), deny(LinuxDeviceType::C, "rwm")],
        (0..500).map(|minor| allow(LinuxDeviceType::C, 4_294_967_295, minor, "rw")).collect(),
    ] {
        apply(&scratch.directory(), &rules(&specified).unwrap()).unwrap();
    }
}

#[test]
fn programs_of_others_stay() {
    let scratch = Scratch::new("others");
    let cgroup = scratch.directory().reopen().unwrap();
    let grant_all = [answer(1)].concat();
    let other = bpf::load_device_program(&grant_all, *b"someone_else\0\0\0\0").unwrap();
    bpf::attach_device_program(&cgroup, &other, None).unwrap();
    apply(&scratch.directory(), &rules(&[]).unwrap()).unwrap();
    apply(&scratch.directory(), &rules(&[]).unwrap()).unwrap();
    assert_eq!(scratch.programs(), 2);
    assert!(!scratch.can("true >/dev/kmsg"));
}
