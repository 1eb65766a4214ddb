//! The mounts of a configuration, made beneath the container's root in their order.
//!
//! Every destination is a descriptor before anything is mounted on it; one that is missing is made.
//! Sources of bind mounts are paths of the host, which whoever wrote the configuration vouches for; those below the root
//! are found as the mounts before them have left it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use rustix::fs::{CWD, FileType, OFlags};
use rustix::io::Errno;

use super::rootfs::{self, Rootfs};
use super::{Error, Result, cgroupfs, identity};
use crate::beneath;
use crate::copyup;
use crate::mount::{Bind, Options};
use crate::sys::{self, mount::Attributes};

/// Where bind mounts come from.
pub(super) struct Sources {
    bundle: PathBuf,
    /// One a mount, in order.
    found: Vec<Source>,
}

/// Whatever can be is found when it is mounted, as the mounts before it have left it.
enum Source {
    /// By the configuration's path.
    Path,
    /// By the configuration's path; its ids are to be mapped as those of the namespace, below it too or not.
    Mapped(OwnedFd, bool),
    /// By a path within the container's root.
    Within(PathBuf),
    /// Opened while the host's paths and privileges are at hand, for a container that will not have them.
    Tree(OwnedFd),
}

impl Sources {
    /// Opens what the container will not be able to open by itself, which is everything of the host's when `ahead` is set.
    /// `of_pod` is the user namespace of its pod.
    pub(super) fn open(
        bundle: &Path,
        spec: &Spec,
        of_pod: Option<BorrowedFd<'_>>,
        ahead: bool,
    ) -> Result<Sources> {
        let mut sources = Sources { bundle: bundle.to_owned(), found: Vec::new() };
        let users = Users::of(spec, of_pod);
        let inherited = match users {
            Users::Host => rootfs::inherited_propagation(spec.linux().as_ref())?,
            // The kernel would have it no other way.
            _ => Some(libc::MS_SLAVE),
        };
        for mount in spec.mounts().iter().flatten() {
            let options = parse(mount)?;
            let found = match (bind_of(mount, &options), mapping(mount, &options)) {
                (Some(bind), Some(recursive)) => {
                    let namespace = mapping_namespace(mount, spec, &users)?;
                    if ahead {
                        let tree = sources.mapped(mount, bind, &namespace, recursive)?;
                        inherit(&tree, inherited).map_err(failed("idmap", mount.destination()))?;
                        Source::Tree(tree)
                    } else {
                        Source::Mapped(namespace, recursive)
                    }
                }
                (None, Some(_)) => {
                    let problem = "only bind mounts can have their ids mapped".to_owned();
                    return Err(refused(mount.destination(), problem));
                }
                (Some(bind), None) if ahead => match sources.within(spec, mount) {
                    Some(path) => Source::Within(path),
                    None => {
                        let tree = sources.tree(mount, bind)?;
                        inherit(&tree, inherited).map_err(failed("bind", mount.destination()))?;
                        Source::Tree(tree)
                    }
                },
                _ => Source::Path,
            };
            sources.found.push(found);
        }
        Ok(sources)
    }

    fn take(&mut self, rootfs: &Rootfs, index: usize, mount: &Mount, bind: Bind) -> Result<OwnedFd> {
        let found = self.found.get_mut(index).map(|found| std::mem::replace(found, Source::Path));
        match found.unwrap_or(Source::Path) {
            Source::Path => self.tree(mount, bind),
            Source::Mapped(namespace, recursive) => self.mapped(mount, bind, &namespace, recursive),
            Source::Within(path) => beneath::open(rootfs, &path, OFlags::PATH)
                .and_then(|found| sys::mount::clone_tree(&found, "", bind == Bind::Recursive))
                .map_err(no_source(mount)),
            Source::Tree(tree) => Ok(tree),
        }
    }

    fn tree(&self, mount: &Mount, bind: Bind) -> Result<OwnedFd> {
        let path = mount.source().as_deref().filter(|path| !path.as_os_str().is_empty());
        let path = path.ok_or_else(|| refused(mount.destination(), "no source".to_owned()))?;
        sys::mount::clone_tree(CWD, self.bundle.join(path), bind == Bind::Recursive).map_err(no_source(mount))
    }

