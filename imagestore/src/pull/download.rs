//! A download as a blocking reader: what comes from the registry is stored, hashed and handed on.
//!
//! The bytes pass from the network's task to a thread through a bounded channel, so a slow disk slows the
//! network down and memory stays small. Everything that is read is also in the ingest, in order and once; what an
//! earlier attempt left there comes first.

use std::io::{self, BufRead, Read, Write};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use crate::{
    Digest,
    content::{self, Ingest},
};

/// How many chunks may wait. A chunk is what one read from the socket gave: 8 to 400 KiB.
pub(super) const WAITING: usize = 8;

pub(super) struct Download<'a> {
    receiver: mpsc::Receiver<Bytes>,
    chunk: Bytes,
    ingest: Ingest,
    size: u64,
    /// Told how many bytes have come.
    report: &'a (dyn Fn(u64) + Sync),
}

impl<'a> Download<'a> {
    pub(super) fn new(
        receiver: mpsc::Receiver<Bytes>,
        ingest: Ingest,
        size: u64,
        report: &'a (dyn Fn(u64) + Sync),
    ) -> Download<'a> {
        Download { receiver, chunk: Bytes::new(), ingest, size, report }
    }

    /// Stores what has not been read yet.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        loop {
            match self.fill_buf()?.len() {
                0 => return Ok(()),
                length => self.consume(length),
            }
        }
    }

    /// Whether what was stored is the blob.
    pub(super) fn verify(&self, digest: &Digest) -> Result<(), content::Error> {
        self.ingest.verify(digest, self.size)
    }

    /// Commits the blob, if it is complete and the right one.
    pub(super) fn commit(self, digest: &Digest) -> Result<(), content::Error> {
        self.ingest.commit(digest, self.size)
    }
}

impl BufRead for Download<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunk.is_empty() && self.ingest.size() < self.size {
            if let Some(chunk) = self.ingest.replay()? {
                self.chunk = chunk;
                break;
            }
            match self.receiver.blocking_recv() {
                Some(chunk) => {
                    self.ingest.write_all(&chunk)?;
                    (self.report)(self.ingest.size());
                    self.chunk = chunk;
                }
                None => {
                    self.ingest.keep();
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "download broke off"));
                }
            }
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, length: usize) {
        self.chunk.advance(length);
    }
}

impl Read for Download<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        super::read_buffered(self, buffer)
    }
}
