//! Holes: where a large file has nothing but zeros.
//!
//! Found by content and not by what the file system allocated, so that equal files give equal layers wherever they
//! lie. Real holes are skipped over, which is what makes looking affordable.

use std::os::fd::BorrowedFd;

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

/// The unit in which zeros are looked for.
const UNIT: u64 = 64 << 10;
/// Smaller savings are not worth an entry that not every tool can read.
const WORTH: u64 = 1 << 20;
/// More pieces than this are written as one file without holes.
const PIECES: usize = 1 << 16;

/// A piece with data in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The pieces of a file of `size` bytes that are not zeros; none when leaving the rest out is not worth it.
pub(super) fn extents(file: BorrowedFd<'_>, size: u64) -> rustix::io::Result<Option<Vec<Extent>>> {
    if size < WORTH {
        return Ok(None);
    }
    let mut extents: Vec<Extent> = Vec::new();
    let mut buffer = vec![0; UNIT as usize];
    let (mut at, mut data) = (0, 0);
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno),
        };
        at = at.max(start / UNIT * UNIT);
        let length = UNIT.min(size - at);
        let read = read_at(file, at, &mut buffer[..length as usize])?;
        if buffer[..read].iter().any(|byte| *byte != 0) {
            data += length;
            match extents.last_mut() {
                Some(last) if last.offset + last.length == at => last.length += length,
                _ => extents.push(Extent { offset: at, length }),
            }
            if extents.len() > PIECES {
                return Ok(None);
            }
        }
        at += length;
    }
    if extents.last().is_none_or(|last| last.offset + last.length < size) {
        // GNU tar takes the end of the last piece for the end of the file.
        extents.push(Extent { offset: size, length: 0 });
    }
    Ok((size - data >= WORTH).then_some(extents))
}

/// As much of the buffer as the file has.
pub(super) fn read_at(file: BorrowedFd<'_>, at: u64, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match rustix::io::pread(file, &mut buffer[length..], at + length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(length)
}
