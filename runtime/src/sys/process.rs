//! Processes: clone3 with the semantics of fork, namespaces, descriptors, signals, exec.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use rustix::thread::ThreadNameSpaceType;

use super::{Error, Result, check, named};

/// Both sides of [`fork`].
pub(crate) enum Forked {
    Parent { pid: i32, pidfd: OwnedFd },
    Child,
}

/// `clone3` with a copy of the address space, as fork has it, and a pidfd.
///
/// `flags` are further `CLONE_*` bits; `cgroup` is the version 2 cgroup that the child starts in.
/// Handlers of signals are reset in the child. A process with several threads is refused: the
/// child would inherit locks that nobody is left to release. With `CLONE_PARENT` the child becomes the caller's sibling.
pub(crate) fn fork(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked> {
    /// From linux/sched.h; libc declares it too narrow for its own value.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

    // A process that has one thread already shares nothing that this would unshare: it does nothing then, and fails else.
    // SAFETY: takes integers only.
    let single = check(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_THREAD) });
    named(single, || "unshare(CLONE_THREAD), which needs a single-threaded process")?;

    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data, for which zeros are valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    // A sibling gets the caller's own, and the kernel refuses another.
    let sibling = flags & libc::CLONE_PARENT as u64 != 0;
    args.exit_signal = if sibling { 0 } else { libc::SIGCHLD as u64 };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and with a null stack this is fork: the child goes on with a copy
    // of this stack. The process has one thread, so no lock is held by anybody else. `args` and
    // `pidfd` outlive the call.
    let result = check(unsafe { libc::syscall(libc::SYS_clone3, ptr::from_ref(&args), size_of_val(&args)) });
    match named(result, || format!("clone3({:#x})", args.flags))? {
        0 => Ok(Forked::Child),
        pid => {
            // SAFETY: the kernel stored a new descriptor here, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent { pid: pid as i32, pidfd })
        }
    }
}

/// What proc_pid_stat(5) tells of a process.
pub(crate) struct Stat(String);

impl Stat {
    /// Of a process by its pid, or of this one by `self`.
    pub(crate) fn of(process: impl Display) -> io::Result<Stat> {
        std::fs::read_to_string(format!("/proc/{process}/stat")).map(Stat)
    }

    /// A field by the number that the manual gives it, 3 or more.
    pub(crate) fn field(&self, number: usize) -> Option<&str> {
        // The second, the name, may hold anything.
        self.0.rsplit(')').next()?.split_ascii_whitespace().nth(number.checked_sub(3)?)
    }
}

/// Whether a process is on its way out, or gone.
pub(crate) fn is_exiting(pid: i32) -> bool {
    // include/linux/sched.h
    const PF_EXITING: u32 = 4;
    let Ok(stat) = Stat::of(pid) else { return true };
    let flags = stat.field(9).and_then(|flags| flags.parse::<u32>().ok());
    flags.is_none_or(|flags| flags & PF_EXITING != 0)
}

/// Has lists of processes show `title` where they show the arguments that this process was started with, which are gone
/// then, also for `std::env::args`.
pub(crate) fn set_title(title: &CStr) -> io::Result<()> {
    let stat = Stat::of("self")?;
    // arg_start and arg_end
    let address = |field| stat.field(field).and_then(|field| field.parse::<usize>().ok());
    let (Some(start), Some(end)) = (address(48), address(49)) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let length = end.saturating_sub(start);
    // The last byte stays zero: by it the kernel knows that nothing goes on behind.
    let title = title.to_bytes();
    let title = &title[..title.len().min(length.saturating_sub(1))];
    if start == 0 || title.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let arguments = ptr::with_exposed_provenance_mut::<u8>(start);
    // SAFETY: the kernel put the arguments there, at the top of this process's own stack, which is writable and stays mapped.
    // Nobody holds a reference to them: the standard library copies them for each who asks, and nobody asks at the same
    // time, as this process has one thread. They are zeros and a short text afterwards, with a zero at the end as before.
    unsafe {
        ptr::write_bytes(arguments, 0, length);
        ptr::copy_nonoverlapping(title.as_ptr(), arguments, title.len());
    }
    Ok(())
}

/// `setns(fd, kinds)`; `fd` is a pidfd or a file of `/proc/PID/ns`.
pub(crate) fn setns(fd: impl AsFd, kinds: ThreadNameSpaceType) -> Result<()> {
    let result = rustix::thread::move_into_thread_name_spaces(fd.as_fd(), kinds);
    named(result, || format!("setns({:#x})", kinds.bits()))
}

/// `ioctl(namespace, NS_GET_USERNS)`: the user namespace that a namespace belongs to (Linux 4.9).
pub(crate) fn owning_users(namespace: impl AsFd) -> Result<OwnedFd> {
    /// `_IO(0xb7, 0x1)` of linux/nsfs.h.
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: takes no argument and touches no memory.
    let result = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_USERNS) };
    let number = named(check(result.into()), || "ioctl(NS_GET_USERNS)")?;
    // SAFETY: the kernel made a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}

