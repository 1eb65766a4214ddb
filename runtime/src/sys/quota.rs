//! Project quotas: the project of a directory, and what the file system knows and allows of a project.

#![allow(unsafe_code)]

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

use super::{Result, check, named};

/// `struct fsxattr` (include/uapi/linux/fs.h).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_on_write_extent_size: u32,
    reserved: [u8; 8],
}

const GET_ATTRIBUTES: libc::Ioctl = request(READ, 31);
const SET_ATTRIBUTES: libc::Ioctl = request(WRITE, 32);
/// The kernel gives an answer, or takes one (include/uapi/asm-generic/ioctl.h).
const READ: libc::Ioctl = 2;
const WRITE: libc::Ioctl = 1;
/// What is made in the directory gets its project, and this flag if it is a directory itself.
const INHERIT: u32 = 0x200;

/// `struct if_dqblk` (include/uapi/linux/quota.h).
#[repr(C)]
#[derive(Default)]
pub(crate) struct Block {
    /// In KiB.
    pub(crate) hard_limit: u64,
    pub(crate) soft_limit: u64,
    /// In bytes.
    pub(crate) space: u64,
    pub(crate) inode_hard_limit: u64,
    pub(crate) inode_soft_limit: u64,
    pub(crate) inodes: u64,
    pub(crate) block_time: u64,
    pub(crate) inode_time: u64,
    pub(crate) valid: u32,
}

/// Only the limits of space are meant.
pub(crate) const SPACE_LIMITS: u32 = 1;

const PROJECT: u32 = 2;
const GET: u32 = 0x80_0007;
const SET: u32 = 0x80_0008;

/// The number of a request of type `X` about attributes.
const fn request(direction: libc::Ioctl, number: libc::Ioctl) -> libc::Ioctl {
    direction << 30 | (size_of::<Attributes>() as libc::Ioctl) << 16 | (b'X' as libc::Ioctl) << 8 | number
}

/// `ioctl(directory, FS_IOC_FSSETXATTR)`: what is made in it from now on belongs to the project.
pub(crate) fn set_project(directory: impl AsFd, project: u32) -> Result<()> {
    let fd = directory.as_fd().as_raw_fd();
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes one fsxattr, which is what the exclusive reference points at; the descriptor is
    // borrowed for the length of the call.
    let result = unsafe { libc::ioctl(fd, GET_ATTRIBUTES, std::ptr::from_mut(&mut attributes)) };
    named(check(result.into()), || "ioctl(FS_IOC_FSGETXATTR)")?;
    attributes.project = project;
    attributes.flags |= INHERIT;
    // SAFETY: the kernel reads one fsxattr from where the reference points, which is initialised.
    let result = unsafe { libc::ioctl(fd, SET_ATTRIBUTES, std::ptr::from_ref(&attributes)) };
    named(check(result.into()), || format!("ioctl(FS_IOC_FSSETXATTR, {project})")).map(drop)
}

/// `quotactl_fd(on, Q_GETQUOTA, project)` (Linux 5.14).
pub(crate) fn get(on: impl AsFd, project: u32) -> Result<Block> {
    let mut block = Block::default();
    let address = std::ptr::from_mut(&mut block).addr();
    // SAFETY: the kernel writes no more than one if_dqblk, padded to 8 bytes, at the address, and that is the size
    // of what the reference points at.
    let result = unsafe { quotactl(on.as_fd().as_raw_fd(), GET, project, address) };
    named(check(result), || format!("quotactl_fd(Q_GETQUOTA, {project})"))?;
    Ok(block)
}

/// `quotactl_fd(on, Q_SETQUOTA, project)`.
pub(crate) fn set(on: impl AsFd, project: u32, block: &Block) -> Result<()> {
    let address = std::ptr::from_ref(block).addr();
    // SAFETY: the kernel reads one if_dqblk at the address, which is where the reference points.
    let result = unsafe { quotactl(on.as_fd().as_raw_fd(), SET, project, address) };
    named(check(result), || format!("quotactl_fd(Q_SETQUOTA, {project})")).map(drop)
}

/// # Safety
/// At `address` there has to be what the command reads or writes.
unsafe fn quotactl(fd: i32, command: u32, project: u32, address: usize) -> libc::c_long {
    const { assert!(size_of::<Block>() == 72) };
    let command = command << 8 | PROJECT;
    // SAFETY: the caller vouches for the address; the other arguments are numbers.
    unsafe { libc::syscall(libc::SYS_quotactl_fd, fd, command, project, address) }
}