    fn mapped(&self, mount: &Mount, bind: Bind, namespace: &OwnedFd, recursive: bool) -> Result<OwnedFd> {
        let tree = self.tree(mount, bind)?;
        identity::map_mount(&tree, namespace, recursive).map_err(failed("idmap", mount.destination()))?;
        Ok(tree)
    }

    /// The source as a path of the container, if it is one: what is mounted there is the container's own.
    fn within(&self, spec: &Spec, mount: &Mount) -> Option<PathBuf> {
        let root = self.bundle.join(spec.root().as_ref()?.path());
        let source = self.bundle.join(mount.source().as_deref()?);
        let within = source.strip_prefix(root).ok()?;
        let is_plain = within.components().all(|part| matches!(part, Component::Normal(_)));
        is_plain.then(|| within.to_owned())
    }
}

/// Makes a copy of the host's mounts what it would be in a namespace that is a copy of the host's.
fn inherit(tree: &OwnedFd, propagation: Option<u64>) -> sys::Result<()> {
    let Some(propagation) = propagation else { return Ok(()) };
    sys::mount::set_attributes(tree, Attributes { propagation, ..Attributes::default() }, true)
}

fn no_source(mount: &Mount) -> impl FnOnce(sys::Error) -> Error {
    let from = mount.source().clone().unwrap_or_default();
    let destination = mount.destination().clone();
    |source| Error::MountSource { from, destination, source }
}

fn parse(mount: &Mount) -> Result<Options> {
    Options::parse(mount.options().iter().flatten())
        .map_err(|option| refused(mount.destination(), format!("option {option:?} is not supported")))
}

fn bind_of(mount: &Mount, options: &Options) -> Option<Bind> {
    let by_type = (mount.typ().as_deref() == Some("bind")).then_some(Bind::Recursive);
    options.bind.or(by_type).filter(|_| !options.remount)
}

/// Whether ids are to be mapped, and below the mount too.
fn mapping(mount: &Mount, options: &Options) -> Option<bool> {
    let given = |mappings: &Option<Vec<_>>| mappings.as_ref().is_some_and(|list| !list.is_empty());
    let listed = given(mount.uid_mappings()) || given(mount.gid_mappings());
    match options.mapped {
        Some(bind) => Some(bind == Bind::Recursive),
        None => listed.then_some(false),
    }
}

/// The user namespace that a container is going to have.
enum Users<'a> {
    /// None but the host's.
    Host,
    /// One of its own, by the configuration's mappings.
    New,
    /// That of a path.
    Path(&'a Path),
    /// That of its pod.
    Pod(BorrowedFd<'a>),
}

impl<'a> Users<'a> {
    fn of(spec: &'a Spec, of_pod: Option<BorrowedFd<'a>>) -> Users<'a> {
        let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        let named = namespaces.into_iter().flatten().find(|named| named.typ() == LinuxNamespaceType::User);
        match (of_pod, named) {
            (Some(users), _) => Users::Pod(users),
            (None, None) => Users::Host,
            (None, Some(named)) => match named.path().as_deref() {
                Some(path) if !path.as_os_str().is_empty() => Users::Path(path),
                _ => Users::New,
            },
        }
    }
}

