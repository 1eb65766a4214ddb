//! The monitor of one pod: parent of its containers, holder of its namespaces, writer of its logs.
//!
//! A shim is one process with one thread that serves the agent over a socket ([`protocol`]). It never waits for
//! anybody: not for a client, not for a child on its way to its program, not for a full disk. What is heavy (reading
//! `config.json`, mounting, filters) happens in the children. It lives until `Shutdown`, whatever becomes of the agent.
//!
//! It is not in the containers' cgroups and remains after their worst; it does not restart, decide or remember
//! anything beyond its containers. The network of a new pod is empty: the agent fills it through
//! `/proc/PID/ns/net`.

mod connection;
mod container;
mod exec;
mod launcher;
mod log;
mod pod;
mod poll;
pub mod protocol;
mod record;
mod removal;
mod server;

pub use launcher::{Launcher, Start};
pub(crate) use log::timestamp;

use std::io;
use std::path::PathBuf;

use crate::sys;
use crate::users::Mappings;

/// What a shim is started with. Its standard input is the listening socket.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The pod, for people who look at a list of processes.
    pub pod: String,
    /// The cgroup for the shim itself.
    pub cgroup: String,
    /// The pod's host name.
    pub hostname: Option<String>,
    /// The pod has the host's network and name.
    pub host_network: bool,
    /// The pod has the host's IPC.
    pub host_ipc: bool,
    /// The pod has a pid namespace that containers can share.
    pub shared_pid: bool,
    /// Names and values, of the pod's namespaces only.
    pub sysctls: Vec<(String, String)>,
    /// Where the procfs is by which they are set; `/proc` without one.
    pub procfs: Option<PathBuf>,
    /// Where the mount namespace is that those of containers are made from ([`crate::mount::MinimalNamespace`]). Without one,
    /// or when it can't be opened, it is that of the shim.
    pub mounts: Option<PathBuf>,
    /// The pod has users of its own, which are these on the host. It has IPC of its own then.
    pub users: Option<Mappings>,
}

/// Why a shim can't serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A step before serving that can't fail in a sane process.
    #[error("{step}")]
    Setup {
        /// What was tried.
        step: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The pod's namespaces can't be made.
    #[error("make the pod's namespaces")]
    Namespaces {
        /// Why.
        #[source]
        source: sys::Error,
    },
    /// The host name can't be set.
    #[error("set the host name {hostname:?}")]
    Hostname {
        /// The name.
        hostname: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A sysctl can't be set.
    #[error("set the sysctl {name}={value}")]
    Sysctl {
        /// Its name.
        name: String,
        /// What it was to be.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The pod's users can't be made.
    #[error("make the pod's user namespace")]
    Users {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The shared pid namespace can't be made.
    #[error("make the pod's pid namespace")]
    PodInit {
        /// Why.
        #[source]
        source: sys::Error,
    },
    /// The wait for events failed, which ends everything.
    #[error("wait for events")]
    Wait(#[source] io::Error),
    /// Something of the pod was still there when a shutdown gave up.
    #[error("shut down: {0}")]
    Unclean(String),
}

impl Error {
    fn is_invalid_argument(&self) -> bool {
        match self {
            Error::Hostname { source, .. } | Error::Sysctl { source, .. } => {
                matches!(source.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound)
            }
            _ => false,
        }
    }
}

/// Runs a shim until it is shut down. The process must be single-threaded, and is not to be used for anything else.
///
/// A client that has connected already is told why, when the pod can't be made.
pub fn run(options: Options) -> Result<(), Error> {
    let setup = |step| move |source: io::Error| Error::Setup { step, source };
    sys::descriptor::close_inherited().map_err(setup("close inherited descriptors"))?;
    let mut server = server::Server::new().map_err(setup("set up the event loop"))?;
    let oom_score = pod::settle(&options);
    let made = pod::make(&options, server.null()).map(|made| server.adopt(made));
    server.protected(oom_score);
    drop(options);
    match made {
        Ok(()) => server.serve(),
        Err(error) => {
            server.refuse(&error);
            Err(error)
        }
    }
}

/// A line on standard error, for `shim.log`.
fn say(text: &str) {
    // There is nobody to tell that telling failed.
    let _ = rustix::io::write(sys::descriptor::stderr(), format!("{text}\n").as_bytes());
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
