//! Removing a tree beneath a descriptor.
//!
//! No symbolic link is followed and no mount point crossed: what another file system holds is never deleted.
//! Depth costs neither stack nor descriptors: what lies too deep is first moved up.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{self, AtFlags, Dir, Mode, OFlags, RenameFlags, ResolveFlags},
    io::Errno,
};

/// How far down descriptors are held open.
const DEPTH: usize = 32;

/// Told of each file and directory before it goes, by its directory and name.
pub(crate) type Witness<'w> = &'w mut dyn FnMut(BorrowedFd<'_>, &CStr);

/// Removes `name` from `parent` with all that is beneath it; nothing there is no error.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &CStr, witness: Witness<'_>) -> io::Result<()> {
    let Some(top) = unlink(parent, name, witness)? else { return Ok(()) };
    // A directory read while it is emptied may not show all; whoever still writes to it must not keep us here.
    for _ in 0..1000 {
        let mut removal = Removal { top: top.as_fd(), moved: 0, witness: &mut *witness };
        removal.empty(top.as_fd(), 0)?;
        if removal.moved > 0 {
            continue;
        }
        witness(parent, name);
        match fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) => {}
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::NOTEMPTY.into())
}

struct Removal<'r> {
    top: BorrowedFd<'r>,
    moved: u64,
    witness: Witness<'r>,
}

impl Removal<'_> {
    fn empty(&mut self, directory: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let Some(child) = unlink(directory, name, self.witness)? else { continue };
            if depth == DEPTH {
                self.move_up(directory, name)?;
                continue;
            }
            self.empty(child.as_fd(), depth + 1)?;
            (self.witness)(directory, name);
            match fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                // Something was not shown while the child was read; the next pass finds it.
                Err(Errno::NOTEMPTY) => self.moved += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn move_up(&mut self, from: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        for attempt in 0_u64.. {
            let free = CString::new(format!(".removing-{}-{attempt}", self.moved)).unwrap_or_default();
            match fs::renameat_with(from, name, self.top, &free, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                result => {
                    result?;
                    break;
                }
            }
        }
        self.moved += 1;
        Ok(())
    }
}

/// Unlinks `name`, or opens it when it is a directory.
fn unlink(parent: BorrowedFd<'_>, name: &CStr, witness: Witness<'_>) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match fs::openat2(parent, name, flags, Mode::empty(), beneath) {
        Ok(directory) => return Ok(Some(directory)),
        Err(Errno::NOTDIR | Errno::LOOP) => {}
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    witness(parent, name);
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