/// The user namespace by whose mappings the ids of a mount are to be mapped.
fn mapping_namespace(mount: &Mount, spec: &Spec, users: &Users<'_>) -> Result<OwnedFd> {
    let destination = mount.destination();
    let linux = spec.linux().as_ref();
    let own = (mount.uid_mappings().as_deref(), mount.gid_mappings().as_deref());
    match (own, users) {
        ((Some([_, ..]), None | Some([])) | (None | Some([]), Some([_, ..])), _) => {
            Err(refused(destination, "uidMappings without gidMappings, or the reverse".to_owned()))
        }
        ((Some(uids @ [_, ..]), Some(gids)), _) => identity::namespace_of(uids, gids),
        (_, Users::Pod(users)) => users.try_clone_to_owned().map_err(|source| {
            let errno = Errno::from_io_error(&source).unwrap_or(Errno::IO);
            failed("idmap", destination)(sys::Error::new("fcntl(F_DUPFD_CLOEXEC)", errno))
        }),
        (_, Users::Path(path)) => {
            sys::file::openat2(CWD, *path, OFlags::RDONLY, rustix::fs::ResolveFlags::empty())
                .map_err(failed("idmap", destination))
        }
        (_, Users::New) => {
            let of = |list: Option<&Option<Vec<_>>>| list.cloned().flatten().unwrap_or_default();
            let uids = of(linux.map(|linux| linux.uid_mappings()));
            identity::namespace_of(&uids, &of(linux.map(|linux| linux.gid_mappings())))
        }
        (_, Users::Host) => {
            let problem = "idmap takes mappings of its own or a user namespace".to_owned();
            Err(refused(destination, problem))
        }
    }
}

pub(super) fn mount_all(
    rootfs: &Rootfs,
    mounts: &[Mount],
    cgroups: &cgroupfs::View<'_>,
    sources: &mut Sources,
) -> Result<()> {
    for (index, mount) in mounts.iter().enumerate() {
        let destination = mount.destination();
        let options = parse(mount)?;
        let kind = mount.typ().as_deref().unwrap_or("none");
        match bind_of(mount, &options) {
            _ if options.remount => remount(rootfs, destination, &options)?,
            Some(bind) => bind_mount(rootfs, mount, sources.take(rootfs, index, mount, bind)?, &options)?,
            None if matches!(kind, "cgroup" | "cgroup2") => {
                let target = directory(rootfs, destination, true)?;
                let mounted = cgroupfs::mount(&target, &options, cgroups);
                mounted.map_err(failed(kind, destination))?;
            }
            None => filesystem(rootfs, mount, kind, options)?,
        }
    }
    Ok(())
}

fn filesystem(rootfs: &Rootfs, mount: &Mount, kind: &str, mut options: Options) -> Result<()> {
    let destination = mount.destination();
    // Masks are found by path later: where proc and sys are must not be for a symlink to say.
    let plain = matches!(kind, "proc" | "sysfs");
    let was_there = inherited_mode(rootfs, destination, kind, &options);
    let target = directory(rootfs, destination, plain).map_err(|error| match error {
        Error::MountDestination { source, .. } if plain && source.errno() == Errno::LOOP => {
            refused(destination, format!("{kind} must be mounted on ordinary directory, not on a symlink"))
        }
        error => error,
    })?;
    options.data.extend(was_there.map(|mode| ("mode".to_owned(), Some(format!("{mode:o}")))));
    if is_dev(mount) {
        options.attributes.set &= !libc::MOUNT_ATTR_RDONLY;
    }
    let detached = crate::mount::filesystem(kind, mount.source().as_deref(), &options);
    let attached = detached.and_then(|detached| {
        if options.copy_up && kind == "tmpfs" {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let root = sys::file::openat2(&detached, ".", flags, rustix::fs::ResolveFlags::BENEATH)?;
            copyup::copy(&target, &root)?;
        }
        sys::mount::attach(&detached, &target)?;
        propagate(&detached, &options)
    });
    attached.map_err(failed(kind, destination))
}

/// The mode that a tmpfs takes on from the directory that it is mounted on, as with runc: if there is one, and the
/// options say nothing.
fn inherited_mode(rootfs: &Rootfs, destination: &Path, kind: &str, options: &Options) -> Option<u32> {
    if kind != "tmpfs" || options.data.iter().any(|(key, _)| key == "mode") {
        return None;
    }
    let found = beneath::open(rootfs, destination, OFlags::PATH | OFlags::DIRECTORY).ok()?;
    sys::file::fstat(&found).ok().map(|stat| stat.st_mode & 0o7777)
}

