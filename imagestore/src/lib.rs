//! The image store: from a registry's bytes to mounts.
//!
//! Content is named by its digest and admitted only once verified; layers are unpacked once and shared by
//! chain id; an image is a record that points at both. Nothing here knows containers, gRPC or who asks.

mod catalog;
mod content;
mod digest;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gc;
mod image;
mod layer;
mod manifest;
mod metadata;
mod pull;
mod reference;
mod registry;
mod signature;
mod snapshot;
mod store;

pub use catalog::Removed;
pub use digest::{ChainId, Digest};
pub use error::{Error, Kind};
pub use image::{Image, Layer};
pub use manifest::Platform;
pub use pull::{Phase, Progress, ProgressEvent};
pub use reference::Reference;
pub use registry::{Auth, CredentialHelper, Credentials, HelperAnswer, Patience};
pub use snapshot::{Directories, Error as SnapshotError, Snapshots, Usage};
pub use store::{Store, StoreOptions, StoreUsage};
