//! The streaming server: where the URLs lead that Exec, Attach and PortForward answer.

mod pump;
mod spdy;
