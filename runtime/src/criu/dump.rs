//! Writing a container's processes to images.

use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::thread::ThreadNameSpaceType;

use super::{CAPTURED, Call, Captured, DUMP_LOG, Error, Result, at, external, key, mounts, named};
use crate::cgroup::Cgroup;
use crate::container::{Birth, Child, Error as SpawnError, PidNamespace};
use crate::{init, sys};

/// What is to be written, and where.
pub(crate) struct Dump<'a> {
    pub(crate) call: Call<'a>,
    /// `dump`, or `pre-dump` for memory alone.
    pub(crate) verb: &'static str,
    pub(crate) bundle: &'a Path,
    pub(crate) cgroup: &'a str,
    /// The container's first process.
    pub(crate) pid: i32,
    /// The pipes that its standard input, output and error were given, as CRIU names them.
    pub(crate) pipes: [Option<String>; 3],
    /// For CRIU to read from and write to.
    pub(crate) null: BorrowedFd<'a>,
}

/// Makes a process that becomes `criu dump`. It is in the caller's cgroup, so that freezing the container's leaves it alone.
pub(crate) fn dump(dump: &Dump<'_>) -> std::result::Result<Child, SpawnError> {
    let birth =
        Birth { pid_namespace: PidNamespace::Inherit, cgroup: None, stdio: [dump.null; 3], preserved: 0 };
    birth.clone_process(&[], |reporter, _| {
        let mut command = prepare(dump)?;
        reporter.executing().map_err(init::Error::Talk)?;
        Err(Error::Execute { program: dump.call.program.to_owned(), source: command.exec() }.into())
    })
}

fn prepare(dump: &Dump<'_>) -> init::Result<Command> {
    let spec = init::read_spec(dump.bundle)?;
    let root = spec.root().as_ref().ok_or(init::Error::Missing { field: "root" })?;
    let made = mounts::made(&spec, dump.pid)?;
    let of_container = mounts::of_process(&dump.pid.to_string())?;
    let externals = mounts::externals(&of_container, &mounts::of_process("self")?, &made)?;
    let captured = Captured { pipes: dump.pipes.clone(), mounts: externals };
    write(dump.call.images, &captured)?;
    let kinds = named(&spec)?.fold(ThreadNameSpaceType::empty(), |kinds, (kind, _)| kinds | kind);
    if !kinds.is_empty() {
        let process = sys::process::pidfd_open(dump.pid).map_err(Error::Enter)?;
        sys::process::setns(&process, kinds).map_err(Error::Enter)?;
    }
    let mut command = dump.call.command(dump.verb, DUMP_LOG);
    command.arg("--tree").arg(dump.pid.to_string()).arg("--root").arg(dump.bundle.join(root.path()));
    if let Some(freezer) = freezer(dump.cgroup)? {
        command.arg("--freeze-cgroup").arg(freezer);
    }
    for (number, mount) in captured.mounts.iter().enumerate() {
        external(&mut command, &mount.path, key(number));
    }
    Ok(command)
}

fn write(images: &Path, captured: &Captured) -> Result<()> {
    let path = images.join(CAPTURED);
    let text = serde_json::to_vec(captured).map_err(|error| at(&path)(error.into()))?;
    fs::write(&path, text).map_err(at(path))
}

/// The directory by which the container's processes are held. CRIU leaves it as it finds it.
fn freezer(cgroup: &str) -> init::Result<Option<PathBuf>> {
    let failed = |source| init::Error::Cgroup { path: cgroup.to_owned(), source };
    let mut paths = Cgroup::new(cgroup).map_err(failed)?.paths();
    Ok(paths.remove("unified").or_else(|| paths.remove("freezer")))
}
