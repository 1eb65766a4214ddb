//! Files that builds were sent or have fetched, named by the digest of their content.
//!
//! This is a cache: a file that is missing is sent again. Nothing is synced, so what an earlier boot of the machine left
//! is thrown away, and a power cut can leave no half of a file that counts.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Seek as _, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use sha2::{Digest as _, Sha256};

use super::{Error, now};
use crate::Digest;

/// The files, and a place for what is being made.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    temporary: PathBuf,
    known: Mutex<HashMap<Digest, Known>>,
    next: AtomicU64,
}

/// As many zeros are not written: they take no room as a hole.
const HOLE: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Known {
    size: u64,
    used: i64,
}

impl Files {
    /// Opens the files below `root`, the builder's folder. `boot` names the time since the machine was started.
    pub(super) fn open(root: &Path, boot: &str) -> Result<Files, Error> {
        let (folder, temporary, mark) = (root.join("files"), root.join("tmp"), root.join("boot"));
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |source: io::Error| Error::Io { call: "open", path, source: Arc::new(source) }
        };
        let stays = fs::read_to_string(&mark).is_ok_and(|text| text.trim() == boot);
        for path in [&folder, &temporary] {
            if (!stays || *path == temporary) && path.exists() {
                fs::remove_dir_all(path).map_err(failed(path))?;
            }
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path))?;
        }
        fs::write(&mark, boot).map_err(failed(&mark))?;
        let mut known = HashMap::new();
        for entry in fs::read_dir(&folder).map_err(failed(&folder))?.flatten() {
            let name = entry.file_name();
            let digest = name.to_str().and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
            if let (Some(digest), Ok(metadata)) = (digest, entry.metadata()) {
                let used = metadata.mtime().saturating_mul(1_000_000_000);
                known.insert(digest, Known { size: metadata.len(), used });
            }
        }
        Ok(Files { folder, temporary, known: Mutex::new(known), next: AtomicU64::new(0) })
    }

    /// Whether a file is here; then it is in use from now on.
    pub(super) fn touch(&self, digest: &Digest) -> bool {
        self.known().get_mut(digest).map(|known| known.used = now()).is_some()
    }

    /// Opens a file for reading.
    pub(super) fn reader(&self, digest: &Digest) -> Result<File, Error> {
        let path = self.folder.join(digest.hex());
        File::open(&path).map_err(Error::io("open", digest.as_str().as_bytes()))
    }

    /// Begins a file.
    pub(super) fn begin(self: &Arc<Self>) -> Result<Writer, Error> {
        let path = self.temporary_path();
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(Error::io("create", b"a file of the context"))?;
        Ok(Writer { files: self.clone(), path: Some(path), file, hash: Sha256::new(), size: 0 })
    }

    /// An empty directory that goes away with its guard.
    pub(super) fn directory(&self) -> Result<Temporary, Error> {
        let path = self.temporary_path();
        DirBuilder::new().mode(0o700).create(&path).map_err(Error::io("mkdir", b"a temporary directory"))?;
        Ok(Temporary(path))
    }

    /// The bytes of all files.
    pub(super) fn size(&self) -> u64 {
        self.known().values().map(|known| known.size).sum()
    }

    /// When a file was last used.
    pub(super) fn last_use(&self) -> i64 {
        self.known().values().map(|known| known.used).max().unwrap_or_default()
    }

    /// Deletes those used longest ago until at most `keep` bytes are left, and none used since `spare`. Says how many bytes
    /// went.
    pub(super) fn prune(&self, keep: u64, spare: i64) -> u64 {
        let mut known = self.known();
        let mut old: Vec<(i64, Digest, u64)> =
            known.iter().map(|(digest, known)| (known.used, digest.clone(), known.size)).collect();
        old.sort();
        let mut total: u64 = old.iter().map(|(_, _, size)| size).sum();
        let before = total;
        for (used, digest, size) in old {
            if total <= keep || used >= spare {
                break;
            }
            if fs::remove_file(self.folder.join(digest.hex())).is_ok() {
                known.remove(&digest);
                total -= size;
            }
        }
        before - total
    }

    fn temporary_path(&self) -> PathBuf {
        self.temporary.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Digest, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that is being written. Dropped before it is finished, it is deleted.
#[derive(Debug)]
pub(super) struct Writer {
    files: Arc<Files>,
    path: Option<PathBuf>,
    file: File,
    hash: Sha256,
    size: u64,
}

impl Writer {
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Gives the file its name.
    pub(super) fn finish(mut self) -> Result<Digest, Error> {
        // It may end with a hole.
        self.file.set_len(self.size).map_err(Error::io("truncate", b"a file of the context"))?;
        let digest = Digest::from_sha256(&std::mem::take(&mut self.hash).finalize().into());
        let mut known = self.files.known();
        let Some(path) = self.path.clone() else { return Ok(digest) };
        if !known.contains_key(&digest) {
            fs::rename(&path, self.files.folder.join(digest.hex()))
                .map_err(Error::io("rename", digest.as_str().as_bytes()))?;
            self.path = None;
        }
        known.insert(digest.clone(), Known { size: self.size, used: now() });
        drop(known);
        Ok(digest)
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = if bytes.len() >= HOLE && bytes.iter().all(|byte| *byte == 0) {
            self.file.seek_relative(bytes.len() as i64).map(|()| bytes.len())?
        } else {
            self.file.write(bytes)?
        };
        self.hash.update(&bytes[..length]);
        self.size += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// A directory that goes away with its guard.
#[derive(Debug)]
pub(super) struct Temporary(PathBuf);

impl Temporary {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "a temporary directory is left until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(files: &Arc<Files>, bytes: &[u8]) -> Digest {
        let mut writer = files.begin().unwrap();
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn files_of_another_boot_are_none() {
        let root = tempfile::tempdir().unwrap();
        let files = Arc::new(Files::open(root.path(), "one").unwrap());
        let digest = put(&files, b"x");
        assert_eq!(put(&files, b"x"), digest);
        drop(files.begin().unwrap());
        assert_eq!(fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
        assert!(Files::open(root.path(), "one").unwrap().touch(&digest));
        assert!(!Files::open(root.path(), "two").unwrap().touch(&digest));
    }

    #[test]
    fn pruning_takes_the_oldest_and_spares_what_is_in_use() {
        let root = tempfile::tempdir().unwrap();
        let files = Arc::new(Files::open(root.path(), "one").unwrap());
        let (old, young) = (put(&files, b"old"), put(&files, b"young"));
        let spare = now();
        let used = put(&files, b"used");
        assert_eq!(files.prune(u64::MAX, i64::MAX), 0);
        assert_eq!(files.prune(9, spare), 3);
        assert!(!files.touch(&old));
        assert_eq!(files.prune(0, spare), 5);
        assert!(files.touch(&used) && files.reader(&young).is_err());
    }
}
