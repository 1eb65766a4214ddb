//! The Sampan node agent.

pub mod cli;
pub mod network;
