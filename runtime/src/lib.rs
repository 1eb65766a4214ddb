//! From an OCI specification to a running process: what `sampan-runtime` is made of.
//!
//! The crate knows no gRPC and no async runtime. Everything that clones a process
//! assumes that the caller is single-threaded; the agent uses only `mount`, `cgroup`,
//! `seccomp` and the shim's protocol, which don't.

mod beneath;
pub mod cgroup;
pub mod console;
pub mod container;
pub mod copyup;
pub mod criu;
pub mod delegate;
pub mod exec;
pub mod executable;
mod hook;
mod init;
pub mod mount;
mod mountinfo;
mod netlink;
pub mod oci;
pub mod quota;
pub mod seccomp;
pub mod shim;
mod sys;
pub mod user;
pub mod users;

pub use sys::{Error as SystemCallError, child::end_with_parent, memory::keep_little};
