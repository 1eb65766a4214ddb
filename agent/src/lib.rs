//! The Sampan node agent.

pub mod network;
