//! The OCI command line as its callers use it: the built binary, real containers, and the tools that drive it.
//!
//! Needs root, and for `callers` what `make setup` installs.

mod callers;
mod checkpoint;
mod exec;
mod fixture;
mod hooks;
mod lifecycle;
mod likeness;
mod limits;
mod namespaces;
mod process;
mod security;
