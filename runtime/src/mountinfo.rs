//! Lines of a table of mounts, `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
//!
//! A line at a time, and decoded only when asked: with many overlays the table has megabytes. Whose table it is, and how
//! much of it is read, is the caller's affair.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, StatxFlags};

/// One mount, as it is written.
pub(crate) struct Entry<'a> {
    pub(crate) id: u64,
    /// The one that it is mounted on.
    pub(crate) parent: u64,
    /// `major:minor`, one for each file system.
    pub(crate) device: &'a str,
    root: &'a str,
    path: &'a str,
    /// The file system's.
    pub(crate) kind: &'a str,
    /// Those of the file system, between commas.
    pub(crate) options: &'a str,
}

impl<'a> Entry<'a> {
    /// `31 23 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:1 - cgroup cgroup rw,cpu`
    pub(crate) fn parse(line: &'a str) -> Option<Entry<'a>> {
        let (before, after) = line.trim_end().split_once(" - ")?;
        let (mut before, mut after) = (before.split(' '), after.split(' '));
        Some(Entry {
            id: before.next()?.parse().ok()?,
            parent: before.next()?.parse().ok()?,
            device: before.next()?,
            root: before.next()?,
            path: before.next()?,
            kind: after.next()?,
            options: after.nth(1)?,
        })
    }

    /// What of the file system is mounted.
    pub(crate) fn root(&self) -> PathBuf {
        unescaped(self.root)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        unescaped(self.path)
    }
}

/// The number of the mount that `place` is on (Linux 5.8).
pub(crate) fn id_of(place: impl AsFd) -> rustix::io::Result<u64> {
    Ok(rustix::fs::statx(place, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescaped(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if first == b'\\' => {
                bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn paths_are_decoded_and_optional_fields_passed_over() {
        let line =
            "79 69 254:0 /da\\134ta /run/my\\040data rw shared:3 master:1 - ext4 /dev/vda rw,discard\n";
        let entry = Entry::parse(line).unwrap();
        assert_eq!((entry.id, entry.parent), (79, 69));
        assert_eq!((entry.device, entry.kind, entry.options), ("254:0", "ext4", "rw,discard"));
        assert_eq!((&*entry.root(), &*entry.path()), (Path::new("/da\\ta"), Path::new("/run/my data")));
    }

    #[test]
    fn what_is_no_line_of_the_table_is_none() {
        for line in ["", "79 69 254:0 / /x rw", "x 69 254:0 / /x rw - ext4 /dev/vda rw", "1 2 3:4 - ext4"] {
            assert!(Entry::parse(line).is_none(), "{line:?}");
        }
    }

    #[test]
    fn a_backslash_without_three_octal_digits_is_itself() {
        assert_eq!(unescaped("/a\\04/\\999\\"), Path::new("/a\\04/\\999\\"));
        assert_eq!(unescaped("/\\011\\012"), Path::new("/\t\n"));
    }
}
