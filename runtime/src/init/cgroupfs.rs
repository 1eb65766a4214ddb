//! What a container sees at `/sys/fs/cgroup`: its own cgroup and nothing above it.
//!
//! Version 2 is a mount of the hierarchy, whose root is the cgroup namespace's. Version 1 is a
//! tmpfs with a bind mount of the container's own cgroup for each hierarchy, made by descriptor and
//! always read-only when the mount is (a writable one would hand out `release_agent`).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::MountAttrFlags;

use crate::cgroup::Cgroup;
use crate::mount::Options;
use crate::sys::{self, file, mount::Attributes, mount::Context};

/// Which cgroup is shown.
pub(super) struct View<'a> {
    pub(super) cgroup: &'a Cgroup,
    /// Whether the cgroup is the root of a cgroup namespace.
    pub(super) own_root: bool,
}

/// Mounts the view at `target`.
pub(super) fn mount(target: &OwnedFd, options: &Options, view: &View<'_>) -> sys::Result<()> {
    let set = options.attributes.set | options.recursive.set;
    let attributes = Attributes { set, ..Attributes::default() };
    let paths = view.cgroup.paths();
    if let Some(path) = paths.get("unified") {
        return unified(target, path, attributes, view.own_root);
    }

    let context = Context::open("tmpfs")?;
    context.string("source", "cgroup")?;
    context.string("mode", "755")?;
    let hidden = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let tmpfs = context.mount(hidden)?;
    sys::mount::attach(&tmpfs, target)?;
    for (name, hierarchy) in hierarchies(&paths) {
        file::mkdirat(&tmpfs, &name, 0o755)?;
        let tree = sys::mount::clone_tree(CWD, hierarchy.path, false)?;
        sys::mount::set_attributes(&tree, attributes, false)?;
        sys::mount::attach_at(&tree, &tmpfs, &name)?;
        for controller in hierarchy.controllers.iter().filter(|controller| **controller != name) {
            file::symlinkat(&name, &tmpfs, controller)?;
        }
    }
    sys::mount::set_attributes(&tmpfs, attributes, false)
}

/// The directory of the host that a container sees below its view: the view itself on version 2, the folder of a hierarchy on
/// version 1.
pub(crate) fn directory(cgroup: &Cgroup, below: &Path) -> Option<PathBuf> {
    let paths = cgroup.paths();
    if let Some(path) = paths.get("unified") {
        return Some(if below.as_os_str().is_empty() { path.clone() } else { path.join(below) });
    }
    let mut parts = below.components();
    let name = parts.next()?.as_os_str().to_str()?;
    let root = hierarchies(&paths).get(name)?.path.to_owned();
    let rest = parts.as_path();
    Some(if rest.as_os_str().is_empty() { root } else { root.join(rest) })
}

fn unified(target: &OwnedFd, path: &Path, attributes: Attributes, own_root: bool) -> sys::Result<()> {
    let mount = if own_root {
        let context = Context::open("cgroup2")?;
        context.string("source", "cgroup")?;
        context.mount(MountAttrFlags::from_bits_retain(attributes.set as u32))?
    } else {
        let tree = sys::mount::clone_tree(CWD, path, false)?;
        sys::mount::set_attributes(&tree, attributes, false)?;
        tree
    };
    sys::mount::attach(&mount, target)
}

struct Hierarchy<'a> {
    path: &'a Path,
    controllers: Vec<&'a str>,
}

/// The hierarchies by the name that their directory has by convention: `cpu,cpuacct`, `systemd`.
fn hierarchies(paths: &BTreeMap<String, PathBuf>) -> BTreeMap<String, Hierarchy<'_>> {
    let mut by_path: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
    for (controller, path) in paths {
        by_path.entry(path).or_default().push(controller.strip_prefix("name=").unwrap_or(controller));
    }
    by_path
        .into_iter()
        .map(|(path, controllers)| (controllers.join(","), Hierarchy { path, controllers }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn co_mounted_controllers_are_one_hierarchy() {
        let paths = [("cpu", "/a/c"), ("cpuacct", "/a/c"), ("memory", "/m/c"), ("name=systemd", "/s/c")];
        let paths = paths.into_iter().map(|(name, path)| (name.to_owned(), path.into())).collect();
        let found = hierarchies(&paths);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["cpu,cpuacct", "memory", "systemd"]);
        assert_eq!(found["cpu,cpuacct"].path, Path::new("/a/c"));
        assert_eq!(found["cpu,cpuacct"].controllers, ["cpu", "cpuacct"]);
        assert_eq!(found["systemd"].controllers, ["systemd"]);
    }
}
