//! zstd's windows: how far back a frame may refer is how much memory its decoder needs, and the frame says how far.
//!
//! Frames are independent of each other, so each is decoded with as much as its own header asks for: never more than
//! the most, and together with the other decoders of an image never more than that either. Who asks for more than is
//! free waits, holding nothing.

use std::{
    io::{self, BufRead, Read},
    sync::{Condvar, Mutex, PoisonError},
};

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

/// 32 MiB: what the encoders of the other tools take at their strongest, and what four of 8 MiB need, which is their
/// usual one and the least that a decoder has to support (RFC 8878, section 3.1.1.1.2).
const MOST_LOG: u32 = 25;
const MOST: u64 = 1 << MOST_LOG;
/// Magic number, descriptor, window, dictionary, size: RFC 8878, section 3.1.1.1.
const HEADER: usize = 18;
/// Little-endian; the last four bits of the second are the user's.
const FRAME: u32 = 0xfd2f_b528;
pub(super) const SKIPPED: u32 = 0x184d_2a50;

/// What the decoders of one image hold together.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    held: Mutex<u64>,
    given_back: Condvar,
}

impl Windows {
    fn take(&self, window: u64) -> io::Result<Held<'_>> {
        if window > MOST {
            let text = format!("zstd: a frame needs a window of {window} bytes; {MOST} are taken");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let free = |held: &mut u64| *held + window > MOST;
        let mut held = self.given_back.wait_while(held, free).unwrap_or_else(PoisonError::into_inner);
        *held += window;
        Ok(Held { windows: self, window })
    }
}

/// A decoder's part of the memory.
struct Held<'a> {
    windows: &'a Windows,
    window: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.windows.held.lock().unwrap_or_else(PoisonError::into_inner) -= self.window;
        self.windows.given_back.notify_all();
    }
}

/// A decoder with the memory that it may use.
struct Working<'a> {
    decoder: Decoder<'static>,
    held: Held<'a>,
}

/// What the frames of a stream hold, one after the other.
pub(super) struct Frames<'a, R> {
    blob: Peek<R>,
    windows: &'a Windows,
    working: Option<Working<'a>>,
    within: bool,
}

impl<'a, R: BufRead> Frames<'a, R> {
    pub(super) fn new(blob: R, windows: &'a Windows) -> Frames<'a, R> {
        Frames { blob: Peek { head: Vec::new(), at: 0, rest: blob }, windows, working: None, within: false }
    }

    /// Gets ready for the next frame; false when there is none.
    fn begin(&mut self) -> io::Result<bool> {
        let header = self.blob.peek(HEADER)?;
        if header.is_empty() {
            return Ok(false);
        }
        // What is no header is for the decoder to refuse.
        let window = window(header).unwrap_or_default();
        match &mut self.working {
            Some(working) if working.held.window >= window => working.decoder.reinit()?,
            working => {
                // Two that hold something and wait for more would wait for each other.
                *working = None;
                let held = self.windows.take(window)?;
                let mut decoder = Decoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(MOST_LOG))?;
                *working = Some(Working { decoder, held });
            }
        }
        self.within = true;
        Ok(true)
    }
}

impl<R: BufRead> Read for Frames<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.within && !self.begin()? {
                return Ok(0);
            }
            let Some(working) = &mut self.working else { return Ok(0) };
            let input = self.blob.fill_buf()?;
            let end = input.is_empty();
            let (mut input, mut output) = (InBuffer::around(input), OutBuffer::around(&mut *buffer));
            let hint = working.decoder.run(&mut input, &mut output)?;
            let (read, written) = (input.pos(), output.pos());
            self.blob.consume(read);
            self.within = hint != 0;
            if written > 0 {
                return Ok(written);
            }
            if end && self.within {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "zstd: the frame is cut short"));
            }
        }
    }
}

