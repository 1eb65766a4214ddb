//! SPDY header blocks: names and values, compressed over the life of a connection with a dictionary both know.
//!
//! What a peer sends is never trusted: a block has a largest size when it is inflated, and each length in it
//! is compared with what is left.

use flate2::{Decompress, FlushDecompress, Status};

use super::frame::Error;

/// Most bytes of one inflated block; the clients' blocks have about a hundred.
pub(super) const BLOCK_LIMIT: usize = 16 << 10;

/// The words of the dictionary (section 2.6.10.1), each preceded there by its length.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
     accept-ranges age allow authorization cache-control connection content-base content-encoding \
     content-language content-length content-location content-md5 content-range content-type date etag expect \
     expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified \
     location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te \
     trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK \
     version HTTP/1.1 url public set-cookie keep-alive origin";
/// What follows the words.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
     203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
     403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
     Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
     chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
     text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary as zlib takes it.
pub(super) fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split_whitespace() {
        put_text(&mut bytes, &word.replace('_', " "));
    }
    bytes.extend_from_slice(TAIL.as_bytes());
    bytes
}

/// Names and values in the order they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct Headers(pub(super) Vec<(String, String)>);

impl Headers {
    /// The value of a name, whatever its case.
    pub(in super::super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn parse(block: &[u8]) -> Result<Headers, Error> {
        let mut rest = block;
        let count = take_length(&mut rest)?;
        let mut headers = Vec::new();
        // A count that lies runs out of bytes soon: each pair takes eight.
        for _ in 0..count {
            headers.push((take_text(&mut rest)?, take_text(&mut rest)?));
        }
        if rest.is_empty() { Ok(Headers(headers)) } else { Err(Error::Headers("bytes after the last value")) }
    }
}

fn take_length(rest: &mut &[u8]) -> Result<usize, Error> {
    let (length, after) = rest.split_first_chunk().ok_or(Error::Headers("a length is cut short"))?;
    *rest = after;
    usize::try_from(u32::from_be_bytes(*length)).map_err(|_| Error::Headers("a length is too large"))
}

fn take_text(rest: &mut &[u8]) -> Result<String, Error> {
    let length = take_length(rest)?;
    let (text, after) = rest.split_at_checked(length).ok_or(Error::Headers("a text is cut short"))?;
    *rest = after;
    Ok(String::from_utf8_lossy(text).into_owned())
}

fn put_length(block: &mut Vec<u8>, length: usize) {
    block.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

fn put_text(block: &mut Vec<u8>, text: &str) {
    put_length(block, text.len());
    block.extend_from_slice(text.as_bytes());
}

/// Inflates the peer's blocks, which are one zlib stream.
#[derive(Debug)]
pub(super) struct Inflater {
    zlib: Decompress,
    output: Box<[u8]>,
}

impl Inflater {
    pub(super) fn new() -> Inflater {
        Inflater { zlib: Decompress::new(true), output: vec![0; BLOCK_LIMIT].into() }
    }

    /// Inflates and parses one block.
    pub(super) fn headers(&mut self, block: &[u8]) -> Result<Headers, Error> {
        let length = self.inflate(block)?;
        Headers::parse(&self.output[..length])
    }

    fn inflate(&mut self, block: &[u8]) -> Result<usize, Error> {
        let (start_in, start_out) = (self.zlib.total_in(), self.zlib.total_out());
        let progress = |now: u64, start: u64| usize::try_from(now - start).unwrap_or(usize::MAX);
        loop {
            let read = progress(self.zlib.total_in(), start_in);
            let written = progress(self.zlib.total_out(), start_out);
            if read == block.len() {
                return Ok(written);
            }
            if written == self.output.len() {
                return Err(Error::Headers("a block of more than 16 KiB"));
            }
            let output = &mut self.output[written..];
            match self.zlib.decompress(&block[read..], output, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(Error::Headers("the compressed stream ends")),
                Ok(_) => {
                    let stuck = progress(self.zlib.total_in(), start_in) == read
                        && progress(self.zlib.total_out(), start_out) == written;
                    if stuck {
                        return Err(Error::Headers("not compressed as it should be"));
                    }
                }
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.zlib.set_dictionary(&dictionary());
                    set.map_err(|_| Error::Headers("another dictionary"))?;
                }
                Err(_) => return Err(Error::Headers("not compressed as it should be")),
            }
        }
    }
}

/// Makes our blocks, which are all empty: replies need no headers. So deflate's stored blocks do, and no connection
/// holds the quarter of a megabyte that a compressor takes.
#[derive(Debug, Default)]
pub(super) struct Replies {
    begun: bool,
}

impl Replies {
    /// Appends a block without headers.
    pub(super) fn block(&mut self, output: &mut Vec<u8>) {
        /// A window of 32 KiB, and that the dictionary is used which has this checksum (RFC 1950).
        const BEGIN: [u8; 6] = [0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];
        /// Stored, not the last, four bytes (RFC 1951): no pairs.
        const EMPTY: [u8; 9] = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0];
        /// Stored, not the last, no bytes: what zlib calls a sync flush. Go's inflater gives nothing out before it.
        const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];
        if !self.begun {
            output.extend_from_slice(&BEGIN);
        }
        self.begun = true;
        output.extend_from_slice(&EMPTY);
        output.extend_from_slice(&FLUSH);
    }
}

/// Deflates the blocks of a client, for tests.
#[cfg(test)]
#[derive(Debug)]
pub(super) struct Deflater(flate2::Compress);

#[cfg(test)]
impl Deflater {
    pub(super) fn new() -> Deflater {
        let mut zlib = flate2::Compress::new(flate2::Compression::fast(), true);
        zlib.set_dictionary(&dictionary()).unwrap();
        Deflater(zlib)
    }

    /// Appends a compressed block to `output`.
    pub(super) fn headers(&mut self, headers: &Headers, output: &mut Vec<u8>) {
        let mut block = Vec::new();
        put_length(&mut block, headers.0.len());
        for (name, value) in &headers.0 {
            put_text(&mut block, name);
            put_text(&mut block, value);
        }
        output.reserve(block.len() + 64);
        self.0.compress_vec(&block, output, flate2::FlushCompress::Sync).unwrap();
        assert!(output.len() < output.capacity(), "it may not be all");
    }
}
