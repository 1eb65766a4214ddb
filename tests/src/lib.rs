//! The harness of the end-to-end tests and the benchmark: real agents, a real registry, a client we did not write.
//!
//! Every agent started here has a root, a state directory, a socket, a bridge, subnets and a cgroup of its own,
//! so tests run side by side with each other and with whatever else the machine does. `with_agent` runs one test
//! and then asks the leak oracle whether anything was left behind.

mod agent;
mod binaries;
mod build;
mod cgroup;
mod cli;
mod client;
mod disk;
mod docker;
mod fault;
mod fixture;
mod oracle;
mod pod;
mod wait;

pub use agent::{Agent, Options, with_agent, with_agent_of};
pub use binaries::binary;
pub use build::{Build, Running, build};
pub use cgroup::hierarchies;
pub use cli::{Cli, Output};
pub use client::{Cri, connect};
pub use disk::Disk;
pub use docker::Docker;
pub use fault::{Entry, Fault, FaultyRegistry, Layer};
pub use fixture::{Fixture, fixture};
pub use oracle::{Scope, Snapshot, sweep};
pub use pod::{Ctr, Pod, container, unique};
pub use wait::{eventually, eventually_sync, free_port, http_get};
