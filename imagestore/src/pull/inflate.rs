//! Inflating: a layer's blob into its tar, a step ahead of whoever unpacks it.
//!
//! What a blob is compressed with is seen from its first bytes, because registries' media types are not always
//! right and the diff id decides in the end. Memory is bounded whatever the blob claims, and an image whose blobs
//! swell beyond reason is given up.

use std::{
    io::{self, BufRead, Cursor, Read},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread,
};

use flate2::bufread::MultiGzDecoder;

use super::window::{Frames, SKIPPED, Windows};
use crate::{Layer, swell};

/// What passes between the two threads at a time, and how many of these there are.
const BLOCK: usize = 256 << 10;
const AHEAD: usize = 4;
/// Whatever an image says of its size: none that is meant to be run comes near.
const SWELL_MOST: u64 = 256 << 30;

/// How much the layers of an image may still swell to, all together, and the memory that it may take.
#[derive(Debug)]
pub(crate) struct Allowance {
    /// How much there is of what swells.
    compressed: AtomicU64,
    swollen: AtomicU64,
    windows: Windows,
}

impl Allowance {
    /// For the layers of an image.
    pub(crate) fn new(layers: &[Layer]) -> Allowance {
        Allowance::of(layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size)))
    }

    /// For as many bytes as `compressed`.
    pub(crate) fn of(compressed: u64) -> Allowance {
        Allowance { compressed: compressed.into(), swollen: AtomicU64::new(0), windows: Windows::default() }
    }

    /// How much of what swells there is so far.
    pub(crate) fn compressed(&self) -> u64 {
        self.compressed.load(Ordering::Relaxed)
    }

    /// More that may swell has come.
    fn add(&self, bytes: u64) {
        self.compressed.fetch_add(bytes, Ordering::Relaxed);
    }

    fn take(&self, bytes: u64) -> io::Result<()> {
        let compressed = self.compressed.load(Ordering::Relaxed);
        let most = swell::bound(compressed).min(SWELL_MOST);
        if self.swollen.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > most {
            let text = format!("{compressed} bytes swell to more than {most}");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        Ok(())
    }
}

/// What is inside of something whose end is not in sight: the more of it has come, the more it may swell to.
pub(crate) fn inflated<'a, R: BufRead>(
    blob: &'a mut Counted<'_, R>,
    allowance: &'a Allowance,
) -> io::Result<impl Read + 'a> {
    Ok(Measured { inner: decoder(blob, allowance)?, allowance })
}

/// A reader that adds what is read to an allowance.
pub(crate) struct Counted<'a, R> {
    pub(crate) inner: R,
    pub(crate) allowance: &'a Allowance,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).inspect(|&read| self.allowance.add(read as u64))
    }
}

impl<R: BufRead> BufRead for Counted<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, length: usize) {
        self.allowance.add(length as u64);
        self.inner.consume(length);
    }
}

/// A reader that takes what is read from an allowance.
struct Measured<'a, R> {
    inner: R,
    allowance: &'a Allowance,
}

impl<R: Read> Read for Measured<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.allowance.take(read as u64).map(|()| read)
    }
}

/// Runs `consume` on the uncompressed bytes of `blob`, as many as there may be. The blob is inflated on a thread of
/// its own, and is given back with what `consume` returned; it need not have been read to its end.
pub(super) fn inflate<R: BufRead + Send, T>(
    blob: &mut R,
    allowance: &Allowance,
    consume: impl FnOnce(Blocks) -> T,
) -> io::Result<T> {
    let (full, filled) = sync_channel(AHEAD - 2);
    let (empty, emptied) = channel();
    thread::scope(|scope| {
        let producer = thread::Builder::new().name("inflate".to_owned());
        producer.spawn_scoped(scope, move || produce(blob, allowance, &full, &emptied))?;
        Ok(consume(Blocks { filled, empty, block: Vec::new(), at: 0 }))
    })
}

type Block = io::Result<Vec<u8>>;

/// Sends blocks until the blob ends, fails, or nobody wants more.
fn produce<R: BufRead>(
    blob: &mut R,
    allowance: &Allowance,
    full: &SyncSender<Block>,
    emptied: &Receiver<Vec<u8>>,
) {
    let mut decoder = match decoder(blob, allowance) {
        Ok(decoder) => decoder,
        Err(error) => return drop(full.send(Err(error))),
    };
    loop {
        let mut block = emptied.try_recv().unwrap_or_else(|_| vec![0; BLOCK]);
        block.resize(BLOCK, 0);
        let (length, end) = fill(&mut decoder, &mut block);
        block.truncate(length);
        if let Err(error) = allowance.take(length as u64) {
            return drop(full.send(Err(error)));
        }
        if length > 0 && full.send(Ok(block)).is_err() {
            return;
        }
        match end {
            None => {}
            Some(Ok(())) => return,
            Some(Err(error)) => return drop(full.send(Err(error))),
        }
    }
}

/// Fills the block as far as it goes, and says how it ended if it did.
fn fill(decoder: &mut impl Read, block: &mut [u8]) -> (usize, Option<io::Result<()>>) {
    let mut length = 0;
    while length < block.len() {
        match decoder.read(&mut block[length..]) {
            Ok(0) => return (length, Some(Ok(()))),
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (length, Some(Err(error))),
        }
    }
    (length, None)
}

