//! Content: blobs named by their digest, as they came from a registry.
//!
//! A blob is under its name only when its bytes were hashed, found right and synced to the disk, so a power
//! cut never leaves half a blob that counts. A download that broke off stays in `ingest/` under the digest that it is
//! to have, for a day: who goes on with it hashes all of it again. Whatever else is there when the store opens belongs
//! to nobody and is deleted. Which blobs are still wanted is for the collection to decide.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sha2::{Digest as _, Sha256};

use crate::{Digest, folder};

mod error;
mod ingest;

pub(crate) use error::Error;
pub(crate) use ingest::Ingest;
use ingest::Resumed;

/// The blobs of a store.
#[derive(Debug)]
pub(crate) struct Content {
    blobs: PathBuf,
    ingest: PathBuf,
    /// Open for syncing what is renamed into it.
    directory: File,
    sizes: Mutex<HashMap<Digest, u64>>,
    /// The downloads under way whose file has the digest for its name.
    resuming: Mutex<HashSet<Digest>>,
    next: AtomicU64,
}

/// How long a download that broke off is kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);

impl Content {
    /// Opens `root/content`, made if missing, and deletes what an earlier process left half done.
    pub(crate) fn open(root: &Path) -> Result<Content, Error> {
        for folder in ["content", "content/blobs", "content/blobs/sha256", "content/ingest"] {
            let path = root.join(folder);
            folder::closed(&path).map_err(|source| Error::Open { path, source })?;
        }
        let blobs = root.join("content/blobs/sha256");
        let ingest = root.join("content/ingest");
        tidy(&ingest, |name, age| name.len() != 64 || age > KEPT)
            .map_err(|source| Error::Open { path: ingest.clone(), source })?;
        let (directory, sizes) = File::open(&blobs)
            .and_then(|directory| Ok((directory, list(&blobs)?)))
            .map_err(|source| Error::Open { path: blobs.clone(), source })?;
        let (sizes, resuming, next) = (Mutex::new(sizes), Mutex::default(), AtomicU64::new(0));
        Ok(Content { blobs, ingest, directory, sizes, resuming, next })
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
        Ok(Ingest {
            content: self.clone(),
            file,
            path,
            hash: Sha256::new(),
            size: 0,
            started: 0,
            resumed: None,
        })
    }

    /// Begins a blob of `size` bytes, or goes on with what an earlier download left of it.
    pub(crate) fn resume(self: &Arc<Self>, digest: &Digest, size: u64) -> Result<Ingest, Error> {
        // From two registries at once: the second goes its own way.
        if !self.resuming().insert(digest.clone()) {
            return self.ingest();
        }
        let path = self.ingest.join(digest.hex());
        let open = || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
                .open(&path)?;
            let mut found = file.metadata()?.len();
            if found > size {
                file.set_len(0)?;
                found = 0;
            }
            Ok((file, found))
        };
        let (file, found) = open().map_err(|source| {
            self.resuming().remove(digest);
            Error::Begin { source }
        })?;
        let resumed = Some(Resumed { digest: digest.clone(), found, keep: false });
        Ok(Ingest {
            content: self.clone(),
            file,
            path,
            hash: Sha256::new(),
            size: 0,
            started: found,
            resumed,
        })
    }

    /// Deletes what is left of a download that broke off, unless one goes on with it.
    pub(crate) fn discard(&self, digest: &Digest) {
        let resuming = self.resuming();
        if !resuming.contains(digest) {
            let _ = fs::remove_file(self.ingest.join(digest.hex()));
        }
    }

    /// Deletes the downloads that broke off longer ago than `age`, and that nobody goes on with.
    pub(crate) fn discard_older(&self, age: Duration) -> Result<(), Error> {
        let resuming = self.resuming();
        let kept = |name: &str| name.len() != 64 || resuming.iter().any(|digest| digest.hex() == name);
        tidy(&self.ingest, |name, past| !kept(name) && past >= age)
            .map_err(|source| Error::Open { path: self.ingest.clone(), source })
    }

    /// Deletes what is kept of downloads that nobody went on with for long.
    pub(crate) fn discard_stale(&self) -> Result<(), Error> {
        self.discard_older(KEPT)
    }

    fn resuming(&self) -> std::sync::MutexGuard<'_, HashSet<Digest>> {
        self.resuming.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Reads a blob to its end and says how many bytes it has, if they are what its name says.
    pub(crate) fn rehash(&self, digest: &Digest) -> Result<u64, Error> {
        let mut file = self.reader(digest)?;
        let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 256 << 10]);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    hash.update(&buffer[..length]);
                    size += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Read { digest: digest.clone(), source }),
            }
        }
        check(&hash, digest, size).map(|()| size)
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

