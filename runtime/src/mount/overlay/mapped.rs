//! Overlay mounts whose layers have the mapping of a user namespace (Linux 5.19, and 6.8 for `lowerdir+`).
//!
//! A finished overlay can't be given a mapping, its layers can: each is cloned as a mount of its own, mapped, and named
//! to the overlay, which keeps a private copy. The writable layer is mapped too, so that on the disk a container's files
//! have the owners that an image would give them, whatever the pod's mapping was.
//!
//! Before 6.15 a layer has to be found by a path of the caller's mount namespace: the clones take turns at the target
//! until the overlay takes their place.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::{Error, Layers, Options, Upper, finish, has_layer_parameters};
use crate::mount::on_own_thread;
use crate::sys::{self, mount::Context};
use crate::users::UserNamespace;

pub(super) fn mount(
    layers: &Layers,
    options: &Options,
    target: &Path,
    users: &UserNamespace,
) -> Result<(), Error> {
    // Whoever mounts an overlay is whom it writes as. The host's root is nobody to a mapped layer, the pod's is: for as
    // long as a thread lives it takes its place.
    on_own_thread("overlay", target, || {
        let (uid, gid) = users.root();
        sys::credential::set_filesystem_ids(uid, gid)?;
        perform(layers, options, target, users)
    })
}

fn perform(layers: &Layers, options: &Options, target: &Path, users: &UserNamespace) -> sys::Result<()> {
    if !has_layer_parameters() {
        let what = "overlay with mapped layers, which takes Linux 6.8";
        return Err(sys::Error::new(what, Errno::OPNOTSUPP));
    }
    let context = Context::open("overlay")?;
    context.string("source", "overlay")?;
    let mut stage = Stage { target, clones: 0 };
    // The overlay's own references begin when it is made.
    let mut open = Vec::with_capacity(layers.lower.len() + 2);
    let name = |key, directory: OwnedFd, open: &mut Vec<OwnedFd>| {
        context.string(key, format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
        open.push(directory);
        sys::Result::Ok(())
    };
    for layer in &layers.lower {
        name("lowerdir+", stage.clone_of(layer, users)?, &mut open)?;
    }
    if let Some(Upper { upper, work }) = &layers.upper {
        // Both have to be of one mount: that of the directory which holds them.
        let (Some(parent), Some(upper), Some(work)) = (upper.parent(), upper.file_name(), work.file_name())
        else {
            return Err(sys::Error::new("overlay of a root directory", Errno::INVAL));
        };
        let parent = stage.clone_of(parent, users)?;
        for (key, part) in [("upperdir", upper), ("workdir", work)] {
            name(key, sys::file::open_path_at(&parent, part, rustix::fs::OFlags::DIRECTORY)?, &mut open)?;
        }
    }
    let detached = finish(&context, layers, options)?;
    drop(stage);
    sys::mount::attach_at(detached, CWD, target)
}

/// The target, with clones of layers on it that go when this does.
struct Stage<'a> {
    target: &'a Path,
    clones: usize,
}

impl Stage<'_> {
    /// The root of a mapped clone.
    fn clone_of(&mut self, directory: &Path, users: &UserNamespace) -> sys::Result<OwnedFd> {
        let clone = sys::mount::clone_tree(CWD, directory, false)?;
        sys::mount::set_mapping(&clone, users, false)?;
        sys::mount::attach_at(&clone, CWD, self.target)?;
        self.clones += 1;
        sys::mount::open_directory(self.target)
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        for _ in 0..self.clones {
            // What stays is found by whoever unmounts the target next.
            let _ = sys::mount::unmount(self.target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}