/// The uncompressed bytes, on the consumer's side.
pub(super) struct Blocks {
    filled: Receiver<Block>,
    empty: Sender<Vec<u8>>,
    block: Vec<u8>,
    at: usize,
}

impl Read for Blocks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() {
            let Ok(next) = self.filled.recv() else { return Ok(0) };
            let spent = std::mem::replace(&mut self.block, next?);
            self.at = 0;
            if spent.capacity() > 0 {
                let _ = self.empty.send(spent);
            }
        }
        let length = buffer.len().min(self.block.len() - self.at);
        buffer[..length].copy_from_slice(&self.block[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

/// A reader of what is inside, by the first bytes.
pub(crate) fn decoder<'a, R: BufRead>(
    blob: &'a mut R,
    allowance: &'a Allowance,
) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(4);
    blob.by_ref().take(4).read_to_end(&mut magic)?;
    let kind = magic.clone();
    let peeked = Cursor::new(magic).chain(blob);
    Ok(match kind[..] {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(peeked)),
        // A frame, or a frame to be skipped, which tools put in front.
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(Frames::new(peeked, &allowance.windows)),
        [a, b, c, d] if u32::from_le_bytes([a, b, c, d]) & !0xf == SKIPPED => {
            Box::new(Frames::new(peeked, &allowance.windows))
        }
        _ => Box::new(peeked),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    fn read(mut blob: &[u8]) -> io::Result<Vec<u8>> {
        let allowance = Allowance::of(blob.len() as u64);
        inflate(&mut blob, &allowance, |mut blocks| {
            let mut bytes = Vec::new();
            blocks.read_to_end(&mut bytes).map(|_| bytes)
        })?
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn noise(length: usize) -> Vec<u8> {
        (0..length as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect()
    }

    #[test]
    fn every_compression_gives_the_same_bytes() {
        let bytes = noise(3 * BLOCK + 17);
        assert_eq!(read(&bytes).unwrap(), bytes);
        assert_eq!(read(&gzip(&bytes)).unwrap(), bytes);
        assert_eq!(read(&zstd::encode_all(&bytes[..], 1).unwrap()).unwrap(), bytes);
        assert_eq!(read(b"").unwrap(), b"");
        assert_eq!(read(b"ab").unwrap(), b"ab");
    }

    #[test]
    fn streams_of_several_members_are_read_to_the_end() {
        let two = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(read(&two).unwrap(), b"one two");
        let skipped =
            [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd::encode_all(&b"x"[..], 1).unwrap()];
        assert_eq!(read(&skipped.concat()).unwrap(), b"x");
    }

    #[test]
    fn a_stream_cut_short_is_an_error() {
        let bytes = noise(BLOCK * 2);
        for whole in [gzip(&bytes), zstd::encode_all(&bytes[..], 1).unwrap()] {
            for length in [5, 100, whole.len() / 2, whole.len() - 1] {
                assert!(read(&whole[..length]).is_err(), "{length} of {}", whole.len());
            }
        }
    }

    #[test]
    fn a_window_beyond_reason_is_refused() {
        // A frame whose header asks for a window of 2 GiB (exponent 21, RFC 8878, section 3.1.1.1.2).
        let error = read(&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0, 0, 0, 0, 0, 0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{error}");
    }

    /// So many MiB of nothing.
    fn zeros(size: usize) -> Vec<u8> {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        let zeros = vec![0; 1 << 20];
        (0..size).for_each(|_| encoder.write_all(&zeros).unwrap());
        encoder.finish().unwrap()
    }

    #[test]
    fn a_bomb_is_given_up() {
        let bomb = zeros(1100);
        let allowance = Allowance::of(bomb.len() as u64);
        let swell = |mut blob: &[u8]| {
            inflate(&mut blob, &allowance, |mut blocks| io::copy(&mut blocks, &mut io::sink()))
        };
        let error = swell(&bomb).unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{error}");
    }

    #[test]
    fn small_bombs_of_one_image_are_one_bomb() {
        let half = zeros(600);
        let allowance = Allowance::of(2 * half.len() as u64);
        let swell = |mut blob: &[u8]| {
            inflate(&mut blob, &allowance, |mut blocks| io::copy(&mut blocks, &mut io::sink()))
        };
        assert_eq!(swell(&half).unwrap().unwrap(), 600 << 20);
        assert_eq!(swell(&half).unwrap().unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_consumer_that_stops_early_stops_the_work() {
        let bytes = gzip(&noise(BLOCK * 20));
        let mut blob = &bytes[..];
        let first = inflate(&mut blob, &Allowance::of(bytes.len() as u64), |mut blocks| {
            let mut byte = [0];
            blocks.read_exact(&mut byte).map(|()| byte[0])
        });
        assert_eq!(first.unwrap().unwrap(), 0);
        assert!(!blob.is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), magic in 0..3) {
            let magic: &[u8] = [&[0x1f, 0x8b, 8][..], &[0x28, 0xb5, 0x2f, 0xfd], &[]][magic as usize];
            bytes.splice(..0, magic.iter().copied());
            let _ = read(&bytes);
        }
    }
}
