//! Credentials: users and groups, capability sets, no_new_privs, seccomp.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{Result, check, named};

/// `setgroups(groups)`.
pub(crate) fn setgroups(groups: &[u32]) -> Result<()> {
    let gids: Vec<Gid> = groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    named(rustix::thread::set_thread_groups(&gids), || format!("setgroups({groups:?})"))
}

/// `setresgid(gid, gid, gid)`.
pub(crate) fn setgid(gid: u32) -> Result<()> {
    let id = Gid::from_raw(gid);
    named(rustix::thread::set_thread_res_gid(id, id, id), || format!("setresgid({gid})"))
}

/// `setresuid(uid, uid, uid)`.
pub(crate) fn setuid(uid: u32) -> Result<()> {
    let id = Uid::from_raw(uid);
    named(rustix::thread::set_thread_res_uid(id, id, id), || format!("setresuid({uid})"))
}

/// `setfsgid(gid)` and `setfsuid(uid)` of this thread, which keeps every capability that it may have.
pub(crate) fn set_filesystem_ids(uid: u32, gid: u32) -> Result<()> {
    // SAFETY: both take an integer, concern this thread only and touch no memory. They tell the value before: whether
    // the new one was taken shows only in the next call.
    let taken = unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
        (libc::syscall(libc::SYS_setfsgid, gid), libc::syscall(libc::SYS_setfsuid, uid))
    };
    let result = if taken == (gid.into(), uid.into()) { Ok(()) } else { Err(rustix::io::Errno::PERM) };
    named(result, || format!("setfsgid({gid}), setfsuid({uid})"))?;
    // A file system's user that isn't root costs what root could do to files.
    let sets = capget()?;
    capset(CapabilitySets { effective: sets.permitted, ..sets })
}

/// `prctl(PR_SET_KEEPCAPS, keep)`.
pub(crate) fn keep_capabilities(keep: bool) -> Result<()> {
    named(rustix::thread::set_keep_capabilities(keep), || format!("prctl(PR_SET_KEEPCAPS, {keep})"))
}

/// `capget()` of this thread.
pub(crate) fn capget() -> Result<CapabilitySets> {
    named(rustix::thread::capabilities(None), || "capget()")
}

/// `capset(sets)` of this thread.
pub(crate) fn capset(sets: CapabilitySets) -> Result<()> {
    named(rustix::thread::set_capabilities(None, sets), || format!("capset({sets:?})"))
}

/// `prctl(PR_CAPBSET_DROP, number)`; false when the kernel knows no such capability.
pub(crate) fn drop_bounding(number: u32) -> Result<bool> {
    let capability = CapabilitySet::from_bits_retain(1 << number);
    match rustix::thread::remove_capability_from_bounding_set(capability) {
        Err(rustix::io::Errno::INVAL) => Ok(false),
        result => named(result, || format!("prctl(PR_CAPBSET_DROP, {number})")).map(|()| true),
    }
}

/// `prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)`.
pub(crate) fn raise_ambient(number: u32) -> Result<()> {
    let capability = CapabilitySet::from_bits_retain(1 << number);
    let result = rustix::thread::configure_capability_in_ambient_set(capability, true);
    named(result, || format!("prctl(PR_CAP_AMBIENT_RAISE, {number})"))
}

/// `prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)`.
pub(crate) fn clear_ambient() -> Result<()> {
    named(rustix::thread::clear_ambient_capability_set(), || "prctl(PR_CAP_AMBIENT_CLEAR_ALL)")
}

/// `prctl(PR_SET_NO_NEW_PRIVS)`.
pub(crate) fn no_new_privs() -> Result<()> {
    named(rustix::thread::set_no_new_privs(true), || "prctl(PR_SET_NO_NEW_PRIVS)")
}

/// `prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)`: read, write, exit and the return from a signal's handler are left.
pub(crate) fn strict_seccomp() -> Result<()> {
    let strict = rustix::thread::SecureComputingMode::Strict;
    named(rustix::thread::set_secure_computing_mode(strict), || "prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)")
}

/// Joins the session keyring of a container, which is made if it isn't there, and lets every user in the container find
/// the keys in it. A kernel without keyrings has none to be kept apart.
pub(crate) fn join_keyring(id: &str) -> Result<()> {
    /// From linux/keyctl.h.
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    const SETPERM: libc::c_long = 5;
    /// What the possessor of a key may do is in the highest byte, its owner's rights in the one below it.
    const OWNER_SEARCHES: libc::c_long = 0x08_0000;
    /// As the kernel has them for a new keyring: everything for its possessor, and view and read for its owner.
    const NEW: libc::c_long = 0x3f03_0000;
    let call = || format!("keyctl(KEYCTL_JOIN_SESSION_KEYRING, _ses.{id})");
    let Ok(name) = std::ffi::CString::new(format!("_ses.{id}")) else {
        return named(Err(rustix::io::Errno::INVAL), call);
    };
    // SAFETY: the kernel only reads the string, which lives through the call.
    let joined = check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) });
    let keyring = match joined {
        Err(rustix::io::Errno::NOSYS) => return Ok(()),
        result => named(result, call)?,
    };
    // SAFETY: takes integers only.
    let permitted = check(unsafe { libc::syscall(libc::SYS_keyctl, SETPERM, keyring, NEW | OWNER_SEARCHES) });
    match permitted {
        // An exec with another owner than the keyring's: who made it has set this.
        Err(rustix::io::Errno::ACCESS) => Ok(()),
        result => named(result, || format!("keyctl(KEYCTL_SETPERM, {keyring})")).map(drop),
    }
}

/// The instructions of a seccomp program whose bytes are `struct sock_filter`s.
pub(crate) fn filters(program: &[u8]) -> Vec<libc::sock_filter> {
    let (instructions, _) = program.as_chunks();
    let filter = |&[c0, c1, jt, jf, k0, k1, k2, k3]: &[u8; 8]| libc::sock_filter {
        code: u16::from_ne_bytes([c0, c1]),
        jt,
        jf,
        k: u32::from_ne_bytes([k0, k1, k2, k3]),
    };
    instructions.iter().map(filter).collect()
}

/// `seccomp(SECCOMP_SET_MODE_FILTER, flags, filters)`; with `SECCOMP_FILTER_FLAG_NEW_LISTENER` the descriptor that gets
/// the notifications.
pub(crate) fn load_seccomp(filters: &[libc::sock_filter], flags: u64) -> Result<Option<OwnedFd>> {
    let Ok(len) = u16::try_from(filters.len()) else {
        return named(Err(rustix::io::Errno::TOOBIG), || "seccomp(SECCOMP_SET_MODE_FILTER)");
    };
    let program = libc::sock_fprog { len, filter: filters.as_ptr().cast_mut() };
    // SAFETY: the kernel only reads the program, which lives through the call, and checks it.
    let result = check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(&program))
    });
    let result =
        named(result, || format!("seccomp(SECCOMP_SET_MODE_FILTER, {flags:#x}, {len} instructions)"))?;
    let listens = flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0;
    // SAFETY: with this flag the result is a new descriptor, which nobody else owns.
    Ok(listens.then(|| unsafe { OwnedFd::from_raw_fd(result as RawFd) }))
}
