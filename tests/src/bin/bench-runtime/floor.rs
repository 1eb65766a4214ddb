//! The floor: this program, executed again, as a runtime that does nothing that it could leave out. A second one makes
//! the container's cgroups too, one in each hierarchy, enters them and removes them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use crate::bundle::Kind;

const FLAG: &str = "--floor";

/// Makes a command of this program the floor, in new cgroups if there are some.
pub(crate) fn arguments(command: &mut Command, rootfs: &Path, kind: Kind, cgroups: &[PathBuf]) {
    command.arg(FLAG).arg(rootfs).args(kind.namespaces()).args(cgroups);
}

/// A cgroup of this name in every hierarchy that is mounted; none is made.
pub(crate) fn cgroups(name: &str) -> Vec<PathBuf> {
    sampan_tests::hierarchies().into_iter().map(|hierarchy| hierarchy.join(name)).collect()
}

/// Once the floor has ended.
pub(crate) fn remove(cgroups: &[PathBuf]) -> Result<()> {
    cgroups.iter().try_for_each(|cgroup| {
        std::fs::remove_dir(cgroup).with_context(|| format!("remove {}", cgroup.display()))
    })
}

/// The arguments behind the flag, if this process is to be the floor.
pub(crate) fn asked() -> Option<Vec<String>> {
    let mut arguments = std::env::args().skip(1);
    (arguments.next()? == FLAG).then(|| arguments.collect())
}

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [rootfs, rest @ ..] = arguments else { anyhow::bail!("a root, namespaces and cgroups") };
    let (cgroups, namespaces): (Vec<&String>, Vec<&String>) =
        rest.iter().partition(|argument| argument.starts_with('/'));
    for cgroup in cgroups {
        enter(Path::new(cgroup))?;
    }
    let flags = namespaces.into_iter().map(|name| match name.as_str() {
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

/// By the cheapest way: a thread moves itself, which version 1 has a file of its own for.
fn enter(cgroup: &Path) -> Result<()> {
    std::fs::create_dir(cgroup).with_context(|| format!("make {}", cgroup.display()))?;
    if cgroup.to_string_lossy().contains("cpuset") {
        // A new one of version 1 is empty, and lets nobody in.
        for name in ["cpuset.cpus", "cpuset.mems"] {
            let copied = std::fs::read(cgroup.with_file_name(name))
                .and_then(|value| std::fs::write(cgroup.join(name), value));
            copied.with_context(|| format!("set {name}"))?;
        }
    }
    let entered = std::fs::write(cgroup.join("tasks"), "0");
    entered.or_else(|_| std::fs::write(cgroup.join("cgroup.procs"), "0")).context("enter a cgroup")
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
