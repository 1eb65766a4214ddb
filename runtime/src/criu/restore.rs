//! Bringing a container back from images: everything but its processes before the start, these at the start.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::mount::MountPropagationFlags;
use rustix::process::{getpid, set_child_subreaper};
use rustix::thread::UnshareFlags;

use super::{CAPTURED, Call, Captured, Error, RESTORE_LOG, Result, at, external, key, log, mounts, named};
use crate::cgroup::Cgroup;
use crate::container::{Birth, Child, Error as SpawnError, PidNamespace, Reporter, cradle};
use crate::{init, sys};

/// Where CRIU tells the pid of the first process, in the bundle.
const PID_FILE: &str = "restored.pid";

/// The container to be brought back.
pub(crate) struct Restore<'a> {
    /// With what a dump has written.
    pub(crate) call: Call<'a>,
    /// Longest wait for CRIU.
    pub(crate) limit: Duration,
    pub(crate) bundle: &'a Path,
    pub(crate) cgroup: &'a str,
    /// The name of its session keyring, if it gets one.
    pub(crate) keyring: Option<&'a str>,
    /// Of the container.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
}

/// Makes the restorer. It reports `Ready`, and after the start `Born` and `Executed`, and ends; the container's first
/// process is its child, which the caller inherits as a subreaper.
pub(crate) fn restore(restore: &Restore<'_>) -> std::result::Result<Child, SpawnError> {
    let cgroup = Cgroup::new(restore.cgroup).map_err(|source| SpawnError::cgroup(restore.cgroup, source))?;
    let cradle = cradle(&cgroup)?;
    let birth = Birth {
        pid_namespace: PidNamespace::Inherit,
        cgroup: cradle.directory.as_ref().map(AsFd::as_fd),
        stdio: restore.stdio,
        preserved: 0,
    };
    birth.clone_process(&[], |reporter, _| run(restore, &cgroup, cradle.whole, reporter))
}

fn run(
    restore: &Restore<'_>,
    cgroup: &Cgroup,
    in_cgroup: bool,
    reporter: &Reporter,
) -> init::Result<Infallible> {
    let spec = init::read_spec(restore.bundle)?;
    let captured = read(restore.call.images)?;
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    init::enter_cgroup(cgroup, in_cgroup, resources, false)?;
    if let Some(name) = restore.keyring {
        sys::credential::join_keyring(name).map_err(init::Error::Keyring)?;
    }
    set_child_subreaper(Some(getpid())).map_err(|errno| at("become a subreaper")(errno.into()))?;
    enter_named(&spec)?;
    separate(&spec)?;
    if let Some(process) = spec.process() {
        let uid = process.user().uid();
        init::give_stdio(uid, false).map_err(|source| init::Error::User {
            uid,
            gid: process.user().gid(),
            source,
        })?;
    }
    let pid_file = restore.bundle.join(PID_FILE);
    let (mut command, kept) = prepare(restore, &spec, &captured, cgroup, &pid_file)?;
    if !reporter.wait_for_start().map_err(init::Error::Talk)? {
        return Err(init::Error::Abandoned);
    }
    let pid = call(&mut command, restore, &pid_file)?;
    drop(kept);
    reporter.born(pid).map_err(init::Error::Talk)?;
    reporter.executed().map_err(init::Error::Talk)?;
    sys::process::exit(0)
}

fn read(images: &Path) -> Result<Captured> {
    let path = images.join(CAPTURED);
    let text = fs::read(&path).map_err(at(&path))?;
    serde_json::from_slice(&text).map_err(|error| at(path)(error.into()))
}

fn enter_named(spec: &Spec) -> init::Result<()> {
    for (kind, path) in named(spec)? {
        let namespace = fs::File::open(path).map_err(at(path))?;
        sys::process::setns(&namespace, kind).map_err(Error::Enter)?;
    }
    Ok(())
}

/// Namespaces that CRIU is to see as the host's: the cgroups', whose root is the container's cgroup, and mounts that
/// nobody else sees.
fn separate(spec: &Spec) -> init::Result<()> {
    let failed = |source: sys::Error| at("make namespaces for CRIU")(io::Error::other(source));
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let own_cgroups =
        namespaces.into_iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup);
    let mut flags = UnshareFlags::NEWNS;
    flags.set(UnshareFlags::NEWCGROUP, own_cgroups);
    sys::process::unshare(flags).map_err(failed)?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(sys::mount::set_propagation("/", slave).map_err(failed)?)
}

/// The call, and the descriptors that it inherits.
fn prepare(
    restore: &Restore<'_>,
    spec: &Spec,
    captured: &Captured,
    cgroup: &Cgroup,
    pid_file: &Path,
) -> init::Result<(Command, Vec<OwnedFd>)> {
    let root = spec.root().as_ref().ok_or(init::Error::Missing { field: "root" })?;
    let mut command = restore.call.command("restore", RESTORE_LOG);
    command.args(["--restore-detached", "--root"]).arg(restore.bundle.join(root.path()));
    command.arg("--pidfile").arg(pid_file);
    for (number, mount) in captured.mounts.iter().enumerate() {
        external(&mut command, key(number), mounts::source(mount, spec, restore.bundle, cgroup)?);
    }
    let mut kept = Vec::new();
    for (name, end) in captured.pipes.iter().zip(sys::process::stdio()) {
        let Some(name) = name else { continue };
        // Without the flag that would close it.
        let end = rustix::io::dup(end).map_err(|errno| at("duplicate a pipe")(errno.into()))?;
        command.arg("--inherit-fd").arg(format!("fd[{}]:{name}", end.as_raw_fd()));
        kept.push(end);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok((command, kept))
}

/// Has CRIU make the processes, and tells the first one's pid.
fn call(command: &mut Command, restore: &Restore<'_>, pid_file: &Path) -> Result<i32> {
    let execute = |source| Error::Execute { program: restore.call.program.to_owned(), source };
    let _ = fs::remove_file(pid_file);
    let mut child = command.spawn().map_err(execute)?;
    let in_time = sys::process::ends_within(child.id(), restore.limit).map_err(execute)?;
    if !in_time {
        child.kill().map_err(execute)?;
    }
    let status = child.wait().map_err(execute)?;
    if !in_time || !status.success() {
        return Err(Error::Restore { reason: why(restore, in_time, status) });
    }
    let text = fs::read_to_string(pid_file).map_err(at(pid_file))?;
    let _ = fs::remove_file(pid_file);
    text.trim().parse().map_err(|error| at(pid_file)(io::Error::other(error)))
}

fn why(restore: &Restore<'_>, in_time: bool, status: ExitStatus) -> String {
    match log::reason(&restore.call.work.join(RESTORE_LOG)) {
        _ if !in_time => format!("it was not done within {:?}", restore.limit),
        Some(reason) => reason,
        None => status.to_string(),
    }
}