/// How much memory a frame asks for.
fn window(header: &[u8]) -> Option<u64> {
    let magic = u32::from_le_bytes(header.get(..4)?.try_into().ok()?);
    if magic & !0xf == SKIPPED {
        return Some(0);
    }
    let descriptor = *header.get(4).filter(|_| magic == FRAME)?;
    if descriptor & 0x20 == 0 {
        let window = *header.get(5)?;
        let base = 1_u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // The whole of the frame is its window.
    let start = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
    let field = |length: usize| {
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(header.get(start..start + length)?);
        Some(u64::from_le_bytes(bytes))
    };
    match descriptor >> 6 {
        0 => field(1),
        1 => field(2).map(|size| size + 256),
        2 => field(4),
        _ => field(8),
    }
}

/// A reader whose next bytes can be looked at before they are read.
struct Peek<R> {
    head: Vec<u8>,
    at: usize,
    rest: R,
}

impl<R: BufRead> Peek<R> {
    /// So many of the next bytes, or all that there are.
    fn peek(&mut self, length: usize) -> io::Result<&[u8]> {
        self.head.drain(..self.at);
        self.at = 0;
        let missing = length.saturating_sub(self.head.len());
        self.rest.by_ref().take(missing as u64).read_to_end(&mut self.head)?;
        Ok(&self.head)
    }
}

impl<R: BufRead> Read for Peek<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        super::read_buffered(self, buffer)
    }
}

impl<R: BufRead> BufRead for Peek<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at < self.head.len() { Ok(&self.head[self.at..]) } else { self.rest.fill_buf() }
    }

    fn consume(&mut self, length: usize) {
        if self.at < self.head.len() { self.at += length } else { self.rest.consume(length) }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::mpsc, thread, time::Duration};

    use super::*;

    fn compressed(bytes: &[u8], window_log: u32, size: bool) -> Vec<u8> {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(window_log).unwrap();
        if size {
            encoder.set_pledged_src_size(Some(bytes.len() as u64)).unwrap();
            encoder.include_contentsize(true).unwrap();
        }
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(blob: &[u8], windows: &Windows) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        Frames::new(blob, windows).read_to_end(&mut bytes).map(|_| bytes)
    }

    #[test]
    fn a_header_says_how_much_memory_its_frame_needs() {
        for log in [10, 17, 20, 25, 27] {
            let blob = compressed(&vec![7; 3 << 20], log, false);
            assert_eq!(window(&blob), Some(1 << log));
        }
        for size in [1_usize, 255, 256, 70_000, 1 << 20] {
            assert_eq!(window(&compressed(&vec![7; size], 25, true)), Some(size as u64));
        }
        assert_eq!(window(&[0x50, 0x2a, 0x4d, 0x18, 9]), Some(0));
        assert_eq!(window(b"hello, world"), None);
        assert_eq!(window(&[0x28, 0xb5]), None);
    }

    #[test]
    fn frames_are_read_one_after_the_other_however_small() {
        let windows = Windows::default();
        let frames = [compressed(b"", 10, false), compressed(b"a", 20, true), compressed(b"b", 25, false)];
        assert_eq!(read(&frames.concat(), &windows).unwrap(), b"ab");
        assert_eq!(*windows.held.lock().unwrap(), 0);
        let cut = &frames.concat()[..frames.concat().len() - 1];
        assert_eq!(read(cut, &windows).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(read(&[&frames[1][..], b"and nonsense"].concat(), &windows).is_err());
    }

    #[test]
    fn a_window_beyond_the_most_is_refused_wherever_it_comes() {
        let windows = Windows::default();
        let large = compressed(&vec![7; 3 << 20], MOST_LOG + 1, false);
        assert_eq!(read(&large, &windows).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        let second = [compressed(b"a", 20, true), large].concat();
        assert_eq!(read(&second, &windows).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(*windows.held.lock().unwrap(), 0);
    }

    #[test]
    fn large_windows_wait_for_each_other_and_small_ones_do_not() {
        let windows = Windows::default();
        let bytes = vec![7; 3 << 20];
        let (large, small) = (compressed(&bytes, 24, false), compressed(&bytes, 20, false));
        let holding = windows.take((1 << 24) + 1).unwrap();
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            let (large, windows) = (&large, &windows);
            let waiting = scope.spawn(move || {
                let read = read(large, windows).unwrap().len();
                sender.send(()).unwrap();
                read
            });
            assert_eq!(read(&small, windows).unwrap().len(), bytes.len());
            assert!(receiver.recv_timeout(Duration::from_millis(200)).is_err(), "it did not wait");
            drop(holding);
            assert_eq!(waiting.join().unwrap(), bytes.len());
        });
    }
}
