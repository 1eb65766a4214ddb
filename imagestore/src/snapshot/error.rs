//! What can go wrong with snapshots.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{ChainId, layer};

/// Why a snapshot operation failed. Nothing half done is left to the caller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key is not fit to be a file name.
    #[error(
        "snapshot key {key:?} is not 1 to 128 letters, digits, '.', '_' or '-' with a letter or digit first"
    )]
    InvalidKey {
        /// The key.
        key: String,
    },
    /// The key is in use.
    #[error("snapshot {key} exists")]
    Exists {
        /// The key.
        key: String,
    },
    /// There is no active snapshot with this key.
    #[error("snapshot {key} does not exist")]
    NotFound {
        /// The key.
        key: String,
    },
    /// The chain is not committed.
    #[error("layer {chain} is not unpacked")]
    NoLayer {
        /// The chain.
        chain: ChainId,
    },
    /// Another layer or an active snapshot stands on the chain.
    #[error("layer {chain} is in use")]
    LayerInUse {
        /// The chain.
        chain: ChainId,
    },
    /// Something is still mounted in the snapshot.
    #[error("snapshot {key} is still mounted")]
    Mounted {
        /// The key.
        key: String,
    },
    /// The kernel stacks no more than 500.
    #[error("{layers} layers are more than overlayfs can stack")]
    TooManyLayers {
        /// How many there are.
        layers: usize,
    },
    /// The file system cannot limit what a directory takes.
    #[error(
        "the file system of {} keeps no project quotas, so no writable layer on it can be limited: it has to be xfs or \
         ext4 with the features project and quota, mounted with prjquota",
        path.display()
    )]
    NoQuota {
        /// Where the snapshots are.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{call} {}", path.display())]
    Io {
        /// The system call.
        call: &'static str,
        /// What it was for.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether there was no room: freeing some makes a retry sensible.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, Error::Io { source, .. } if layer::out_of_space(source))
    }

    pub(super) fn io<E: Into<io::Error>>(
        call: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Error {
        move |source| Error::Io { call, path: path.as_ref().to_path_buf(), source: source.into() }
    }
}
