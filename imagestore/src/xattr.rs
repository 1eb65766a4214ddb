//! Extended attributes of whatever a descriptor leads to, one that was opened as a path only included.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::{
    fs::{getxattr, listxattr},
    io::{Errno, Result},
};

/// Names and values.
pub(crate) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// As long as the kernel allows a list of names and a value to be (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const LONGEST: usize = 64 << 10;

/// Those attributes that `wanted` picks by name, sorted; none where the file system has none.
pub(crate) fn read(node: &OwnedFd, wanted: impl Fn(&[u8]) -> bool) -> Result<Attributes> {
    let path = by_descriptor(node);
    let mut list = vec![0_u8; LONGEST];
    let length = match listxattr(&path, &mut list[..]) {
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    let mut names: Vec<&[u8]> = list[..length].split(|byte| *byte == 0).collect();
    names.retain(|name| !name.is_empty() && wanted(name));
    names.sort_unstable();
    let mut value = if names.is_empty() { Vec::new() } else { vec![0_u8; LONGEST] };
    let mut attributes = Attributes::new();
    for name in names {
        match getxattr(&path, name, &mut value[..]) {
            Ok(length) => attributes.push((name.to_vec(), value[..length].to_vec())),
            // Removed since they were listed.
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(attributes)
}

/// Neither listxattr nor getxattr takes a descriptor of a path only; its name under /proc leads to the very same inode.
pub(crate) fn by_descriptor(node: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", node.as_raw_fd())
}
