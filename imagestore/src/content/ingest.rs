//! A blob on its way in: hashed while it is written, and under its name only once it is found right and synced.

use std::{
    fs::{self, File},
    io::{self, Seek, Write},
    num::NonZeroU64,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use rustix::fs::Advice;
use sha2::{Digest as _, Sha256};

use super::{Content, Error, check};
use crate::Digest;

/// A blob that is being written. Dropped before it is committed, it is deleted.
#[derive(Debug)]
pub(crate) struct Ingest {
    pub(super) content: Arc<Content>,
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) hash: Sha256,
    pub(super) size: u64,
    /// How much of it the kernel was told to begin writing.
    pub(super) started: u64,
    pub(super) resumed: Option<Resumed>,
}

/// What makes it possible to go on with a download another time.
#[derive(Debug)]
pub(super) struct Resumed {
    pub(super) digest: Digest,
    /// How much was there at the beginning.
    pub(super) found: u64,
    /// Whether what is there is to stay if it is not committed.
    pub(super) keep: bool,
}

/// How much of what was there is read at a time.
const REPLAY: usize = 256 << 10;

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

    /// How much was here before: what is written continues from there.
    pub(crate) fn found(&self) -> u64 {
        self.resumed.as_ref().map_or(0, |resumed| resumed.found)
    }

    /// The next piece of what was here before, `None` when there is no more. Comes before any writing.
    pub(crate) fn replay(&mut self) -> io::Result<Option<Bytes>> {
        let left = self.found().saturating_sub(self.size);
        if left == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; REPLAY.min(usize::try_from(left).unwrap_or(REPLAY))];
        self.file.read_exact_at(&mut bytes, self.size)?;
        self.hash.update(&bytes);
        self.size += bytes.len() as u64;
        if self.size == self.found() {
            self.file.seek(io::SeekFrom::End(0))?;
        }
        Ok(Some(bytes.into()))
    }

    /// Has what was written stay for another attempt, if this one goes no further.
    pub(crate) fn keep(&mut self) {
        if let Some(resumed) = &mut self.resumed {
            resumed.keep = true;
        }
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
        let kept = self.resumed.as_ref().is_some_and(|resumed| resumed.keep && self.size > 0);
        let mut resuming = self.content.resuming();
        if !kept {
            // After a commit there is nothing under this name any more.
            let _ = fs::remove_file(&self.path);
        }
        if let Some(resumed) = &self.resumed {
            resuming.remove(&resumed.digest);
        }
    }
}
