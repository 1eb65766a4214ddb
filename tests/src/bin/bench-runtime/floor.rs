//! The floor: this program, executed again, as a runtime that does nothing that it could leave out. A second one makes
//! the container's cgroups too, one in each hierarchy, enters them and removes them. A third one also mounts, masks and
//! limits what the usual container has, by the fewest calls, and has no filter of system calls.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use crate::bundle::{Kind, MASKED, READONLY};

const FLAG: &str = "--floor";
/// Among the names of namespaces.
const EQUIPPED: &str = "equipped";

/// Makes a command of this program the floor, in new cgroups if there are some.
pub(crate) fn arguments(
    command: &mut Command,
    rootfs: &Path,
    kind: Kind,
    cgroups: &[PathBuf],
    equipped: bool,
) {
    command.arg(FLAG).arg(rootfs).args(kind.namespaces()).args(equipped.then_some(EQUIPPED)).args(cgroups);
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
    for cgroup in &cgroups {
        enter(Path::new(cgroup))?;
    }
    let equipped = namespaces.iter().any(|name| *name == EQUIPPED);
    let names = namespaces.into_iter().filter(|name| *name != EQUIPPED);
    let flags = names.map(|name| match name.as_str() {
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
    if equipped {
        cgroups.iter().try_for_each(|cgroup| limit(Path::new(cgroup)))?;
        mount_usual(&root)?;
        cover_usual(&root)?;
    }
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

/// The limits of the usual container, which are each controller's own affair.
fn limit(cgroup: &Path) -> Result<()> {
    const LIMITS: [(&str, &str); 6] = [
        ("memory.limit_in_bytes", "67108864"),
        ("cpu.shares", "512"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "100000"),
        ("pids.max", "64"),
        ("devices.deny", "a"),
    ];
    for (name, value) in LIMITS {
        let controller = name.split('.').next().unwrap_or_default();
        // A cgroup of version 1, below its hierarchy's root.
        if cgroup.parent().is_some_and(|root| root.ends_with(controller)) {
            std::fs::write(cgroup.join(name), value).with_context(|| format!("set {name}"))?;
        }
    }
    Ok(())
}

/// Of the old pid namespace, as nobody is in the new one yet: it costs the kernel the same.
fn mount_usual(root: &Path) -> Result<()> {
    const USUAL: [(&str, &str, Option<&CStr>); 7] = [
        ("proc", "proc", None),
        ("dev", "tmpfs", Some(c"mode=755,size=65536k")),
        ("dev/pts", "devpts", Some(c"newinstance,ptmxmode=0666,mode=0620")),
        ("dev/shm", "tmpfs", Some(c"mode=1777,size=65536k")),
        ("dev/mqueue", "mqueue", None),
        ("sys", "sysfs", None),
        ("sys/fs/cgroup", "tmpfs", None),
    ];
    for (place, kind, options) in USUAL {
        let target = root.join(place);
        if place.starts_with("dev/") {
            std::fs::create_dir(&target).context("make a folder of /dev")?;
        }
        rustix::mount::mount(kind, &target, kind, MountFlags::NOSUID, options)
            .with_context(|| format!("mount {place}"))?;
    }
    Ok(())
}

/// Masks and protects what there is of the usual paths.
fn cover_usual(root: &Path) -> Result<()> {
    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    for path in MASKED.map(inside).iter().filter(|path| path.exists()) {
        let masked = match path.is_dir() {
            true => rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::RDONLY, None),
            false => rustix::mount::mount_bind("/dev/null", path),
        };
        masked.with_context(|| format!("mask {}", path.display()))?;
    }
    for path in READONLY.map(inside).iter().filter(|path| path.exists()) {
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        rustix::mount::mount_bind(path, path)
            .and_then(|()| rustix::mount::mount_remount(path, flags, c""))
            .with_context(|| format!("protect {}", path.display()))?;
    }
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
