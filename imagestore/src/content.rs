//! Content: blobs named by their digest, as they came from a registry.
//!
//! A blob is under its name only when its bytes were hashed, found right and synced to the disk, so a power
//! cut never leaves half a blob that counts. Whatever is in `ingest/` when the store opens belongs to nobody
//! and is deleted. Which blobs are still wanted is for the collection to decide.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    num::NonZeroU64,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::fs::Advice;
use sha2::{Digest as _, Sha256};

use crate::{Digest, Kind};

/// What went wrong with a blob.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A directory could not be made or read.
    #[error("open content directory {path}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No new file could be made.
    #[error("begin a blob")]
    Begin {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The blob is complete but could not be put in its place.
    #[error("commit blob {digest}")]
    Commit {
        /// The blob.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The bytes are not those that the name promises.
    #[error("blob {expected}: its {size} bytes hash to {actual}")]
    Mismatch {
        /// The name.
        expected: Digest,
        /// What was found.
        actual: Digest,
        /// How many bytes there were.
        size: u64,
    },
    /// There are more or fewer bytes than announced.
    #[error("blob {digest}: {actual} bytes instead of {expected}")]
    Size {
        /// The blob.
        digest: Digest,
        /// As announced.
        expected: u64,
        /// As found.
        actual: u64,
    },
    /// The blob is not here.
    #[error("blob {digest} is not in the store")]
    Missing {
        /// The blob.
        digest: Digest,
    },
    /// The blob could not be read.
    #[error("read blob {digest}")]
    Read {
        /// The blob.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The blob could not be deleted.
    #[error("delete blob {digest}")]
    Delete {
        /// The blob.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Open { source, .. } | Error::Begin { source } | Error::Commit { source, .. } => {
                Kind::of_io(source)
            }
            Error::Read { source, .. } | Error::Delete { source, .. } => Kind::of_io(source),
            Error::Mismatch { .. } | Error::Size { .. } => Kind::DataLoss,
            Error::Missing { .. } => Kind::NotFound,
        }
    }
}

/// The blobs of a store.
#[derive(Debug)]
pub(crate) struct Content {
    blobs: PathBuf,
    ingest: PathBuf,
    /// Open for syncing what is renamed into it.
    directory: File,
    sizes: Mutex<HashMap<Digest, u64>>,
    next: AtomicU64,
}

impl Content {
    /// Opens `root/content`, made if missing, and deletes what an earlier process left half done.
    pub(crate) fn open(root: &Path) -> Result<Content, Error> {
        let blobs = root.join("content/blobs/sha256");
        let ingest = root.join("content/ingest");
        let open =
            |path: &Path| -> io::Result<()> { DirBuilder::new().recursive(true).mode(0o700).create(path) };
        for path in [&blobs, &ingest] {
            open(path).map_err(|source| Error::Open { path: path.clone(), source })?;
        }
        empty(&ingest).map_err(|source| Error::Open { path: ingest.clone(), source })?;
        let (directory, sizes) = File::open(&blobs)
            .and_then(|directory| Ok((directory, list(&blobs)?)))
            .map_err(|source| Error::Open { path: blobs.clone(), source })?;
        Ok(Content { blobs, ingest, directory, sizes: Mutex::new(sizes), next: AtomicU64::new(0) })
    }

    /// The size of a blob that is here.
    pub(crate) fn size(&self, digest: &Digest) -> Option<u64> {
        self.sizes().get(digest).copied()
    }

    /// Every blob that is here.
    pub(crate) fn digests(&self) -> Vec<Digest> {
        self.sizes().keys().cloned().collect()
    }

    /// The bytes and number of all blobs.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let sizes = self.sizes();
        (sizes.values().sum(), sizes.len() as u64)
    }

    /// Begins a new blob.
    pub(crate) fn ingest(self: &Arc<Self>) -> Result<Ingest, Error> {
        let path = self.ingest.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| Error::Begin { source })?;
        Ok(Ingest { content: self.clone(), file, path, hash: Sha256::new(), size: 0, started: 0 })
    }

    /// Stores these bytes, which must be what `digest` names.
    pub(crate) fn put(self: &Arc<Self>, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        if self.size(digest) == Some(bytes.len() as u64) {
            return Ok(());
        }
        let mut ingest = self.ingest()?;
        ingest.write_all(bytes).map_err(|source| Error::Commit { digest: digest.clone(), source })?;
        ingest.commit(digest, bytes.len() as u64)
    }

    /// Opens a blob for reading.
    pub(crate) fn reader(&self, digest: &Digest) -> Result<File, Error> {
        File::open(self.path(digest)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing { digest: digest.clone() },
            _ => Error::Read { digest: digest.clone(), source },
        })
    }

    /// The whole of a small blob, hashed again on the way.
    pub(crate) fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.reader(digest)?
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(|source| Error::Read { digest: digest.clone(), source })?;
        check(&Sha256::new_with_prefix(&bytes), digest, bytes.len() as u64)?;
        Ok(bytes)
    }

    /// Deletes a blob; one that is not here is none to delete.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<(), Error> {
        self.sizes().remove(digest);
        match fs::remove_file(self.path(digest)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Delete { digest: digest.clone(), source })
            }
            _ => Ok(()),
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    fn sizes(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, u64>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A blob that is being written. Dropped before it is committed, it is deleted.
#[derive(Debug)]
pub(crate) struct Ingest {
    content: Arc<Content>,
    file: File,
    path: PathBuf,
    hash: Sha256,
    size: u64,
    /// How much of it the kernel was told to begin writing.
    started: u64,
}

/// How much is written before the kernel is told to begin with it.
const WRITE_BACK: u64 = 8 << 20;

impl Ingest {
    /// How much has been written.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The digest of what was written.
    pub(crate) fn digest(&self) -> Digest {
        Digest::from_sha256(&self.hash.clone().finalize().into())
    }

    /// Whether what was written is `digest`, `size` bytes long.
    pub(crate) fn verify(&self, digest: &Digest, size: u64) -> Result<(), Error> {
        if self.size != size {
            return Err(Error::Size { digest: digest.clone(), expected: size, actual: self.size });
        }
        check(&self.hash, digest, size)
    }

    /// Puts the blob under its name, if it is `digest` and `size` bytes long.
    pub(crate) fn commit(self, digest: &Digest, size: u64) -> Result<(), Error> {
        self.verify(digest, size)?;
        let content = &self.content;
        // The order is the point: the bytes are on the disk before the name is, and the name is before
        // anybody is told. A failed sync is not tried again: the kernel has dropped the pages by then.
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.path, content.path(digest)))
            .and_then(|()| content.directory.sync_all())
            .map_err(|source| Error::Commit { digest: digest.clone(), source })?;
        content.sizes().insert(digest.clone(), size);
        Ok(())
    }
}

