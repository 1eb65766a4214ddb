//! SPDY/3.1, as kubelet and kubectl speak it after an HTTP upgrade: many byte streams over one connection.
//!
//! The specification is "SPDY Protocol - Draft 3.1". Only what a server of streams needs is here: the peer opens
//! streams, both sides write to them. What comes out of this module are plain byte streams; who opened them
//! and what for is left to others.

mod connection;
mod frame;
mod header;
mod window;

#[cfg(test)]
pub(super) mod tests;

pub(super) use connection::{Connection, Limits, Stream};
