//! The program's first instructions, before those of the C library: executes the program again from a read-only mount.
//!
//! [`crate::executable`] says why a process that makes containers runs from one, and makes sure of it. Done here, the
//! exec that this costs is paid before the C library has set itself up: glibc asks the processor some eighty times what
//! it has (CPUID), which a virtual machine answers by leaving the guest, so that each start costs up to half a
//! millisecond there. Where anything is not as expected the program just begins, and the rest is `executable`'s.
//!
//! Always true: nothing here calls anything. There is no stack for signals, no thread-local storage, and `memcpy` and
//! the like are not chosen yet. build.rs names `sampan_entry` to the linker, for the programs alone.
#![allow(unsafe_code)]
#![cfg(all(target_arch = "x86_64", target_env = "gnu"))]

use core::arch::{asm, naked_asm};
use core::mem::MaybeUninit;

/// Where the kernel begins: with the arguments and the environment at the top of the stack.
///
/// # Safety
/// To be jumped to by the kernel alone.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn sampan_entry() -> ! {
    // rdx is the C library's to see; pushed twice, as the stack is aligned to 16 bytes at each call.
    naked_asm!(
        "mov rdi, rsp",
        "push rdx",
        "push rdx",
        "call {protect}",
        "pop rdx",
        "pop rdx",
        "jmp _start",
        protect = sym protect,
    )
}

/// Doesn't return where the program is executed again.
///
/// # Safety
/// `stack` is what the kernel gave a new program: a count, as many arguments, a null, the environment, a null.
unsafe extern "C" fn protect(stack: *const usize) {
    const EMPTY: *const u8 = c"".as_ptr().cast();
    const CWD: usize = libc::AT_FDCWD as usize;
    const PATH: usize = (libc::O_PATH | libc::O_CLOEXEC) as usize;
    // From linux/mount.h and linux/fcntl.h.
    const CLONE: usize = 1 | libc::O_CLOEXEC as usize | libc::AT_EMPTY_PATH as usize;

    let Some(own) = call(libc::SYS_openat, [CWD, c"/proc/self/exe".as_ptr() as usize, PATH, 0, 0]) else {
        return;
    };
    let mount = match is_read_only(own) {
        Some(false) => call(libc::SYS_open_tree, [own, EMPTY as usize, CLONE, 0, 0]),
        _ => None,
    };
    call(libc::SYS_close, [own, 0, 0, 0, 0]);
    let Some(mount) = mount else { return };
    // struct mount_attr: set, clear, propagation, users.
    let read_only = [libc::MOUNT_ATTR_RDONLY, 0, 0, 0];
    let at = libc::AT_EMPTY_PATH as usize;
    call(
        libc::SYS_mount_setattr,
        [mount, EMPTY as usize, at, read_only.as_ptr() as usize, size_of_val(&read_only)],
    );
    if is_read_only(mount) == Some(true) {
        // SAFETY: as the caller promised.
        let (arguments, environment) = unsafe { (stack.add(1), stack.add(*stack + 2)) };
        let arguments = [mount, EMPTY as usize, arguments as usize, environment as usize, at];
        call(libc::SYS_execveat, arguments);
    }
    call(libc::SYS_close, [mount, 0, 0, 0, 0]);
}

/// Whether the mount that a file was opened by is.
fn is_read_only(file: usize) -> Option<bool> {
    // struct statfs is fifteen words, the eleventh of which are the flags.
    let mut stat = MaybeUninit::<[u64; 15]>::uninit();
    call(libc::SYS_fstatfs, [file, stat.as_mut_ptr() as usize, 0, 0, 0])?;
    // SAFETY: the kernel filled it.
    let flags = unsafe { stat.assume_init_ref()[10] };
    Some(flags & libc::ST_RDONLY != 0)
}

/// A system call of up to five arguments: its value, or nothing when it failed.
fn call(number: libc::c_long, arguments: [usize; 5]) -> Option<usize> {
    let value: isize;
    // SAFETY: each caller's pointers are to what outlives the call and is as the kernel expects. The instruction
    // changes rcx and r11, and what the kernel writes to.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => value,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    usize::try_from(value).ok()
}
