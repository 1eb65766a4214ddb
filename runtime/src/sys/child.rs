//! For tests: work that a child does between fork and exec.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Runs `work` in the child. It may allocate: glibc's allocator is usable in a forked child.
pub(crate) fn before_exec(
    command: &mut Command,
    work: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: the callers open and write small files only and take no lock of this process.
    unsafe { command.pre_exec(work) };
}