/// `unshare(kinds)`, of namespaces and of the file system context.
pub(crate) fn unshare(kinds: rustix::thread::UnshareFlags) -> Result<()> {
    debug_assert!(!kinds.contains(rustix::thread::UnshareFlags::FILES));
    // SAFETY: what makes this call unsafe is a separate descriptor table a thread (CLONE_FILES), which no caller asks for.
    named(unsafe { rustix::thread::unshare_unsafe(kinds) }, || format!("unshare({:#x})", kinds.bits()))
}

/// Arranges the descriptors of a freshly cloned child: `stdio` becomes 0 to 2, which stay open
/// across exec, the next `preserved` ones stay as they are, `others` come after them, close-on-exec, and
/// everything else is closed.
///
/// The child's copies of its parent's `OwnedFd`s are void afterwards; it must neither use nor drop them.
pub(crate) fn keep_only(
    stdio: [BorrowedFd<'_>; 3],
    preserved: u32,
    others: &[BorrowedFd<'_>],
) -> Result<Vec<OwnedFd>> {
    let first = 3 + preserved as RawFd;
    let places = (0..3).chain(first..);
    let mut sources: Vec<RawFd> = stdio.iter().chain(others).map(AsRawFd::as_raw_fd).collect();
    let count = first + others.len() as RawFd;
    for (place, source) in places.clone().zip(&mut sources) {
        // A source in the way of another's place moves out of it first.
        if *source < count && *source != place {
            // SAFETY: makes a new descriptor and touches no memory.
            let moved = unsafe { libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, count) };
            *source = named(check(moved.into()), || format!("fcntl({source}, F_DUPFD_CLOEXEC)"))? as RawFd;
        }
    }
    for (place, &source) in places.zip(&sources) {
        let result = if source == place {
            let flags = if place < 3 { 0 } else { libc::FD_CLOEXEC };
            // SAFETY: sets a flag of a descriptor that is open.
            unsafe { libc::fcntl(place, libc::F_SETFD, flags) }
        } else {
            let flags = if place < 3 { 0 } else { libc::O_CLOEXEC };
            // SAFETY: replaces a descriptor in the table of this child alone, whose old owner is void.
            unsafe { libc::dup3(source, place, flags) }
        };
        named(check(result.into()), || format!("dup3({source}, {place})"))?;
    }
    close_range(count as u32, 0)?;
    // SAFETY: these were opened by the loop above, and the void owners are never dropped.
    Ok((first..count).map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}

/// Whether descriptors 3 to 3 + `count` are open, and makes them survive an exec.
pub(crate) fn keep_across_exec(count: u32) -> Result<()> {
    for number in 3..3 + count as RawFd {
        // SAFETY: sets a flag of a descriptor, or fails when it isn't open.
        let result = unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
        named(check(result.into()), || format!("fcntl({number}, F_SETFD)"))?;
    }
    Ok(())
}

/// Makes `file` the three standard descriptors of a child that has been through [`keep_only`].
pub(crate) fn replace_stdio(file: impl AsFd) -> Result<()> {
    (0..3).try_for_each(|place| replace_standard(&file, place))
}

/// Makes `file` one of the standard descriptors of such a child.
pub(crate) fn replace_standard(file: impl AsFd, place: RawFd) -> Result<()> {
    debug_assert!((0..3).contains(&place));
    let file = file.as_fd().as_raw_fd();
    // SAFETY: replaces a descriptor that nothing owns: `stdio` only lends them.
    let result = unsafe { libc::dup2(file, place) };
    named(check(result.into()), || format!("dup2({file}, {place})")).map(drop)
}

/// Descriptors 0, 1 and 2 of a child that has been through [`keep_only`].
pub(crate) fn stdio() -> [BorrowedFd<'static>; 3] {
    // SAFETY: keep_only opened them, and nothing here ever closes them.
    [0, 1, 2].map(|number| unsafe { BorrowedFd::borrow_raw(number) })
}

/// Marks every descriptor above the standard ones and `preserved` more close-on-exec.
pub(crate) fn close_on_exec_above(preserved: u32) -> Result<()> {
    close_range(3 + preserved, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, flags: u32) -> Result<()> {
    // SAFETY: closing (or marking) is what both callers promise; no memory is touched.
    let result = check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) });
    named(result, || format!("close_range({first}, {}, {flags})", u32::MAX)).map(drop)
}

