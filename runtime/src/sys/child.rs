//! Work that a child does between fork and exec.
#![allow(unsafe_code)]

#[cfg(test)]
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, set_parent_process_death_signal};

/// Has the kernel kill the child when the thread that starts it ends, so also when this process is killed.
pub fn end_with_parent(command: &mut Command) {
    // SAFETY: the closure makes one system call and neither allocates nor takes a lock.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
}

/// For tests: runs `work` in the child. It may allocate: glibc's allocator is usable in a forked child.
#[cfg(test)]
pub(crate) fn before_exec(
    command: &mut Command,
    work: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: the callers open and write small files only and take no lock of this process.
    unsafe { command.pre_exec(work) };
}
