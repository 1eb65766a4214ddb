//! Headers of a tar: POSIX ustar, with a PAX header before it for what does not fit.
//!
//! Every field is a function of the entry: no user names, no process numbers, no time of writing.

use std::io::{self, Write};

const BLOCK: usize = 512;
/// Of the entries' types (POSIX.1-2017, pax, "ustar Interchange Format").
pub(crate) const FILE: u8 = b'0';
pub(crate) const HARD_LINK: u8 = b'1';
pub(crate) const SYMLINK: u8 = b'2';
pub(crate) const CHARACTER: u8 = b'3';
pub(crate) const BLOCK_DEVICE: u8 = b'4';
pub(crate) const DIRECTORY: u8 = b'5';
pub(crate) const FIFO: u8 = b'6';
const EXTENDED: u8 = b'x';

/// What a header says.
#[derive(Default)]
pub(crate) struct Header<'e> {
    pub(crate) kind: u8,
    pub(crate) path: &'e [u8],
    pub(crate) link: &'e [u8],
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    /// Bytes of data that follow.
    pub(crate) size: u64,
    /// Major and minor number.
    pub(crate) device: (u32, u32),
    /// Further records of the PAX header.
    pub(crate) records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Header<'_> {
    /// Writes the header, and before it whatever it needs to be understood.
    pub(crate) fn write(mut self, out: &mut impl Write) -> io::Result<()> {
        let mut record = |fits: bool, key: &[u8], value: &[u8]| {
            if !fits {
                self.records.push((key.to_vec(), value.to_vec()));
            }
        };
        record(self.path.len() <= 100, b"path", self.path);
        record(self.link.len() <= 100, b"linkpath", self.link);
        record(fits(self.uid.into(), 7), b"uid", self.uid.to_string().as_bytes());
        record(fits(self.gid.into(), 7), b"gid", self.gid.to_string().as_bytes());
        record(fits(self.size, 11), b"size", self.size.to_string().as_bytes());
        let mtime = u64::try_from(self.mtime).ok().filter(|mtime| fits(*mtime, 11));
        record(mtime.is_some(), b"mtime", self.mtime.to_string().as_bytes());
        if !self.records.is_empty() {
            self.records.sort();
            let data: Vec<u8> = self.records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
            let extended =
                Header { kind: EXTENDED, path: b"PaxHeaders", size: data.len() as u64, ..Header::default() };
            out.write_all(&extended.block(0))?;
            out.write_all(&data)?;
            pad(out, data.len() as u64)?;
        }
        out.write_all(&self.block(mtime.unwrap_or(0)))
    }

    fn block(&self, mtime: u64) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        text(&mut block[..100], self.path);
        octal(&mut block[100..108], self.mode.into());
        octal(&mut block[108..116], self.uid.into());
        octal(&mut block[116..124], self.gid.into());
        octal(&mut block[124..136], self.size);
        octal(&mut block[136..148], mtime);
        block[156] = self.kind;
        text(&mut block[157..257], self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut block[329..337], self.device.0.into());
        octal(&mut block[337..345], self.device.1.into());
        // The sum counts its own field as spaces.
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// Fills up to a whole block after `length` bytes of data.
pub(crate) fn pad(out: &mut impl Write, length: u64) -> io::Result<()> {
    let over = (length % BLOCK as u64) as usize;
    if over == 0 { Ok(()) } else { out.write_all(&[0; BLOCK][over..]) }
}

/// The two blocks that end an archive.
pub(crate) fn finish(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// Whether a number has that many octal digits.
fn fits(number: u64, digits: u32) -> bool {
    number < 1 << (3 * digits)
}

/// What does not fit is in the PAX header, and zero here.
fn octal(field: &mut [u8], number: u64) {
    let digits = field.len() - 1;
    let number = if fits(number, digits as u32) { number } else { 0 };
    field[..digits].copy_from_slice(format!("{number:0digits$o}").as_bytes());
}

/// As much as there is room for; the PAX header has the whole.
fn text(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}