/// Default disposition for every signal and an empty mask: what a program expects at its start.
pub(crate) fn reset_signals() -> Result<()> {
    /// The kernel's `struct sigaction`, which is at most this long; zeros are SIG_DFL without flags.
    const DEFAULT: [u64; 8] = [0; 8];
    /// Bytes of the kernel's `sigset_t`.
    const SET_SIZE: usize = 8;
    // Past the C library, which keeps two signals to itself and lets nobody undo what a parent did to them.
    for signal in 1..=64 {
        // Fails for SIGKILL and SIGSTOP, which nobody could have changed.
        // SAFETY: the kernel reads a prefix of DEFAULT, writes nothing, and SIG_DFL runs no code of ours.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), ptr::null::<u64>(), SET_SIZE)
        };
    }
    // SAFETY: sigset_t is plain data, and sigemptyset gives it its value.
    let result = unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut())
    };
    named(check(result.into()), || "sigprocmask(SIG_SETMASK, {})").map(drop)
}

/// `setsid()`.
pub(crate) fn setsid() -> Result<()> {
    named(rustix::process::setsid(), || "setsid()").map(drop)
}

/// `ioctl(fd, TIOCSCTTY)`.
pub(crate) fn take_terminal(fd: impl AsFd) -> Result<()> {
    named(rustix::process::ioctl_tiocsctty(fd), || "ioctl(TIOCSCTTY)")
}

/// A pidfd of this process.
pub(crate) fn own_pidfd() -> Result<OwnedFd> {
    let pid = rustix::process::getpid();
    let result = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
    named(result, || format!("pidfd_open({pid})"))
}

/// `pidfd_open(pid)`.
pub(crate) fn pidfd_open(pid: i32) -> Result<OwnedFd> {
    let known = rustix::process::Pid::from_raw(pid).ok_or(Errno::SRCH);
    let result = known.and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()));
    named(result, || format!("pidfd_open({pid})"))
}

/// `pidfd_getfd(pidfd, number)`.
pub(crate) fn pidfd_getfd(pidfd: impl AsFd, number: RawFd) -> Result<OwnedFd> {
    let flags = rustix::process::PidfdGetfdFlags::empty();
    named(rustix::process::pidfd_getfd(pidfd, number, flags), || format!("pidfd_getfd({number})"))
}

/// `prctl(PR_SET_DUMPABLE, 0)`.
pub(crate) fn set_not_dumpable() -> Result<()> {
    let result = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    named(result, || "prctl(PR_SET_DUMPABLE, 0)")
}

/// `setrlimit(resource, limit)`.
pub(crate) fn setrlimit(resource: Resource, limit: Rlimit) -> Result<()> {
    named(rustix::process::setrlimit(resource, limit), || {
        format!("setrlimit({resource:?}, {:?}, {:?})", limit.current, limit.maximum)
    })
}

/// `sethostname(name)`.
pub(crate) fn sethostname(name: &str) -> Result<()> {
    named(rustix::system::sethostname(name.as_bytes()), || format!("sethostname({name:?})"))
}

/// `setdomainname(name)`.
pub(crate) fn setdomainname(name: &str) -> Result<()> {
    // SAFETY: the pointer and the length are of one live string.
    let result = unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) };
    named(check(result.into()), || format!("setdomainname({name:?})")).map(drop)
}

/// Arguments or environment of a program, in the form the kernel takes.
pub(crate) struct Strings {
    pointers: Vec<*const libc::c_char>,
    _strings: Vec<CString>,
}

impl Strings {
    pub(crate) fn new(strings: Vec<CString>) -> Strings {
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
        Strings { pointers, _strings: strings }
    }
}

/// `execve(path, arguments, environment)`: returns only when it failed.
pub(crate) fn execve(path: &CString, arguments: &Strings, environment: &Strings) -> Errno {
    // SAFETY: both tables end with null and point into strings that `Strings` owns.
    unsafe { libc::execve(path.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr()) };
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// `execveat(file, "", arguments, environment, AT_EMPTY_PATH)`: returns only when it failed.
pub(crate) fn fexecve(file: impl AsFd, arguments: &Strings, environment: &Strings) -> Error {
    let file = file.as_fd().as_raw_fd();
    // SAFETY: as for execve; the path is a static empty string.
    let result = check(unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file,
            c"".as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    });
    Error::new("execveat(AT_EMPTY_PATH)", result.err().unwrap_or(Errno::IO))
}

/// `exit_group(code)`, past every destructor and handler of the process this one was cloned from.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: ends the process and returns nowhere.
    unsafe { libc::_exit(code) }
}

/// `exit(code)` of the only thread that a process has: strict seccomp allows no other.
pub(crate) fn exit_thread(code: i32) -> ! {
    loop {
        // SAFETY: ends the thread and returns nowhere.
        unsafe { libc::syscall(libc::SYS_exit, code) };
    }
}

/// Whether a process ends in time.
pub(crate) fn ends_within(pid: u32, limit: Duration) -> io::Result<bool> {
    let pidfd = pidfd_open(pid.cast_signed()).map_err(io::Error::other)?;
    let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
