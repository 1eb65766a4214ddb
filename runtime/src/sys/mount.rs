//! Mounts by descriptor: file system contexts, detached trees, attributes, pivot_root.
#![allow(unsafe_code)]

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use super::{Error, Result, check, named};

/// A file system being configured. Its errors carry what the kernel logged about the failure.
pub(crate) struct Context {
    fd: OwnedFd,
    name: String,
}

impl Context {
    /// `fsopen(name)`.
    pub(crate) fn open(name: &str) -> Result<Context> {
        let fd =
            named(rustix::mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC), || format!("fsopen({name:?})"))?;
        Ok(Context { fd, name: name.to_owned() })
    }

    /// `fsconfig(FSCONFIG_SET_FLAG, key)`.
    pub(crate) fn flag(&self, key: &str) -> Result<()> {
        let result = rustix::mount::fsconfig_set_flag(&self.fd, key);
        result.map_err(|errno| self.error(format_args!("{key:?}"), errno))
    }

    /// `fsconfig(FSCONFIG_SET_STRING, key, value)`.
    pub(crate) fn string(&self, key: &str, value: impl AsRef<Path>) -> Result<()> {
        let value = value.as_ref();
        let result = rustix::mount::fsconfig_set_string(&self.fd, key, value);
        result.map_err(|errno| self.error(format_args!("{key:?}, {value:?}"), errno))
    }

    /// `fsconfig(FSCONFIG_CMD_CREATE)` and `fsmount`: the new mount, attached to nothing.
    pub(crate) fn mount(&self, attributes: MountAttrFlags) -> Result<OwnedFd> {
        let result = rustix::mount::fsconfig_create(&self.fd);
        result.map_err(|errno| self.error("FSCONFIG_CMD_CREATE", errno))?;
        let result = rustix::mount::fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes);
        named(result, || format!("fsmount({:?}, {:#x})", self.name, attributes.bits()))
    }

    fn error(&self, what: impl fmt::Display, errno: Errno) -> Error {
        let mut text = format!("fsconfig({:?}, {what})", self.name);
        let mut line = [0u8; 256];
        // Each read gives one message, such as `e overlay: No such directory`; ENODATA ends them.
        while let Ok(count @ 1..) = rustix::io::read(&self.fd, &mut line) {
            let message = String::from_utf8_lossy(&line[..count]);
            text.push_str(": ");
            text.push_str(message.trim_end().get(2..).unwrap_or_default());
        }
        Error::new(text, errno)
    }
}

/// `open_tree(directory, path)`, cloned: a copy of the mount there, attached to nothing.
pub(crate) fn clone_tree(directory: impl AsFd, path: impl AsRef<Path>, recursive: bool) -> Result<OwnedFd> {
    let path = path.as_ref();
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.as_os_str().is_empty());
    named(rustix::mount::open_tree(directory, path, flags), || {
        format!("open_tree({path:?}, OPEN_TREE_CLONE)")
    })
}

/// `move_mount(mount, "", target, "")`: attaches a detached mount on top of what `target` shows.
pub(crate) fn attach(mount: impl AsFd, target: impl AsFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    named(rustix::mount::move_mount(mount, c"", target, c"", flags), || "move_mount(\"\", \"\")")
}

/// `move_mount(mount, "", directory, path)`, for a path that whoever runs this process chose.
pub(crate) fn attach_at(mount: impl AsFd, directory: impl AsFd, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let result =
        rustix::mount::move_mount(mount, c"", directory, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    named(result, || format!("move_mount(\"\", {path:?})"))
}

/// What `mount_setattr` changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// `MOUNT_ATTR_*` to set.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub(crate) clear: u64,
    /// One of `MS_SHARED`, `MS_PRIVATE`, `MS_SLAVE`, `MS_UNBINDABLE`, or 0.
    pub(crate) propagation: u64,
}

impl Attributes {
    /// Nothing to change.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Attributes::default()
    }
}

/// `mount_setattr(mount, "", AT_EMPTY_PATH [| AT_RECURSIVE])`.
pub(crate) fn set_attributes(mount: impl AsFd, attributes: Attributes, recursive: bool) -> Result<()> {
    let argument = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    set(mount, argument, recursive)
}

/// `mount_setattr(mount, "", AT_EMPTY_PATH [| AT_RECURSIVE], MOUNT_ATTR_IDMAP)`, of a mount that isn't attached yet.
pub(crate) fn set_mapping(mount: impl AsFd, users: impl AsFd, recursive: bool) -> Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.as_fd().as_raw_fd() as u64,
    };
    set(mount, attributes, recursive)
}

fn set(mount: impl AsFd, argument: libc::mount_attr, recursive: bool) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a static empty string and the kernel reads `argument`, of the size told, during the call.
    let result = check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(&argument),
            size_of_val(&argument),
        )
    });
    let (set, clear, propagation) = (argument.attr_set, argument.attr_clr, argument.propagation);
    let call = || format!("mount_setattr(+{set:#x} -{clear:#x} {propagation:#x}, recursive {recursive})");
    named(result, call).map(drop)
}

/// `fspick(directory, "")`: the file system there, to be configured anew.
pub(crate) fn reconfigure(mount: impl AsFd, options: &[(String, Option<String>)]) -> Result<()> {
    let flags = rustix::mount::FsPickFlags::FSPICK_CLOEXEC | rustix::mount::FsPickFlags::FSPICK_EMPTY_PATH;
    let fd = named(rustix::mount::fspick(mount, c"", flags), || "fspick(\"\")")?;
    let context = Context { fd, name: "remount".to_owned() };
    for (key, value) in options {
        match value {
            Some(value) => context.string(key, value)?,
            None => context.flag(key)?,
        }
    }
    let result = rustix::mount::fsconfig_reconfigure(&context.fd);
    result.map_err(|errno| context.error("FSCONFIG_CMD_RECONFIGURE", errno))
}

/// `mount(NULL, path, NULL, propagation)`.
pub(crate) fn set_propagation(path: impl AsRef<Path>, propagation: MountPropagationFlags) -> Result<()> {
    let path = path.as_ref();
    named(rustix::mount::mount_change(path, propagation), || format!("mount({path:?}, {propagation:?})"))
}

/// The classic `mount(source, target, type, flags, data)`.
pub(crate) fn mount(
    source: &str,
    target: &Path,
    kind: &str,
    flags: MountFlags,
    data: &std::ffi::CStr,
) -> Result<()> {
    let result = rustix::mount::mount(source, target, kind, flags, data);
    named(result, || format!("mount({target:?}, {kind:?}, {data:?})"))
}

/// `umount2(path, flags)`.
pub(crate) fn unmount(path: impl AsRef<Path>, flags: UnmountFlags) -> Result<()> {
    let path = path.as_ref();
    named(rustix::mount::unmount(path, flags), || format!("umount2({path:?}, {flags:?})"))
}

/// `pivot_root(".", ".")`: the working directory becomes the root, with the old root on top of it.
pub(crate) fn pivot_root_here() -> Result<()> {
    named(rustix::process::pivot_root(c".", c"."), || "pivot_root(\".\", \".\")")
}

/// `open(path, O_PATH | O_DIRECTORY)`, for a path that whoever runs this process chose.
pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd> {
    super::file::open_path_at(CWD, path, rustix::fs::OFlags::DIRECTORY)
}
