//! Archives that ADD unpacks: tars, plain or compressed with gzip, bzip2, xz or zstd, told by their content.
//!
//! Whatever decompresses is this program's own code; nothing of an image is ever run for it. An archive is unpacked as a
//! layer is, beneath a descriptor, into an empty directory; and what it may swell to has a bound.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Chain, Cursor, Read},
    os::fd::BorrowedFd,
};

use flate2::bufread::MultiGzDecoder;

use crate::{
    build::{Error, error::shown},
    layer, swell,
};

const BLOCK: usize = 512;
/// What decoders may need, in KiB: as much as `xz -9` does.
const XZ_MEMORY: u32 = 128 << 10;
/// 128 MiB: what decoders are asked to support (RFC 8878, section 3.1.1.1.2, leaves it to them).
const ZSTD_WINDOW_LOG: u32 = 27;

/// The bytes of an archive.
pub(in crate::build) type Tar = Bounded<Chain<Cursor<Vec<u8>>, Box<dyn Read + Send>>>;

/// The tar in a file; none if the file is no archive.
pub(in crate::build) fn open(file: File, path: &[u8]) -> Result<Option<Tar>, Error> {
    let failed = |error: io::Error| Error::io("read", path)(error);
    let size = file.metadata().map_err(failed)?.len();
    let input = BufReader::with_capacity(128 << 10, file);
    let (mut tar, compressed) = decoder(input).map_err(failed)?;
    let mut first = Vec::with_capacity(BLOCK);
    match (&mut tar).take(BLOCK as u64).read_to_end(&mut first) {
        Ok(_) if is_header(&first) => {}
        // What looked compressed and is damaged is no archive; it is copied as it is.
        Ok(_) => return Ok(None),
        Err(_) if compressed => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    Ok(Some(Bounded { inner: Cursor::new(first).chain(tar), left: swell::bound(size) }))
}

pub(in crate::build) fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "the archive swells beyond reason")
}

/// The uncompressed bytes of a stream, and whether it was compressed.
pub(in crate::build) fn decoder(
    mut input: impl BufRead + Send + 'static,
) -> io::Result<(Box<dyn Read + Send>, bool)> {
    let magic = input.fill_buf()?;
    let begins = |bytes: &[u8]| magic.starts_with(bytes);
    if begins(&[0x1f, 0x8b]) {
        return Ok((Box::new(MultiGzDecoder::new(input)), true));
    }
    if begins(b"BZh") {
        return Ok((Box::new(bzip2::bufread::MultiBzDecoder::new(input)), true));
    }
    if begins(b"\xfd7zXZ\0") {
        return Ok((Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, XZ_MEMORY)), true));
    }
    if begins(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        return Ok((Box::new(decoder), true));
    }
    Ok((Box::new(input), false))
}

/// Unpacks into an empty directory.
pub(in crate::build) fn unpack(tar: Tar, root: BorrowedFd<'_>, path: &[u8]) -> Result<(), Error> {
    layer::unpack(tar, root).map(drop).map_err(|error| {
        let chain = crate::error::chain(&error);
        if error.is_out_of_space() {
            return Error::Limit(format!("unpack {:?}: {chain}", shown(path)));
        }
        Error::Invalid(format!("unpack {:?}: {chain}", shown(path)))
    })
}

/// Whether a block is a header: the sum that it carries is its own (POSIX.1-2017, pax, "ustar Interchange Format").
pub(in crate::build) fn is_header(block: &[u8]) -> bool {
    if block.len() < BLOCK || block[0] == 0 {
        return false;
    }
    let digits = block[148..156].iter().copied().skip_while(|byte| *byte == b' ');
    let digits: Vec<u8> = digits.take_while(|byte| (b'0'..=b'7').contains(byte)).collect();
    let told = std::str::from_utf8(&digits).ok().and_then(|text| u64::from_str_radix(text, 8).ok());
    let byte = |(at, byte): (usize, &u8)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) };
    told.is_some_and(|told| told == block[..BLOCK].iter().enumerate().map(byte).sum::<u64>())
}

/// A reader that gives up when there is more than there may be.
#[derive(Debug)]
pub(in crate::build) struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(length as u64).ok_or_else(too_large)?;
        Ok(length)
    }
}
