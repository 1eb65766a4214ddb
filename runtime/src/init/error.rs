//! What can go wrong between clone and exec. The parent gets the chain as one line of text.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::container::ExecFailure;
use crate::sys;

/// A step that failed, and on what.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Delegate(#[from] crate::delegate::Error),
    #[error(transparent)]
    Criu(#[from] crate::criu::Error),
    #[error("arrange descriptors")]
    Descriptors(#[source] sys::Error),
    #[error("reset signals")]
    Signals(#[source] sys::Error),
    #[error("become undumpable")]
    Dumpable(#[source] sys::Error),
    #[error("the container's setup panicked, which is a bug in the runtime")]
    Panicked,
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not a valid OCI configuration", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("the configuration has no {field}")]
    Missing { field: &'static str },
    #[error("{what} is not supported")]
    Unsupported { what: String },
    #[error("invalid {what} {list:?}: a list such as 0-3,7 of numbers below {limit} is expected")]
    List { what: &'static str, list: String, limit: usize },
    #[error("invalid memory policy: the mode requires 0 nodes but got {0}")]
    NeedlessNodes(u32),
    #[error("{what} is listed twice")]
    Duplicate { what: String },
    #[error("{what} holds a null byte")]
    NullByte { what: &'static str },
    #[error("session keyring")]
    Keyring(#[source] sys::Error),
    #[error("HOME has more than one line")]
    Home,
    #[error("network device {name}")]
    NetworkDevice {
        name: String,
        #[source]
        source: sys::Error,
    },
    #[error("{name:?} is no name of a network device")]
    NetworkDeviceName { name: String },
    #[error("begin a session")]
    Session(#[source] sys::Error),
    #[error("terminal")]
    Terminal(#[source] sys::Error),
    #[error("cgroup {path:?}")]
    Cgroup {
        path: String,
        #[source]
        source: crate::cgroup::Error,
    },
    #[error("{kind} namespace {}", path.display())]
    JoinNamespace {
        kind: String,
        path: PathBuf,
        #[source]
        source: sys::Error,
    },
    #[error("make new namespaces")]
    NewNamespaces(#[source] sys::Error),
    #[error("join the container's namespaces")]
    EnterContainer(#[source] sys::Error),
    #[error("root file system {}", path.display())]
    Rootfs {
        path: PathBuf,
        #[source]
        source: sys::Error,
    },
    #[error("propagation {word:?} of the root file system is unknown")]
    Propagation { word: String },
    #[error("make the container's file system the root")]
    Pivot(#[source] sys::Error),
    #[error("mount source {} for {}", from.display(), destination.display())]
    MountSource {
        from: PathBuf,
        destination: PathBuf,
        #[source]
        source: sys::Error,
    },
    #[error("mount destination {}", destination.display())]
    MountDestination {
        destination: PathBuf,
        #[source]
        source: sys::Error,
    },
    #[error("mount {kind} at {}", destination.display())]
    Mount {
        kind: String,
        destination: PathBuf,
        #[source]
        source: sys::Error,
    },
    #[error("mount at {}: {problem}", destination.display())]
    MountRefused { destination: PathBuf, problem: String },
    #[error("device {}", path.display())]
    Device {
        path: PathBuf,
        #[source]
        source: sys::Error,
    },
    #[error("device {}: {problem}", path.display())]
    DeviceRefused { path: PathBuf, problem: &'static str },
    #[error("/dev/null of the host is not the null device")]
    NotNullDevice,
    #[error("mask {}", path.display())]
    Mask {
        path: PathBuf,
        #[source]
        source: sys::Error,
    },
    #[error("make {} read-only", path.display())]
    ReadOnly {
        path: PathBuf,
        #[source]
        source: sys::Error,
    },
    #[error("sysctl {name:?} is not allowed: {reason}")]
    SysctlRefused { name: String, reason: &'static str },
    #[error("sysctl {name:?}")]
    Sysctl {
        name: String,
        #[source]
        source: sys::Error,
    },
    #[error("id mapping: {}", path.display())]
    Mapping {
        path: PathBuf,
        #[source]
        source: sys::Error,
    },
    #[error(transparent)]
    Hook(crate::hook::Error),
    #[error("set {what}")]
    Scheduling {
        what: &'static str,
        #[source]
        source: sys::Error,
    },
    #[error("the AppArmor profile {0:?} is not loaded; load it with apparmor_parser")]
    ProfileNotLoaded(String),
    #[error("set the label {label:?}")]
    Label {
        label: String,
        #[source]
        source: sys::Error,
    },
    #[error("set the hostname")]
    Hostname(#[source] sys::Error),
    #[error("talk to the parent")]
    Talk(#[source] sys::Error),
    #[error("the parent is gone")]
    Abandoned,
    #[error("set oom_score_adj to {value}")]
    OomScore {
        value: i32,
        #[source]
        source: sys::Error,
    },
    #[error("limit {name} (soft {soft}, hard {hard})")]
    Rlimit {
        name: String,
        soft: u64,
        hard: u64,
        #[source]
        source: sys::Error,
    },
    #[error("become user {uid}:{gid}")]
    User {
        uid: u32,
        gid: u32,
        #[source]
        source: sys::Error,
    },
    #[error("id {id} is out of range")]
    IdRange { id: u32 },
    #[error("set capabilities")]
    Capabilities(#[source] sys::Error),
    #[error("set no_new_privs")]
    NoNewPrivs(#[source] sys::Error),
    #[error("prepare the seccomp filter")]
    SeccompProgram(#[source] crate::seccomp::Error),
    #[error("load the seccomp filter")]
    Seccomp(#[source] sys::Error),
    #[error("working directory {}", path.display())]
    WorkingDirectory {
        path: PathBuf,
        #[source]
        source: sys::Error,
    },
    #[error("working directory {} is outside of the container", path.display())]
    WorkingDirectoryOutside { path: PathBuf },
    #[error("the process has no arguments, not even a program")]
    NoProgram,
    #[error("exec: {program:?}: executable file not found in $PATH")]
    NotInPath { program: String },
    #[error("exec: {program:?}")]
    Exec {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "exec {program}: no such file or directory: the file exists, but not the interpreter that it names"
    )]
    Interpreter { program: String },
}

impl Error {
    /// Set when the program itself is the problem.
    pub(crate) fn exec_failure(&self) -> Option<ExecFailure> {
        match self {
            Error::NotInPath { .. } | Error::Interpreter { .. } => Some(ExecFailure::NotFound),
            Error::Exec { source, .. } => Some(match Errno::from_io_error(source) {
                Some(Errno::NOENT | Errno::NOTDIR) => ExecFailure::NotFound,
                Some(Errno::ACCESS | Errno::NOEXEC | Errno::ISDIR | Errno::PERM) => {
                    ExecFailure::NotExecutable
                }
                _ => ExecFailure::Other,
            }),
            _ => None,
        }
    }
}
