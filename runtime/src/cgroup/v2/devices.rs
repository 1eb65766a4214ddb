//! Device rules of version 2: a BPF program that the kernel asks at each open and mknod.
//!
//! ```text
//!  r2 = access asked for, r3 = kind, r4 = major, r5 = minor
//!  for each rule, the last one first:
//!      does it name the device? else on to the next
//!      deny:  is any of its accesses still open in r2?  → refuse
//!      allow: take its accesses out of r2; none left?   → grant
//!  refuse
//! ```
//!
//! So the last rule that names a device decides, for each access by itself. Programs of others, such as systemd's,
//! stay attached beside ours, and every one of them has to grant. Ours is known by its name and replaced in one step.

use std::os::fd::OwnedFd;

use crate::cgroup::Error;
use crate::cgroup::devices::{ALL, Kind, Rule, Sum, sum};
use crate::cgroup::directory::Directory;
use crate::sys::bpf::{self, Instruction};

const NAME: bpf::Name = *b"sampan_devices\0\0";

// Operations of linux/bpf.h and linux/bpf_common.h: class, size or source, and what is done.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const EXIT: u8 = 0x95;
const JUMP: u8 = 0x05;
/// The comparisons look at 32 bits, as device numbers have them.
const JUMP_IF_NOT_EQUAL: u8 = 0x56;
const JUMP_IF_ANY: u8 = 0x46;

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const ACCESS: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Puts `rules` in force: from the first moment to the last either the old ones hold or these.
pub(in crate::cgroup) fn apply(directory: &Directory, rules: &[Rule]) -> Result<(), Error> {
    let failed = |source| Error::Devices { path: directory.path().to_owned(), source };
    let cgroup = directory.reopen()?;
    let mut ours: Vec<OwnedFd> = Vec::new();
    for (name, program) in bpf::device_programs(&cgroup).map_err(failed)? {
        if name == NAME {
            ours.push(program);
        }
    }
    if sum(rules) != Sum::Everything {
        let program = bpf::load_device_program(&program(rules), NAME).map_err(failed)?;
        bpf::attach_device_program(&cgroup, &program, ours.pop().as_ref()).map_err(failed)?;
    }
    for old in ours {
        bpf::detach_device_program(&cgroup, &old).map_err(failed)?;
    }
    Ok(())
}

fn instruction(operation: u8, destination: u8, source: u8, offset: i16, value: i32) -> Instruction {
    Instruction { operation, registers: destination | source << 4, offset, value }
}

fn program(rules: &[Rule]) -> Vec<Instruction> {
    // The context: access << 16 | kind, major, minor.
    let mut program = vec![
        instruction(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, KIND, ACCESS, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        add(&mut program, rule);
    }
    program.extend(answer(0));
    program
}

fn answer(granted: i32) -> [Instruction; 2] {
    [instruction(MOVE, RESULT, 0, 0, granted), instruction(EXIT, 0, 0, 0, 0)]
}

fn add(program: &mut Vec<Instruction>, rule: &Rule) {
    let access = i32::from(rule.access);
    let mut body = Vec::new();
    if rule.allow {
        if rule.access != ALL {
            body.push(instruction(AND, ACCESS, 0, 0, !access));
            body.push(instruction(JUMP_IF_NOT_EQUAL, ACCESS, 0, 2, 0));
        }
        body.extend(answer(1));
    } else {
        if rule.access != ALL {
            body.push(instruction(JUMP_IF_ANY, ACCESS, 0, 1, access));
            body.push(instruction(JUMP, 0, 0, 2, 0));
        }
        body.extend(answer(0));
    }
    let kind = match rule.devices.kind {
        Kind::Block => 1,
        Kind::Char => 2,
    };
    let mut conditions = vec![(KIND, kind)];
    conditions.extend(rule.devices.major.map(|major| (MAJOR, major as i32)));
    conditions.extend(rule.devices.minor.map(|minor| (MINOR, minor as i32)));
    let count = conditions.len();
    for (index, (register, value)) in conditions.into_iter().enumerate() {
        let past = (count - index - 1 + body.len()) as i16;
        program.push(instruction(JUMP_IF_NOT_EQUAL, register, 0, past, value));
    }
    program.extend(body);
}

#[cfg(test)]
mod tests;
