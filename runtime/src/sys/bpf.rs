//! BPF: the few commands of `bpf(2)` that a device filter of cgroup version 2 needs.
//!
//! Programs are made of instructions that the caller assembled; the kernel verifies them. Layouts and numbers are
//! those of linux/bpf.h, which only ever grows.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::{Result, check, named};

/// One instruction: operation, registers (destination low, source high), offset, immediate value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) operation: u8,
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) value: i32,
}

const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_DETACH: i32 = 9;
const PROG_GET_FD_BY_ID: i32 = 13;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const PROG_QUERY: i32 = 16;

const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;

/// A name that a program carries, for whoever lists programs and for finding one's own: at most 15 bytes, NUL-padded.
pub(crate) type Name = [u8; 16];

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: Name,
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

#[repr(C)]
struct Query {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    reserved: u32,
}

#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

/// The part of `struct bpf_prog_info` up to the name.
#[repr(C)]
struct ProgramInfo {
    before: [u8; 64],
    name: Name,
}

/// # Safety
/// `T` is the layout of the command's attributes, and every address in it is valid for what the command does there.
unsafe fn bpf<T>(command: i32, attributes: &mut T) -> rustix::io::Result<libc::c_long> {
    let size = size_of::<T>();
    // SAFETY: the attributes are as long as the size says and live through the call; the rest is the caller's promise.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) })
}

/// `bpf(BPF_PROG_LOAD)` of a cgroup device program.
pub(crate) fn load_device_program(instructions: &[Instruction], name: Name) -> Result<OwnedFd> {
    let license = c"Apache-2.0";
    let mut load = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name,
    };
    // SAFETY: the instructions and the license outlive the call, which only reads them; no log is asked for.
    let result =
        named(unsafe { bpf(PROG_LOAD, &mut load) }, || "bpf(BPF_PROG_LOAD, BPF_PROG_TYPE_CGROUP_DEVICE)");
    // SAFETY: the kernel just made this descriptor, close-on-exec, and nothing else owns it.
    result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `bpf(BPF_PROG_ATTACH)` of a device program to a cgroup, beside those of others, or in one step in place of `replaced`.
pub(crate) fn attach_device_program(
    cgroup: impl AsFd,
    program: impl AsFd,
    replaced: Option<&OwnedFd>,
) -> Result<()> {
    let mut attach = Attach {
        target: cgroup.as_fd().as_raw_fd() as u32,
        program: program.as_fd().as_raw_fd() as u32,
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI | if replaced.is_some() { REPLACE } else { 0 },
        replaced: replaced.map_or(0, |fd| fd.as_raw_fd() as u32),
    };
    // SAFETY: the attributes are numbers, and the descriptors are borrowed for the call.
    named(unsafe { bpf(PROG_ATTACH, &mut attach) }, || "bpf(BPF_PROG_ATTACH, BPF_CGROUP_DEVICE)").map(drop)
}

/// `bpf(BPF_PROG_DETACH)` of a device program from a cgroup.
pub(crate) fn detach_device_program(cgroup: impl AsFd, program: impl AsFd) -> Result<()> {
    let mut attach = Attach {
        target: cgroup.as_fd().as_raw_fd() as u32,
        program: program.as_fd().as_raw_fd() as u32,
        kind: CGROUP_DEVICE,
        flags: 0,
        replaced: 0,
    };
    // SAFETY: the attributes are numbers, and the descriptors are borrowed for the call.
    named(unsafe { bpf(PROG_DETACH, &mut attach) }, || "bpf(BPF_PROG_DETACH, BPF_CGROUP_DEVICE)").map(drop)
}

/// The device programs attached to the cgroup itself, by `bpf(BPF_PROG_QUERY)`, with their names.
pub(crate) fn device_programs(cgroup: impl AsFd) -> Result<Vec<(Name, OwnedFd)>> {
    // The kernel attaches at most 64.
    let mut ids = [0u32; 64];
    let mut query = Query {
        target: cgroup.as_fd().as_raw_fd() as u32,
        kind: CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        reserved: 0,
    };
    // SAFETY: `ids` has room for `count` numbers, which is what the kernel is told, and outlives the call.
    named(unsafe { bpf(PROG_QUERY, &mut query) }, || "bpf(BPF_PROG_QUERY, BPF_CGROUP_DEVICE)")?;
    let mut programs = Vec::new();
    for &id in &ids[..(query.count as usize).min(ids.len())] {
        let mut by_id = ById { id, next: 0, flags: 0 };
        // SAFETY: the attributes are numbers.
        let fd = match unsafe { bpf(PROG_GET_FD_BY_ID, &mut by_id) } {
            // SAFETY: the kernel just made this descriptor, close-on-exec, and nothing else owns it.
            Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd as i32) },
            // Detached meanwhile.
            Err(rustix::io::Errno::NOENT) => continue,
            Err(errno) => return named(Err(errno), || format!("bpf(BPF_PROG_GET_FD_BY_ID, {id})")),
        };
        programs.push((program_name(&fd)?, fd));
    }
    Ok(programs)
}

fn program_name(program: &OwnedFd) -> Result<Name> {
    let mut info = ProgramInfo { before: [0; 64], name: [0; 16] };
    let mut by_fd = InfoByFd {
        fd: program.as_raw_fd() as u32,
        length: size_of::<ProgramInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: `info` is as long as `length` says; its lengths and pointers for further output are zero.
    named(unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut by_fd) }, || "bpf(BPF_OBJ_GET_INFO_BY_FD)")?;
    Ok(info.name)
}
