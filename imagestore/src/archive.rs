//! Archives: images as one tar, for where no registry is.
//!
//! What is written is an OCI layout and a Docker archive at once, so that every tool that reads either reads it. Both
//! kinds are read, in any order of entries, compressed or not, in one pass: blobs go into the content store as they
//! come, and only then the documents say what they are. Nothing is believed about a blob but its own digest.

mod error;
mod load;
mod save;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use error::Error;
pub use load::Loaded;
pub(crate) use load::load;
pub(crate) use save::save;

/// Where blobs lie in an OCI layout.
const BLOBS: &str = "blobs/sha256/";
const LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";
/// Of the Docker archive.
const MANIFEST: &str = "manifest.json";
/// The annotations by which the index of a layout names images (containerd; OCI image specification, "Annotations").
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const OCI_NAME: &str = "org.opencontainers.image.ref.name";
