//! Pulls over real sockets, from a registry that also misbehaves.

mod access;
mod bombs;
mod contents;
mod crash;
mod faults;
mod hosts;
mod images;
mod kills;
mod proxy;
mod push;
mod removal;
mod resume;
mod server;
mod sharing;
mod signatures;
