//! Who runs the commands of a build.
//!
//! The builder knows layers and snapshots and performs nothing: mounting and running is for whoever has a runtime. A
//! [`Runner`] mounts what it is told where it is told, and runs one command to its end; when its future is done, nothing of
//! the command is left.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use oci_spec::runtime::Mount;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Error, Network};

/// Mounts, and runs commands.
pub trait Runner: Send + Sync {
    /// Performs the mounts of a snapshot at a directory. Blocks.
    ///
    /// # Errors
    /// What the kernel refused; then nothing is mounted.
    fn mount(&self, mounts: &[Mount], at: &Path) -> Result<(), Error>;

    /// Takes away what is mounted at a directory; nothing is fine. Blocks.
    ///
    /// # Errors
    /// What the kernel refused.
    fn unmount(&self, at: &Path) -> Result<(), Error>;

    /// Runs a command to its end, and gives its output to `output` as it comes. When `cancel` is cancelled the command is
    /// killed. No process and no mount of it is left when the future is done.
    fn run(
        &self,
        command: Command,
        output: mpsc::Sender<Output>,
        cancel: CancellationToken,
    ) -> BoxFuture<'static, Result<Exit, Error>>;

    /// Whether commands may use the host's network.
    ///
    /// # Errors
    /// `Denied` says what has to be configured.
    fn allow(&self, network: Network, insecure: bool) -> Result<(), Error>;
}

/// A command with all that it sees.
#[derive(Clone, Debug)]
pub struct Command {
    /// Names this run; fit for file names.
    pub id: String,
    /// Where the root is mounted.
    pub rootfs: PathBuf,
    /// The program and its arguments.
    pub arguments: Vec<String>,
    /// `NAME=VALUE`, each name once.
    pub environment: Vec<String>,
    /// Absolute.
    pub directory: String,
    /// As USER has it; empty is root.
    pub user: String,
    /// In order.
    pub mounts: Vec<Bind>,
    /// What network it has.
    pub network: Network,
    /// What the machine is called; empty: what the runner likes.
    pub hostname: String,
    /// For `/etc/hosts`.
    pub hosts: Vec<(String, IpAddr)>,
    /// Bytes at most, and thousandths of a processor; 0: the runner's default.
    pub memory: i64,
    /// Likewise.
    pub cpu_millis: i64,
}

/// Something that is mounted for a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Where the command sees it: absolute and clean.
    pub target: PathBuf,
    /// What it is.
    pub source: BindSource,
    /// Whether writes are refused.
    pub readonly: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindSource {
    /// A file or directory of this machine, all links followed.
    Path(PathBuf),
    /// A file with these bytes, in memory only.
    File {
        /// The bytes.
        content: Arc<Vec<u8>>,
        /// Of the file.
        uid: u32,
        /// Likewise.
        gid: u32,
        /// Likewise.
        mode: u32,
    },
    /// Memory, with as many bytes at most.
    Tmpfs(Option<u64>),
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Whether it came by standard error.
    pub stderr: bool,
    /// Any bytes.
    pub data: Vec<u8>,
    /// Nanoseconds since 1970.
    pub time: i64,
}

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// As given to exit(2), or 128 and the signal.
    pub code: i32,
    /// Whether the kernel killed one of its processes for want of memory.
    pub oom_killed: bool,
    /// Where the runtime made something to mount on, in the snapshot: no change of the command's.
    pub mount_points: Vec<PathBuf>,
}
