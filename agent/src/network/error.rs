//! What can go wrong with the pod network, and what kind of failure it is.

use std::io;

use ipnet::IpNet;

use super::port::PortMapping;
use super::{cni, namespace, netlink, sysctl};

/// The kind of a failure, in the vocabulary that callers are answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request can never be right.
    InvalidArgument,
    /// Somebody else has what was asked for.
    AlreadyExists,
    /// The host is not in a state in which this can be done.
    FailedPrecondition,
    /// Nothing is left to give.
    ResourceExhausted,
    /// The kernel, or a plugin, did not answer in time.
    DeadlineExceeded,
    /// It may work later.
    Unavailable,
    /// Anything else.
    Internal,
}

/// A failure of the pod network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name cannot be that of a bridge.
    #[error("bridge name {name:?}: {reason}")]
    InvalidName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A subnet that pods cannot be given addresses of.
    #[error("subnet {subnet}: {reason}")]
    InvalidSubnet {
        /// The subnet.
        subnet: IpNet,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An MTU that no packet fits.
    #[error("mtu {mtu} is out of range")]
    InvalidMtu {
        /// The MTU.
        mtu: u32,
    },
    /// The subnet is in use elsewhere on this host.
    #[error("subnet {subnet} overlaps {existing} of interface {interface}")]
    SubnetInUse {
        /// Our subnet.
        subnet: IpNet,
        /// The address or route that it overlaps.
        existing: IpNet,
        /// Where that is.
        interface: String,
    },
    /// An interface of the bridge's name exists and is none.
    #[error("interface {name} exists and is not a bridge")]
    NotABridge {
        /// The name.
        name: String,
    },
    /// The pod is attached already.
    #[error("pod {pod_id} is attached to the network already")]
    AlreadyAttached {
        /// The pod.
        pod_id: String,
    },
    /// Every address of a subnet is in use.
    #[error("every address of {subnet} is in use")]
    AddressesExhausted {
        /// The subnet.
        subnet: IpNet,
    },
    /// A port mapping that can never work.
    #[error("publish port {port}: {reason}")]
    InvalidPort {
        /// The port.
        port: PortMapping,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Another pod publishes the port.
    #[error("port {port} is in use by pod {pod_id}")]
    PortInUse {
        /// The port.
        port: PortMapping,
        /// The pod that has it.
        pod_id: String,
    },
    /// A process of the host has the port, or the address is not the host's.
    #[error("publish port {port}")]
    PortBusy {
        /// The port.
        port: PortMapping,
        /// What binding to it said.
        #[source]
        source: io::Error,
    },
    /// A request to the kernel failed.
    #[error("{what}")]
    Netlink {
        /// The object of the request.
        what: String,
        /// The failure.
        #[source]
        source: netlink::Error,
    },
    /// A kernel parameter could not be set.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    /// The pod's network namespace could not be entered.
    #[error("enter the network namespace of the pod")]
    Namespace(#[from] namespace::Error),
    /// The pod's network is that of CNI plugins, and there it went wrong.
    #[error(transparent)]
    Cni(#[from] cni::Error),
    /// Undoing a failed operation failed too.
    #[error("{failure} (and undoing it failed: {undo})")]
    Undo {
        /// Why the operation failed.
        failure: Box<Error>,
        /// Why it could not be undone.
        #[source]
        undo: Box<Error>,
    },
    /// Several steps of a removal failed.
    #[error("{}", chains(errors))]
    Several {
        /// What failed, in order.
        errors: Vec<Error>,
    },
}

impl Error {
    /// The kind of this failure.
    pub fn kind(&self) -> Kind {
        match self {
            Error::InvalidName { .. }
            | Error::InvalidSubnet { .. }
            | Error::InvalidMtu { .. }
            | Error::InvalidPort { .. } => Kind::InvalidArgument,
            Error::AlreadyAttached { .. } | Error::PortInUse { .. } => Kind::AlreadyExists,
            Error::PortBusy { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => Kind::AlreadyExists,
                io::ErrorKind::AddrNotAvailable => Kind::InvalidArgument,
                _ => Kind::Internal,
            },
            Error::SubnetInUse { .. } | Error::NotABridge { .. } => Kind::FailedPrecondition,
            Error::AddressesExhausted { .. } => Kind::ResourceExhausted,
            Error::Netlink { source, .. } => match source {
                netlink::Error::TimedOut { .. } => Kind::DeadlineExceeded,
                _ => Kind::Internal,
            },
            Error::Sysctl(_) | Error::Namespace(_) => Kind::Internal,
            Error::Cni(error) => error.kind(),
            Error::Undo { failure, .. } => failure.kind(),
            Error::Several { errors } => errors.first().map_or(Kind::Internal, Error::kind),
        }
    }

    /// One error of several, or none.
    pub(super) fn several(mut errors: Vec<Error>) -> Result<(), Error> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several { errors }),
        }
    }
}

/// Names what a request was about.
pub(super) fn about(what: impl Into<String>) -> impl FnOnce(netlink::Error) -> Error {
    |source| Error::Netlink { what: what.into(), source }
}

/// Every error with its causes.
fn chains(errors: &[Error]) -> String {
    let chain = |error: &Error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(next) = cause {
            text.push_str(": ");
            text.push_str(&next.to_string());
            cause = next.source();
        }
        text
    };
    errors.iter().map(chain).collect::<Vec<_>>().join("; ")
}