/// Whether a computation over `size` bytes came to `expected`.
pub(crate) fn check(hash: &Sha256, expected: &Digest, size: u64) -> Result<(), Error> {
    let actual = Digest::from_sha256(&hash.clone().finalize().into());
    if actual != *expected {
        return Err(Error::Mismatch { expected: expected.clone(), actual, size });
    }
    Ok(())
}

/// Deletes the files of which `unwanted` says so, by name and age.
fn tidy(directory: &Path, unwanted: impl Fn(&str, Duration) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let tidied = entry.metadata().and_then(|metadata| metadata.modified()).and_then(|modified| {
            let age = modified.elapsed().unwrap_or_default();
            let gone = unwanted(&entry.file_name().to_string_lossy(), age);
            if gone { fs::remove_file(entry.path()) } else { Ok(()) }
        });
        match tidied {
            // Whoever was writing it has committed or dropped it since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
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
    use crate::Kind;

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
    fn a_download_that_broke_off_is_gone_on_with_and_hashed_anew() {
        let (root, content) = store();
        let digest = Digest::of(b"hello world");
        let mut ingest = content.resume(&digest, 11).unwrap();
        ingest.write_all(b"hello ").unwrap();
        ingest.keep();
        // While it is under way nobody else goes on with it, and nobody deletes it.
        assert_eq!(content.resume(&digest, 11).unwrap().found(), 0);
        content.discard(&digest);
        content.discard_older(Duration::ZERO).unwrap();
        drop(ingest);
        drop(content);
        let content = Arc::new(Content::open(root.path()).unwrap());
        let mut ingest = content.resume(&digest, 11).unwrap();
        assert_eq!(ingest.found(), 6);
        assert_eq!(ingest.replay().unwrap().unwrap(), &b"hello "[..]);
        assert_eq!(ingest.replay().unwrap(), None);
        ingest.write_all(b"world").unwrap();
        ingest.commit(&digest, 11).unwrap();
        assert_eq!(content.read(&digest, 100).unwrap(), b"hello world");
        assert_eq!(leftovers(root.path()), 0);
    }

    #[test]
    fn what_is_kept_of_downloads_is_bounded() {
        let (root, content) = store();
        let digest = Digest::of(b"hello world");
        let begin = |keep: bool, size| {
            let mut ingest = content.resume(&digest, size).unwrap();
            while ingest.replay().unwrap().is_some() {}
            ingest.write_all(b"hello ").unwrap();
            if keep {
                ingest.keep();
            }
            ingest.found()
        };
        begin(false, 11);
        assert_eq!(leftovers(root.path()), 0);
        begin(true, 11);
        // More than the blob has cannot be of it.
        assert_eq!(begin(true, 5), 0);
        content.discard_older(KEPT).unwrap();
        assert_eq!(leftovers(root.path()), 1);
        let old = std::time::SystemTime::now() - KEPT - Duration::from_secs(5);
        let file = File::options().write(true).open(root.path().join("content/ingest").join(digest.hex()));
        file.unwrap().set_modified(old).unwrap();
        Content::open(root.path()).unwrap();
        assert_eq!(leftovers(root.path()), 0);
        begin(true, 11);
        content.discard(&digest);
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
        let (root, content) = store();
        drop(content);
        // As an earlier version, or somebody with another umask, may have made them.
        for path in ["content", "content/blobs", "content/blobs/sha256"] {
            fs::set_permissions(root.path().join(path), fs::Permissions::from_mode(0o777)).unwrap();
        }
        Content::open(root.path()).unwrap();
        for path in ["content", "content/ingest", "content/blobs", "content/blobs/sha256"] {
            let mode = fs::metadata(root.path().join(path)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{path}");
        }
    }
}
