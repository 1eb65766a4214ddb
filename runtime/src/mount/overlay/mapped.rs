//! Overlay mounts whose layers have the mapping of a user namespace (Linux 5.19, and 6.8 for `lowerdir+`).
//!
//! A finished overlay can't be given a mapping, its layers can: each is cloned as a mount of its own, mapped, and named
//! to the overlay, which keeps a private copy. The writable layer is mapped too, so that on the disk a container's files
//! have the owners that an image would give them, whatever the pod's mapping was.
//!
//! Before 6.15 a layer has to be found by a path of the caller's mount namespace: the clones take turns at the target
//! until the overlay takes their place. A clone belongs to no peer group: it would share one with the mount that holds the
//! layers, and what is put on top of it at the target would show up on the layer itself, in everybody's sight.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::{Error, Layers, Options, Upper, finish, has_layer_parameters};
use crate::mount::on_own_thread;
use crate::sys::{
    self,
    mount::{Attributes, Context},
};
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
        let alone = Attributes { propagation: libc::MS_PRIVATE, ..Attributes::default() };
        sys::mount::set_attributes(&clone, alone, false)?;
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

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use rustix::mount::MountPropagationFlags;
    use rustix::thread::UnshareFlags;

    use super::*;

    /// A process with a user namespace of its own, ended when this is dropped.
    struct Holder(Child);

    impl Holder {
        fn new() -> Holder {
            let child = Command::new("unshare").args(["--user", "--ipc", "sleep", "1000"]).spawn().unwrap();
            let holder = Holder(child);
            let own = std::fs::read_link("/proc/self/ns/user").unwrap();
            let theirs = || std::fs::read_link(format!("/proc/{}/ns/user", holder.0.id()));
            for _ in 0..500 {
                if theirs().is_ok_and(|theirs| theirs != own) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            for kind in ["uid", "gid"] {
                std::fs::write(format!("/proc/{}/{kind}_map", holder.0.id()), "0 100000 65536").unwrap();
            }
            holder
        }

        fn users(&self) -> UserNamespace {
            UserNamespace::of_monitor(self.0.id() as i32, (100_000, 100_000)).unwrap()
        }
    }

    impl Drop for Holder {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn clones_of_a_shared_mount_show_at_the_target_only() {
        let holder = Holder::new();
        let dir = tempfile::tempdir().unwrap();
        for name in ["one", "two", "target"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let path = |name: &str| dir.path().join(name);
        let found = std::thread::scope(|scope| {
            let observe = || {
                sys::process::unshare(UnshareFlags::NEWNS | UnshareFlags::FS).unwrap();
                let flags = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
                sys::mount::set_propagation("/", flags).unwrap();
                sys::mount::set_propagation("/", MountPropagationFlags::REC | MountPropagationFlags::SHARED)
                    .unwrap();
                let mut stage = Stage { target: &path("target"), clones: 0 };
                for layer in ["one", "two"] {
                    stage.clone_of(&path(layer), &holder.users()).unwrap();
                }
                std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
            };
            scope.spawn(observe).join().unwrap()
        });
        let points = found.lines().filter_map(|line| line.split(' ').nth(4));
        let ours: Vec<&str> = points.filter(|point| Path::new(point).starts_with(dir.path())).collect();
        assert_eq!(ours, [path("target").to_str().unwrap(); 2]);
    }
}
