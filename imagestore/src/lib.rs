//! The image store: from a registry's bytes to mounts.
//!
//! Content is named by its digest and admitted only once verified; layers are unpacked once and shared by
//! chain id; an image is a record that points at both. Nothing here knows containers, gRPC or who asks.

mod archive;
mod assemble;
pub mod build;
mod catalog;
mod check;
mod commit;
mod content;
mod diff;
mod digest;
mod error;
mod folder;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gc;
mod history;
mod image;
mod layer;
mod manifest;
mod metadata;
mod pull;
mod push;
mod reclaim;
mod reference;
mod registry;
mod signature;
mod snapshot;
mod store;
mod swell;
mod usage;
mod xattr;

pub use archive::Loaded;
pub use catalog::Removed;
pub use check::{CheckSummary, Fault};
pub use commit::{ChangeError, Commit, apply_changes};
pub use diff::{Change, ChangeKind, DiffOptions};
pub use digest::{ChainId, Digest};
pub use error::{Error, Kind};
pub use history::Step;
pub use image::{Image, Layer};
pub use manifest::Platform;
pub use pull::{Phase, Progress, ProgressEvent};
pub use push::{Pushed, UploadEvent, UploadPhase};
pub use reclaim::{Reclaimed, Unneeded, Watermarks};
pub use reference::Reference;
pub use registry::{Auth, CredentialHelper, Credentials, HelperAnswer, Patience};
pub use snapshot::{Access, Directories, Error as SnapshotError, ProjectQuota, Snapshots, Usage};
pub use store::{Held, Store, StoreOptions, StoreUsage};
pub use usage::ImageUsage;
