//! Paths that a container must not read, or not write: mostly of procfs and sysfs.
//!
//! A masked file becomes the null device, a masked directory an empty read-only one. The null
//! device is the host's, checked through the descriptor that is then mounted, so that nobody can
//! put something else in its place. Paths that don't exist need no mask.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, OFlags};
use rustix::mount::MountAttrFlags;

use super::{Error, Result, device, rootfs::Rootfs};
use crate::beneath;
use crate::sys::{self, file, mount::Attributes, mount::Context};

pub(super) fn mask(rootfs: &Rootfs, paths: &[String]) -> Result<()> {
    let mut masks = Masks::default();
    let mut seen = HashSet::new();
    for path in paths.iter().map(Path::new).filter(|path| seen.insert(*path)) {
        let failed = |source| Error::Mask { path: path.to_owned(), source };
        let Some(found) = beneath::find(rootfs, path).map_err(failed)? else { continue };
        let stat = file::fstat(&found).map_err(failed)?;
        let mask = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            masks.directory().map_err(failed)?
        } else {
            sys::mount::clone_tree(masks.null()?, "", false).map_err(failed)?
        };
        sys::mount::attach(&mask, &found).map_err(failed)?;
    }
    Ok(())
}

pub(super) fn make_read_only(rootfs: &Rootfs, paths: &[String]) -> Result<()> {
    for path in paths.iter().map(Path::new) {
        let failed = |source| Error::ReadOnly { path: path.to_owned(), source };
        let Some(found) = beneath::find(rootfs, path).map_err(failed)? else { continue };
        let tree = sys::mount::clone_tree(&found, "", true).map_err(failed)?;
        let attributes = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
        sys::mount::set_attributes(&tree, attributes, true).map_err(failed)?;
        sys::mount::attach(&tree, &found).map_err(failed)?;
    }
    Ok(())
}

/// What is mounted over things, made when it is first needed.
#[derive(Default)]
struct Masks {
    null: Option<OwnedFd>,
    /// The first mask of a directory; the others are clones of it.
    directory: Option<OwnedFd>,
}

impl Masks {
    fn null(&mut self) -> Result<&OwnedFd> {
        if self.null.is_none() {
            let failed = |source| Error::Mask { path: Path::new("/dev/null").to_owned(), source };
            let null = file::open_path_at(CWD, "/dev/null", OFlags::NOFOLLOW).map_err(failed)?;
            if !device::is(&null, FileType::CharacterDevice, (1, 3)).map_err(failed)? {
                return Err(Error::NotNullDevice);
            }
            self.null = Some(null);
        }
        self.null.as_ref().ok_or(Error::NotNullDevice)
    }

    /// A detached mount of the one empty directory.
    fn directory(&mut self) -> sys::Result<OwnedFd> {
        if let Some(first) = &self.directory {
            return sys::mount::clone_tree(first, "", false);
        }
        let context = Context::open("tmpfs")?;
        context.string("nr_blocks", "1")?;
        context.string("nr_inodes", "1")?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mask = context.mount(attributes)?;
        self.directory = Some(file::open_path_at(&mask, ".", OFlags::DIRECTORY)?);
        Ok(mask)
    }
}
