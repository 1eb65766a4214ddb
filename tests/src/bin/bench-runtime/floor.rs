//! The floor: this program, executed again, as a runtime that does nothing that it could leave out.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use crate::bundle::Kind;

const FLAG: &str = "--floor";

/// Makes a command of this program the floor.
pub(crate) fn arguments(command: &mut Command, rootfs: &Path, kind: Kind) {
    command.arg(FLAG).arg(rootfs).args(kind.namespaces());
}

/// The arguments behind the flag, if this process is to be the floor.
pub(crate) fn asked() -> Option<Vec<String>> {
    let mut arguments = std::env::args().skip(1);
    (arguments.next()? == FLAG).then(|| arguments.collect())
}

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [rootfs, namespaces @ ..] = arguments else { anyhow::bail!("a root and namespaces") };
    let flags = namespaces.iter().map(|name| match name.as_str() {
        "mount" => UnshareFlags::NEWNS,
        "pid" => UnshareFlags::NEWPID,
        "network" => UnshareFlags::NEWNET,
        "ipc" => UnshareFlags::NEWIPC,
        "uts" => UnshareFlags::NEWUTS,
        _ => UnshareFlags::NEWCGROUP,
    });
    unshare(flags.collect())?;
    let root = PathBuf::from(rootfs);
    make_private()?;
    rustix::mount::mount_bind(&root, &root).context("bind the root")?;
    rustix::process::chdir(&root).context("enter the root")?;
    rustix::process::pivot_root(".", ".").context("pivot_root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).context("drop the old root")?;
    let status = Command::new("/bin/true").status().context("run /bin/true")?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// A mount namespace of this program's own, in which everybody has the same: no hierarchy of version 2 beside those of
/// version 1, which crun doesn't start with.
pub(crate) fn own_mounts() -> Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    make_private()?;
    let unified = Path::new("/sys/fs/cgroup/unified");
    if unified.join("cgroup.controllers").exists() {
        rustix::mount::unmount(unified, UnmountFlags::DETACH).context("unmount the unified hierarchy")?;
    }
    Ok(())
}

fn unshare(flags: UnshareFlags) -> Result<()> {
    #[allow(
        deprecated,
        reason = "it is unsafe for the descriptors of threads only, and nothing of that is here"
    )]
    rustix::thread::unshare(flags).context("unshare")
}

fn make_private() -> Result<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).context("make the mounts private")
}
