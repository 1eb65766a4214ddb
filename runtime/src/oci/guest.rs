//! Mounts of a container that has no mount namespace of its own: they are in the caller's, and go when it is deleted.

use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::mount::UnmountFlags;

use super::record::Record;
use super::{Error, Result, configuration};
use crate::mountinfo::Entry;
use crate::sys;

/// What a record has to remember; None for a container whose mounts go with their namespace.
pub(super) fn mounts_before(spec: &Spec, rootfs: &Path) -> Option<usize> {
    configuration::namespace(spec, LinuxNamespaceType::Mount).is_none().then(|| mounts_at(rootfs))
}

/// Those that came with the container, and what is below them.
pub(super) fn take_mounts_away(record: &Record) -> Result<()> {
    let Some(before) = record.mounts_before else { return Ok(()) };
    let rootfs = &record.rootfs;
    for _ in before..mounts_at(rootfs) {
        sys::mount::unmount(rootfs, UnmountFlags::DETACH)
            .map_err(|source| Error::io(format!("unmount {}", rootfs.display()), source.into()))?;
    }
    Ok(())
}

/// How many mounts lie at a path, one over the other.
fn mounts_at(path: &Path) -> usize {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    count(&table, &path)
}

fn count(table: &str, path: &Path) -> usize {
    table.lines().filter_map(Entry::parse).filter(|mount| mount.path() == path).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_counted_by_their_very_path() {
        let table = "36 35 98:0 / /a rw - ext4 x rw\n37 36 0:5 / /a rw - tmpfs x rw\n38 36 0:6 / /a/b rw - tmpfs x rw\n\
                     39 36 0:6 / /with\\040space rw - tmpfs x rw\n";
        let counted = ["/a", "/a/b", "/with space", "/c"].map(|path| count(table, Path::new(path)));
        assert_eq!(counted, [2, 1, 1, 0]);
    }
}
