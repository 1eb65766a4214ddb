//! A container's first process, from its clone to its exec.
//!
//! Everything here runs in the child. The order matters: what needs the host's view (bundle,
//! cgroups, sources of mounts) comes before pivot_root, what needs privileges before they are
//! dropped, and what can fail before `Ready`, so that a start has little left to do.
//!
//! Nothing is resolved by the path of a container (see `beneath`), and nothing of the host is open
//! any more when the container's own settings, such as its working directory, begin to count.

use std::convert::Infallible;
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, LinuxResources};

use crate::cgroup::Cgroup;
use crate::container::Reporter;
use crate::sys;

mod bundle;
mod capability;
mod cgroupfs;
mod device;
mod error;
mod maskedpath;
mod mounts;
mod namespace;
mod process;
mod program;
mod rootfs;
mod supported;
mod sysctl;

pub(crate) use bundle::seccomp_of_exec;
pub(crate) use error::Error;
pub(crate) use process::Prepared;
use rootfs::Rootfs;

/// What every step here returns.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// The exit code of a child that gave up before its program could be executed.
pub(crate) const EXIT_FAILED: i32 = 128;

/// The container to be made.
pub(crate) struct Setup<'a> {
    pub(crate) bundle: &'a Path,
    pub(crate) cgroup: &'a Cgroup,
    /// Whether the child was born in its cgroup.
    pub(crate) in_cgroup: bool,
}

/// Makes the container around the calling process, waits for the start and executes its program.
pub(crate) fn run(setup: &Setup<'_>, reporter: &Reporter) -> Result<Infallible> {
    let spec = bundle::read_spec(setup.bundle)?;
    supported::check(&spec)?;
    let process = spec.process().as_ref().ok_or(Error::Missing { field: "process" })?;
    let linux = spec.linux().as_ref().ok_or(Error::Missing { field: "linux" })?;
    let prepared = Prepared::new(process, bundle::seccomp(setup.bundle, linux.seccomp().as_ref())?)?;
    let root = spec.root().as_ref().ok_or(Error::Missing { field: "root" })?;

    // Modes of what is made are meant as they are written, whatever the parent's mask.
    rustix::process::umask(rustix::fs::Mode::empty());
    sys::process::setsid().map_err(Error::Session)?;
    prepared.set_oom_score()?;
    let namespaces = namespace::Namespaces::of(linux)?;
    enter_cgroup(setup, linux.resources().as_ref())?;
    namespaces.enter()?;

    let rootfs = Rootfs::prepare(&setup.bundle.join(root.path()), linux.rootfs_propagation().as_deref())?;
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let cgroups =
        cgroupfs::View { cgroup: setup.cgroup, own_root: namespaces.has_new(LinuxNamespaceType::Cgroup) };
    mounts::mount_all(&rootfs, mounts, &cgroups)?;
    device::make(&rootfs, mounts, linux.devices().as_deref().unwrap_or_default())?;
    prepared.make_working_directory(&rootfs)?;
    maskedpath::mask(&rootfs, linux.masked_paths().as_deref().unwrap_or_default())?;
    maskedpath::make_read_only(&rootfs, linux.readonly_paths().as_deref().unwrap_or_default())?;
    if let Some(sysctls) = linux.sysctl().as_ref().filter(|sysctls| !sysctls.is_empty()) {
        sysctl::set(sysctls, &namespaces)?;
    }
    if namespaces.has_new(LinuxNamespaceType::Uts) {
        set_names(spec.hostname().as_deref(), spec.domainname().as_deref())?;
    }
    rootfs.enter(root.readonly().unwrap_or(false))?;

    if !reporter.wait_for_start().map_err(Error::Talk)? {
        // Nobody is left who could ever start this container.
        return Err(Error::Abandoned);
    }
    prepared.execute(reporter)
}

fn enter_cgroup(setup: &Setup<'_>, resources: Option<&LinuxResources>) -> Result<()> {
    let failed = |source| Error::Cgroup { path: setup.cgroup.path().to_owned(), source };
    if !setup.in_cgroup {
        setup.cgroup.create().map_err(failed)?;
    }
    if let Some(resources) = resources {
        setup.cgroup.apply(resources).map_err(failed)?;
    }
    if setup.in_cgroup { Ok(()) } else { setup.cgroup.enter().map_err(failed) }
}

fn set_names(hostname: Option<&str>, domainname: Option<&str>) -> Result<()> {
    if let Some(name) = hostname {
        sys::process::sethostname(name).map_err(Error::Hostname)?;
    }
    if let Some(name) = domainname {
        sys::process::setdomainname(name).map_err(Error::Hostname)?;
    }
    Ok(())
}
