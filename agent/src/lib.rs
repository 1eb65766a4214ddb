//! The node agent: policy, state and gRPC over the image store, the runtime and the network.
//!
//! A request comes in by `server`, is converted in `cri` or `services`, and done by the task of its pod in
//! `pods`. This crate starts processes only by executing the runtime; it forks no code of its own.
//! `cli` is the other side of the socket: it shares the crate, and nothing of the agent's.

mod build;
pub mod cli;
pub mod config;
pub mod context;
mod credential;
pub mod cri;
pub mod error;
pub mod events;
pub mod measurements;
pub mod network;
pub mod pods;
mod procfs;
pub mod room;
pub mod server;
pub mod services;
pub mod stats;
mod status;
pub mod streaming;
pub mod telemetry;
