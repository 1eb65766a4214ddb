//! The shim as a process: the built binary, real containers, real cgroups. Needs root and busybox-static.

mod attach;
mod client;
mod pod;

mod exec;
mod growth;
mod lifecycle;
mod logs;
mod monitor;
mod namespaces;