impl Write for Ingest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        if self.size - self.started >= WRITE_BACK {
            // Starts the writing without waiting for it (Linux: mm/fadvise.c), so that the sync at the end of a
            // large blob finds little left to do. Pages on their way to the disk stay in memory.
            let length = NonZeroU64::new(self.size - self.started);
            let _ = rustix::fs::fadvise(&self.file, self.started, length, Advice::DontNeed);
            self.started = self.size;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        // After a commit there is nothing under this name any more.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a computation over `size` bytes came to `expected`.
pub(crate) fn check(hash: &Sha256, expected: &Digest, size: u64) -> Result<(), Error> {
    let actual = Digest::from_sha256(&hash.clone().finalize().into());
    if actual != *expected {
        return Err(Error::Mismatch { expected: expected.clone(), actual, size });
    }
    Ok(())
}

fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

fn list(blobs: &Path) -> io::Result<HashMap<Digest, u64>> {
    let mut sizes = HashMap::new();
    for entry in fs::read_dir(blobs)? {
        let entry = entry?;
        let name = entry.file_name();
        let digest = name.to_str().and_then(|hex| format!("sha256:{hex}").parse().ok());
        let metadata = entry.metadata()?;
        match digest {
            Some(digest) if metadata.is_file() => sizes.insert(digest, metadata.len()),
            // Not ours: left alone, and never offered.
            _ => None,
        };
    }
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Arc<Content>) {
        let root = tempfile::tempdir().unwrap();
        let content = Arc::new(Content::open(root.path()).unwrap());
        (root, content)
    }

    fn leftovers(root: &Path) -> usize {
        fs::read_dir(root.join("content/ingest")).unwrap().count()
    }

    #[test]
    fn a_committed_blob_reads_back_and_outlives_the_process() {
        let (root, content) = store();
        let digest = Digest::of(b"hello");
        content.put(&digest, b"hello").unwrap();
        assert_eq!(content.read(&digest, 100).unwrap(), b"hello");
        drop(content);
        let content = Content::open(root.path()).unwrap();
        assert_eq!(content.size(&digest), Some(5));
        assert_eq!(leftovers(root.path()), 0);
    }

    #[test]
    fn commit_rejects_wrong_digest_and_wrong_size() {
        let (root, content) = store();
        let wrong = content.put(&Digest::of(b"other"), b"hello").unwrap_err();
        assert_eq!(wrong.kind(), Kind::DataLoss);
        let mut ingest = content.ingest().unwrap();
        ingest.write_all(b"hell").unwrap();
        let short = ingest.commit(&Digest::of(b"hello"), 5).unwrap_err();
        assert!(matches!(short, Error::Size { expected: 5, actual: 4, .. }));
        assert_eq!(content.digests(), []);
        assert_eq!(leftovers(root.path()), 0);
    }

    #[test]
    fn what_a_killed_process_left_is_deleted_at_open() {
        let (root, content) = store();
        let mut ingest = content.ingest().unwrap();
        ingest.write_all(b"half").unwrap();
        std::mem::forget(ingest);
        assert_eq!(leftovers(root.path()), 1);
        Content::open(root.path()).unwrap();
        assert_eq!(leftovers(root.path()), 0);
    }

    #[test]
    fn a_blob_that_rotted_is_not_read() {
        let (root, content) = store();
        let digest = Digest::of(b"hello");
        content.put(&digest, b"hello").unwrap();
        fs::write(root.path().join("content/blobs/sha256").join(digest.hex()), b"jello").unwrap();
        assert_eq!(content.read(&digest, 100).unwrap_err().kind(), Kind::DataLoss);
    }

    #[test]
    fn removing_twice_is_the_same_as_once() {
        let (_root, content) = store();
        let digest = Digest::of(b"hello");
        content.put(&digest, b"hello").unwrap();
        content.remove(&digest).unwrap();
        content.remove(&digest).unwrap();
        assert!(matches!(content.read(&digest, 100), Err(Error::Missing { .. })));
    }

    #[test]
    fn directories_are_closed_to_others() {
        use std::os::unix::fs::PermissionsExt;
        let (root, _content) = store();
        for path in ["content", "content/ingest", "content/blobs", "content/blobs/sha256"] {
            let mode = fs::metadata(root.path().join(path)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{path}");
        }
    }
}