fn is_dev(mount: &Mount) -> bool {
    mount.destination() == Path::new("/dev") && mount.typ().as_deref() == Some("tmpfs")
}

/// A `/dev` that is to be read-only is so once its devices and the mounts below it have been made.
pub(super) fn close_dev(rootfs: &Rootfs, mounts: &[Mount]) -> Result<()> {
    for mount in mounts.iter().filter(|mount| is_dev(mount)) {
        let destination = mount.destination();
        let set = parse(mount)?.attributes.set & libc::MOUNT_ATTR_RDONLY;
        if set != 0 {
            let dev = beneath::open(rootfs, destination, OFlags::PATH | OFlags::DIRECTORY);
            let attributes = Attributes { set, ..Attributes::default() };
            dev.and_then(|dev| sys::mount::set_attributes(&dev, attributes, false))
                .map_err(failed("remount", destination))?;
        }
    }
    Ok(())
}

fn bind_mount(rootfs: &Rootfs, mount: &Mount, tree: OwnedFd, options: &Options) -> Result<()> {
    let destination = mount.destination();
    let stat = sys::file::fstat(&tree).map_err(failed("bind", destination))?;
    let target = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        directory(rootfs, destination, false)?
    } else {
        beneath::file(rootfs, destination).map_err(no_destination(destination))?
    };
    let attached = crate::mount::restrict(&tree, options).and_then(|()| {
        sys::mount::attach(&tree, &target)?;
        propagate(&tree, options)
    });
    attached.map_err(failed("bind", destination))
}

/// Changes the mount that is there, and its file system unless the change is to the mount alone.
fn remount(rootfs: &Rootfs, destination: &Path, options: &Options) -> Result<()> {
    let found = beneath::open(rootfs, destination, OFlags::PATH).map_err(no_destination(destination))?;
    let changed = (|| {
        sys::mount::set_attributes(&found, options.attributes, false)?;
        sys::mount::set_attributes(&found, options.recursive, true)?;
        if options.bind.is_none() && !options.data.is_empty() {
            sys::mount::reconfigure(&found, &options.data)?;
        }
        propagate(&found, options)
    })();
    changed.map_err(failed("remount", destination))
}

/// Only an attached mount can be shared with others.
fn propagate(mount: &OwnedFd, options: &Options) -> sys::Result<()> {
    let Some((propagation, recursive)) = options.propagation else { return Ok(()) };
    sys::mount::set_attributes(mount, Attributes { propagation, ..Attributes::default() }, recursive)
}

/// A directory to mount on. The root itself is none: everything here is resolved beneath it.
fn directory(rootfs: &Rootfs, destination: &Path, plain: bool) -> Result<OwnedFd> {
    let found =
        if plain { plain_directory(rootfs, destination) } else { beneath::directory(rootfs, destination) };
    let found = found.map_err(no_destination(destination))?;
    let (stat, root) = (sys::file::fstat(&found), sys::file::fstat(rootfs));
    let (stat, root) =
        (stat.map_err(no_destination(destination))?, root.map_err(no_destination(destination))?);
    if (stat.st_dev, stat.st_ino) == (root.st_dev, root.st_ino) {
        return Err(refused(destination, "the root itself can't be mounted on".to_owned()));
    }
    Ok(found)
}

fn plain_directory(rootfs: &Rootfs, path: &Path) -> sys::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match beneath::open_plain(rootfs, path, flags) {
        Err(error) if error.errno() == Errno::NOENT => {
            beneath::directory(rootfs, path)?;
            beneath::open_plain(rootfs, path, flags)
        }
        result => result,
    }
}

fn failed(kind: &str, destination: &Path) -> impl FnOnce(sys::Error) -> Error {
    move |source| Error::Mount { kind: kind.to_owned(), destination: destination.to_owned(), source }
}

fn no_destination(destination: &Path) -> impl Fn(sys::Error) -> Error {
    move |source| Error::MountDestination { destination: destination.to_owned(), source }
}

fn refused(destination: &Path, problem: String) -> Error {
    Error::MountRefused { destination: destination.to_owned(), problem }
}
