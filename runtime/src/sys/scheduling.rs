//! When and where a process runs: personality, scheduler, processors, memory nodes, I/O priority.
#![allow(unsafe_code)]

use super::{Result, check, named};

/// `struct sched_attr` of linux/sched/types.h, up to the utilisation clamps.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Attributes {
    pub(crate) size: u32,
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

/// `sched_setattr(0, attributes, 0)`.
pub(crate) fn set_scheduler(mut attributes: Attributes) -> Result<()> {
    attributes.size = size_of::<Attributes>() as u32;
    // SAFETY: the kernel reads `attributes`, of the size told in it, during the call.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(&attributes), 0) };
    named(check(result), || format!("sched_setattr({attributes:?})")).map(drop)
}

/// `ioprio_set(IOPRIO_WHO_PROCESS, 0, class, priority)`.
pub(crate) fn set_io_priority(class: u32, priority: u32) -> Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_SHIFT: u32 = 13;
    // SAFETY: takes integers only.
    let result =
        unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, class << CLASS_SHIFT | priority) };
    named(check(result), || format!("ioprio_set(class {class}, priority {priority})")).map(drop)
}

/// `personality(domain)`.
pub(crate) fn set_personality(domain: libc::c_ulong) -> Result<()> {
    // SAFETY: takes an integer only.
    let result = unsafe { libc::personality(domain) };
    named(check(result.into()), || format!("personality({domain:#x})")).map(drop)
}

/// `set_mempolicy(mode, nodes)`; `nodes` is a bit mask.
pub(crate) fn set_memory_policy(mode: u32, nodes: &[u64]) -> Result<()> {
    // The kernel wants one more than there are bits.
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * 64 + 1 };
    let mask = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: the kernel reads `bits - 1` bits of the mask, all of which exist.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) };
    named(check(result), || format!("set_mempolicy({mode:#x}, {nodes:x?})")).map(drop)
}

/// `sched_setaffinity(0, mask)`; bits are processors.
pub(crate) fn set_affinity(processors: &[u64]) -> Result<()> {
    // SAFETY: the kernel reads as many bytes as told, all of which exist.
    let result = unsafe {
        libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(processors), processors.as_ptr())
    };
    named(check(result), || format!("sched_setaffinity({processors:x?})")).map(drop)
}
