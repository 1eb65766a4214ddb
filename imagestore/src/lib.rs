//! The image store: from a registry's bytes to mounts.
//!
//! Content is named by its digest and admitted only once verified; layers are unpacked once and shared by
//! chain id; an image is a record that points at both. Nothing here knows containers, gRPC or who asks.

mod digest;
pub mod layer;
pub mod snapshot;

pub use digest::{ChainId, Digest};
pub use snapshot::Snapshots;
