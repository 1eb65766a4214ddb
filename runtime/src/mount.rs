//! Mounts that storage asks for, performed in process.
//!
//! Storage describes mounts and performs none; this module performs them and knows nothing of
//! images. An OCI mount is the currency. An overlay goes through the kernel's context interface,
//! layer by layer, so that neither the number of layers nor the bytes of their paths are limited
//! by a page; older kernels get the classic call (see `overlay`).
//!
//! Callers may have threads.

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::sys;
use crate::users::UserNamespace;

mod minimal;
mod option;
mod overlay;

pub use minimal::MinimalNamespace;
pub(crate) use option::{Bind, Options, propagation};

/// A mount that could not be made or undone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option that can't be honoured.
    #[error("mount option {option:?} is not supported")]
    Option {
        /// As it was given.
        option: String,
    },
    /// An overlay without `lowerdir`, or with `upperdir` but no `workdir`.
    #[error("overlay mount without {missing}")]
    Overlay {
        /// The option that it takes.
        missing: &'static str,
    },
    /// A bind mount without a source.
    #[error("bind mount without a source")]
    NoSource,
    /// The source of a bind mount can't be used, most often because it doesn't exist.
    #[error("mount source {}", path.display())]
    Source {
        /// The source.
        path: PathBuf,
        /// Why.
        #[source]
        source: sys::Error,
    },
    /// The mount can't be made.
    #[error("mount {kind} at {}", target.display())]
    Mount {
        /// Type of the file system, or `bind`.
        kind: String,
        /// Where.
        target: PathBuf,
        /// Why.
        #[source]
        source: sys::Error,
    },
    /// The host's cgroups, which a mount namespace is to have, can't be found.
    #[error("find the cgroup hierarchies")]
    Cgroups {
        /// Why.
        #[source]
        source: Box<crate::cgroup::Error>,
    },
    /// The thread for a mount that changes something of its own can't be made.
    #[error("start a thread for the mount at {}", target.display())]
    Thread {
        /// Where.
        target: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The mount can't be undone.
    #[error("unmount {}", target.display())]
    Unmount {
        /// Where.
        target: PathBuf,
        /// Why.
        #[source]
        source: sys::Error,
    },
}

impl Error {
    /// Whether a path that the caller named doesn't exist.
    pub fn is_not_found(&self) -> bool {
        match self {
            Error::Source { source, .. } | Error::Mount { source, .. } => source.errno() == Errno::NOENT,
            _ => false,
        }
    }

    fn mount(kind: &str, target: &Path) -> impl FnOnce(sys::Error) -> Error {
        move |source| Error::Mount { kind: kind.to_owned(), target: target.to_owned(), source }
    }
}

/// Whether [`mount_all`] can stack layers for a user namespace: the kernel has Linux 6.8's overlay.
pub fn maps_layers() -> bool {
    overlay::has_layer_parameters()
}

/// Performs `mounts` at `target`, each on top of the one before; their own destinations don't count.
///
/// With `users`, what is bound or stacked is seen as that namespace has it: a file of root's on the disk is one of the
/// root there. When one fails, those before it are undone.
pub fn mount_all(mounts: &[Mount], target: &Path, users: Option<&UserNamespace>) -> Result<(), Error> {
    for (done, mount) in mounts.iter().enumerate() {
        if let Err(error) = mount_one(mount, target, users) {
            for _ in 0..done {
                // The first failure is the one to be told.
                let _ = sys::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Takes away every mount at `target`. Nothing mounted there, or nothing there at all, is fine.
///
/// Processes that still use it keep it for themselves until they are done.
pub fn unmount(target: &Path) -> Result<(), Error> {
    loop {
        match sys::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(error) if matches!(error.errno(), Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => {
                return Ok(());
            }
            Err(source) => return Err(Error::Unmount { target: target.to_owned(), source }),
        }
    }
}

fn mount_one(mount: &Mount, target: &Path, users: Option<&UserNamespace>) -> Result<(), Error> {
    let options =
        Options::parse(mount.options().iter().flatten()).map_err(|option| Error::Option { option })?;
    for (asked, option) in
        [(options.remount, "remount"), (options.copy_up, "tmpcopyup"), (options.mapped.is_some(), "idmap")]
    {
        if asked {
            return Err(Error::Option { option: option.to_owned() });
        }
    }
    let kind = mount.typ().as_deref().unwrap_or("none");
    if let Some(bind) = options.bind {
        let source = mount.source().as_deref().ok_or(Error::NoSource)?;
        return bind_mount(source, bind, &options, target, users);
    }
    if kind == "overlay" {
        return overlay::mount(&options, target, users);
    }
    let attached = filesystem(kind, mount.source().as_deref(), &options)
        .and_then(|detached| sys::mount::attach_at(detached, CWD, target));
    attached.map_err(Error::mount(kind, target))
}

fn bind_mount(
    source: &Path,
    bind: Bind,
    options: &Options,
    target: &Path,
    users: Option<&UserNamespace>,
) -> Result<(), Error> {
    let tree = sys::mount::clone_tree(CWD, source, bind == Bind::Recursive)
        .map_err(|error| Error::Source { path: source.to_owned(), source: error })?;
    let attached = users
        .map_or(Ok(()), |users| sys::mount::set_mapping(&tree, users, bind == Bind::Recursive))
        .and_then(|()| restrict(&tree, options))
        .and_then(|()| sys::mount::attach_at(&tree, CWD, target));
    attached.map_err(Error::mount("bind", target))
}

/// A new file system of `kind` with the options' data, attached to nothing.
pub(crate) fn filesystem(
    kind: &str,
    source: Option<&Path>,
    options: &Options,
) -> sys::Result<std::os::fd::OwnedFd> {
    let context = sys::mount::Context::open(kind)?;
    if let Some(source) = source.filter(|source| !source.as_os_str().is_empty()) {
        context.string("source", source)?;
    }
    for (key, value) in &options.data {
        match value {
            Some(value) => context.string(key, value)?,
            None => context.flag(key)?,
        }
    }
    // Where a device is behind it, read-only has to hold for the file system too: it mustn't replay a journal.
    if options.is_read_only() && !PSEUDO.contains(&kind) {
        context.flag("ro")?;
    }
    let attributes = options.attributes.set | options.recursive.set;
    context.mount(rustix::mount::MountAttrFlags::from_bits_retain(attributes as u32))
}

/// File systems that share one superblock among mounts, or that are empty when they are new.
const PSEUDO: [&str; 8] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "overlay"];

/// Gives a detached bind mount what its options name.
pub(crate) fn restrict(tree: &std::os::fd::OwnedFd, options: &Options) -> sys::Result<()> {
    let attributes = options.attributes;
    if !attributes.is_empty() {
        sys::mount::set_attributes(tree, attributes, false)?;
    }
    if !options.recursive.is_empty() {
        sys::mount::set_attributes(tree, options.recursive, true)?;
    }
    Ok(())
}

/// Mounts from a thread that ends with it, for what the thread changes of itself.
fn on_own_thread<T: Send>(
    kind: &str,
    target: &Path,
    mount: impl FnOnce() -> sys::Result<T> + Send,
) -> Result<T, Error> {
    let thread = std::thread::scope(|scope| {
        let spawned = std::thread::Builder::new().name(format!("{kind} mount")).spawn_scoped(scope, mount);
        spawned.map(|thread| thread.join())
    });
    match thread {
        Ok(Ok(result)) => result.map_err(Error::mount(kind, target)),
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(source) => Err(Error::Thread { target: target.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests;
