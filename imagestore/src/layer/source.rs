//! The layer's bytes, hashed on their way.
//!
//! Every byte that the reader gives is hashed exactly once and in order, whether or not anyone looks at it.
//! The buffer is always filled to the brim, so a 512-byte block never straddles two of them.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use super::Error;
use crate::Digest;

/// The unit in which a tar counts.
pub(super) const BLOCK: usize = 512;

/// Measured: larger ones fall out of the processor's cache between hashing and writing.
const BUFFER: usize = 128 * 1024;

pub(super) struct Source<R> {
    inner: R,
    hasher: Sha256,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    offset: u64,
}

impl<R: Read> Source<R> {
    pub(super) fn new(inner: R) -> Source<R> {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Source { inner, hasher: Sha256::new(), buffer, start: 0, end: 0, offset: 0 }
    }

    /// How many bytes were handed out.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next block, or none where the stream ends between two.
    pub(super) fn block(&mut self) -> Result<Option<&[u8; BLOCK]>, Error> {
        if self.start == self.end {
            self.fill()?;
        }
        match self.buffer[self.start..self.end].first_chunk::<BLOCK>() {
            Some(block) => {
                self.start += BLOCK;
                self.offset += BLOCK as u64;
                Ok(Some(block))
            }
            None if self.start == self.end => Ok(None),
            None => Err(self.truncated("a header")),
        }
    }

    /// At least one and at most `limit` (which is not 0) of the next bytes.
    pub(super) fn data(&mut self, limit: u64) -> Result<&[u8], Error> {
        if self.start == self.end {
            self.fill()?;
        }
        let buffered = self.end - self.start;
        if buffered == 0 {
            return Err(self.truncated("an entry's data"));
        }
        let length = usize::try_from(limit).unwrap_or(usize::MAX).min(buffered);
        let from = self.start;
        self.start += length;
        self.offset += length as u64;
        Ok(&self.buffer[from..from + length])
    }

    /// Reads past `length` bytes.
    pub(super) fn skip(&mut self, mut length: u64) -> Result<(), Error> {
        while length > 0 {
            length -= self.data(length)?.len() as u64;
        }
        Ok(())
    }

    /// Reads what follows the archive and gives the digest of the whole stream.
    pub(super) fn finish(mut self) -> Result<Digest, Error> {
        loop {
            self.offset += (self.end - self.start) as u64;
            self.fill()?;
            if self.end == 0 {
                return Ok(Digest::from_sha256(&self.hasher.finalize().into()));
            }
        }
    }

    fn truncated(&self, inside: &'static str) -> Error {
        Error::Truncated { offset: self.offset + (self.end - self.start) as u64, inside }
    }

    fn fill(&mut self) -> Result<(), Error> {
        (self.start, self.end) = (0, 0);
        while self.end < self.buffer.len() {
            match self.inner.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Read { offset: self.offset + self.end as u64, source }),
            }
        }
        self.hasher.update(&self.buffer[..self.end]);
        Ok(())
    }
}
