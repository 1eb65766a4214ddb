//! Checkpoints: containers written to images by CRIU and brought back from them.
//!
//! CRIU is executed in the pod's network, IPC and UTS namespaces, which are the monitor's, or in those that a configuration
//! of the command line names. To CRIU they are the host's, so it neither writes nor makes any of them: a container goes on
//! in those of whatever pod it comes back to.
//! It is told nothing of control groups either; who restores is in the container's own, in a cgroup namespace of its own.
//! Mounts of the host are left out of the images and found anew by the container's configuration ([`mounts`]).
//!
//! ```text
//!  monitor ──clone3──▶ dumper: finds the mounts, executes `criu dump`
//!  monitor ──clone3──▶ restorer: cgroup, namespaces, Ready … start ──▶ `criu restore` ──▶ the container's processes
//!     ◀──── Born, Executed ──┘ (ends; its child, the container's first process, becomes the monitor's)
//! ```
//!
//! What is refused: containers that share pids, have a terminal or users of the pod's own, or are another runtime's.
//! Images are as trusted as the configuration: they say what credentials the processes have.

mod dump;
mod log;
mod mounts;
mod restore;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::thread::ThreadNameSpaceType;
use serde::{Deserialize, Serialize};

use crate::{init, sys};
pub(crate) use dump::{Dump, dump};
pub use log::reason;
use mounts::External;
pub(crate) use restore::{Restore, restore};

/// The log of a dump, in the folder of the images.
pub const DUMP_LOG: &str = "dump.log";
/// The log of a restore, there too.
pub const RESTORE_LOG: &str = "restore.log";
/// What CRIU has no word for, there too.
const CAPTURED: &str = "sampan.json";

/// Where programs of the host are: CRIU calls `tar` for what is in a tmpfs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What was outside of the container, to be put into its place again.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Captured {
    /// How CRIU names the pipes that were standard input, output and error, if they were pipes.
    pipes: [Option<String>; 3],
    /// By the number that is their key.
    mounts: Vec<External>,
}

/// Why there is no checkpoint, or no container from one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("execute {}", program.display())]
    Execute {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the checkpoint has a mount at {} that is none of this container", path.display())]
    NoSource { path: PathBuf },
    #[error("a mount of the host at {} that the configuration does not tell of", path.display())]
    UnknownMount { path: PathBuf },
    #[error("enter the namespaces that the configuration names")]
    Enter(#[source] sys::Error),
    #[error("criu restore: {reason}")]
    Restore { reason: String },
}

type Result<T> = std::result::Result<T, Error>;

fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { path, source }
}

/// CRIU's program, looked for in `PATH`.
pub fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join("criu")).find(|program| program.is_file())
}

/// Where CRIU reads and writes, and what a caller asks of it on top.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    /// CRIU's program.
    pub(crate) program: &'a Path,
    pub(crate) images: &'a Path,
    /// Where its log and statistics go.
    pub(crate) work: &'a Path,
    /// Options as they are.
    pub(crate) options: &'a [OsString],
}

impl Call<'_> {
    fn command(&self, verb: &str, log: &str) -> Command {
        let mut command = Command::new(self.program);
        command.arg(verb).arg("--images-dir").arg(self.images).arg("--work-dir").arg(self.work);
        // Everything but errors is for people who look into the log.
        command.args(["--log-file", log, "-v4", "--manage-cgroups=ignore"]).args(self.options);
        command.env_clear().env("PATH", PATH);
        command
    }
}

/// The network, IPC and UTS namespaces that a configuration has by path.
fn named(spec: &Spec) -> init::Result<impl Iterator<Item = (ThreadNameSpaceType, &Path)>> {
    let linux = spec.linux().as_ref().ok_or(init::Error::Missing { field: "linux" })?;
    Ok(linux.namespaces().iter().flatten().filter_map(|namespace| {
        let kind = match namespace.typ() {
            LinuxNamespaceType::Network => ThreadNameSpaceType::NETWORK,
            LinuxNamespaceType::Ipc => ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION,
            LinuxNamespaceType::Uts => ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
            _ => return None,
        };
        Some((kind, namespace.path().as_deref()?))
    }))
}

/// `--external mnt[INSIDE]:OUTSIDE`.
fn external(command: &mut Command, inside: impl Into<OsString>, outside: impl Into<OsString>) {
    let mut value = OsString::from("mnt[");
    value.push(inside.into());
    value.push("]:");
    value.push(outside.into());
    command.arg("--external").arg(value);
}

/// The key of an external mount.
fn key(number: usize) -> String {
    format!("m{number}")
}
