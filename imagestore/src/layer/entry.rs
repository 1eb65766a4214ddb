//! Entries of a tar: headers, their extensions and data put together.
//!
//! What precedes an entry is decided here once: a PAX record counts before a GNU long name, and that before
//! the header's own field; the length of a header's own data never comes from the extension of another.
//! An archive that two common readers (GNU tar, Go's archive/tar) would cut at different bytes is refused.

use std::io::Read;

use super::{
    Error,
    error::Refusal,
    header::Header,
    name::Name,
    pax::{self, Records, Time},
    source::{BLOCK, Source},
    sparse::{self, Map},
};
use crate::Digest;

/// The most that an extended header or a long name may hold: as much as Go's reader takes.
const EXTENSION: u64 = 1 << 20;

/// How many headers a layer may have; the largest images in use stay below a tenth.
const ENTRIES: u64 = 10_000_000;

/// One entry without its data.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Name,
    pub(super) kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug)]
pub(super) enum Kind {
    File {
        size: u64,
        /// Where the data goes, when the file has holes.
        map: Option<Map>,
    },
    Directory,
    Symlink(Vec<u8>),
    HardLink(Name),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
    /// A socket or a volume label: nothing to lay out.
    Nothing,
}

/// Reads entries one after the other, and between them the data of the last one.
pub(super) struct Entries<R> {
    source: Source<R>,
    /// Of the current entry's data.
    remaining: u64,
    padding: u64,
    count: u64,
    global: Records,
}

/// Extensions gathered for the next entry.
#[derive(Default)]
struct Extensions {
    pax: Option<Records>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> Entries<R> {
    pub(super) fn new(tar: R) -> Entries<R> {
        Entries { source: Source::new(tar), remaining: 0, padding: 0, count: 0, global: Records::default() }
    }

    /// The next entry; none at the end of the archive, whether or not it is marked.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, Error> {
        let mut extensions = Extensions::default();
        loop {
            self.source.skip(self.remaining + self.padding)?;
            (self.remaining, self.padding) = (0, 0);
            let offset = self.source.offset();
            let malformed = |reason| Error::Malformed { offset, reason };
            let Some(block) = self.header()? else {
                return if extensions.is_empty() {
                    Ok(None)
                } else {
                    Err(malformed("extended header without an entry"))
                };
            };
            let header = Header::parse(&block).ok_or(malformed("checksum does not match"))?;
            self.count += 1;
            if self.count > ENTRIES {
                return Err(Error::TooManyEntries { limit: ENTRIES });
            }
            match header.kind() {
                b'x' if extensions.pax.is_some() => {
                    return Err(malformed("two extended headers for one entry"));
                }
                b'x' => {
                    let data = self.extension(header, offset)?;
                    extensions.pax = Some(pax::parse(&data).map_err(malformed)?);
                }
                b'g' => {
                    let data = self.extension(header, offset)?;
                    let records = pax::parse(&data).map_err(malformed)?;
                    if records.moves_entries() {
                        return Err(malformed("global header changes names or sizes"));
                    }
                    self.global.update(records);
                }
                b'L' => extensions.name = Some(self.long_name(header, offset)?),
                b'K' => extensions.link = Some(self.long_name(header, offset)?),
                _ => return self.entry(header, extensions, offset).map(Some),
            }
        }
    }

    /// More of the current entry's data; none when all was given.
    pub(super) fn data(&mut self, limit: u64) -> Result<Option<&[u8]>, Error> {
        let limit = limit.min(self.remaining);
        if limit == 0 {
            return Ok(None);
        }
        let data = self.source.data(limit)?;
        self.remaining -= data.len() as u64;
        Ok(Some(data))
    }

    /// Reads what is left and gives the digest of all.
    pub(super) fn finish(self) -> Result<Digest, Error> {
        self.source.finish()
    }

    /// The next header block; none at the end mark or the end of the stream.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let offset = self.source.offset();
        match self.source.block()? {
            None => Ok(None),
            Some(block) if block.iter().any(|b| *b != 0) => Ok(Some(*block)),
            Some(_) => match self.source.block()? {
                Some(block) if block.iter().any(|b| *b != 0) => {
                    Err(Error::Malformed { offset, reason: "a single block of zeros" })
                }
                _ => Ok(None),
            },
        }
    }

    /// The whole data of an extended header.
    fn extension(&mut self, header: Header<'_>, offset: u64) -> Result<Vec<u8>, Error> {
        let size = header.size().and_then(|size| u64::try_from(size).ok());
        let Some(size) = size.filter(|size| *size <= EXTENSION) else {
            return Err(Error::Malformed { offset, reason: "extended header is over 1 MiB" });
        };
        self.begin(size);
        let mut data = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        while let Some(part) = self.data(u64::MAX)? {
            data.extend_from_slice(part);
        }
        Ok(data)
    }

    /// GNU's way to write what has no room in a header; a NUL ends it.
    fn long_name(&mut self, header: Header<'_>, offset: u64) -> Result<Vec<u8>, Error> {
        let mut name = self.extension(header, offset)?;
        let length = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        name.truncate(length);
        Ok(name)
    }

    fn begin(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn entry(&mut self, header: Header<'_>, extensions: Extensions, offset: u64) -> Result<Entry, Error> {
        let Extensions { pax, name: long_name, link: long_link } = extensions;
        let mut pax = pax.unwrap_or_default();
        pax.inherit(&self.global);
        let sparse_name = sparse::name(&pax.sparse);
        let raw = sparse_name.or(pax.path.take()).or(long_name).unwrap_or_else(|| {
            let (prefix, name) = (header.prefix(), header.name());
            if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
        });
        let link = pax.link.take().or(long_link).unwrap_or_else(|| header.link().to_vec());
        let refuse = |refusal| Error::refused(&raw, refusal);
        let malformed = |reason| Error::Malformed { offset, reason };

        let size = match pax.size {
            Some(size) => size,
            None => {
                let size = header.size().ok_or(malformed("size is no number"))?;
                u64::try_from(size).map_err(|_| refuse(Refusal::Number))?
            }
        };
        if size > i64::MAX as u64 / 2 {
            return Err(refuse(Refusal::Number));
        }
        let mode = header.mode().ok_or(malformed("mode is no number"))?;
        let kind = match header.kind() {
            // No type stands for a socket; some writers leave it in the mode.
            b'0' | b'\0' if mode & 0o170_000 == 0o140_000 => Kind::Nothing,
            b'0' | b'\0' | b'7' if raw.ends_with(b"/") => {
                if size != 0 {
                    return Err(malformed("a directory's name with a file's data"));
                }
                Kind::Directory
            }
            b'0' | b'\0' | b'7' => self.file(size, &pax.sparse, &raw)?,
            b'S' => self.gnu_sparse(header, size, &raw)?,
            b'1' => Kind::HardLink(Name::new(&link)?),
            b'2' => Kind::Symlink(link),
            kind @ (b'3' | b'4') => {
                let (major, minor) = header.device().ok_or(malformed("device is no number"))?;
                let number = |n| u32::try_from(n).map_err(|_| refuse(Refusal::Number));
                let (major, minor) = (number(major)?, number(minor)?);
                if kind == b'3' { Kind::Character(major, minor) } else { Kind::Block(major, minor) }
            }
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'V' => Kind::Nothing,
            _ => return Err(refuse(Refusal::Type)),
        };
        // What is no file has no data, whatever its size says: so read all readers of layers.
        if matches!(kind, Kind::Nothing) {
            self.begin(size);
        }
        let owner = |given: Option<u64>, field: Option<i128>| match given {
            Some(id) => own(i128::from(id)).ok_or(refuse(Refusal::Owner)),
            None => own(field.ok_or(malformed("owner is no number"))?).ok_or(refuse(Refusal::Owner)),
        };
        let mtime = match pax.mtime {
            Some(time) => time,
            None => {
                let seconds = header.mtime().ok_or(malformed("time is no number"))?;
                let seconds = i64::try_from(seconds).map_err(|_| refuse(Refusal::Number))?;
                Time { seconds, nanoseconds: 0 }
            }
        };
        for (name, _) in &pax.attributes {
            check_attribute(name).map_err(refuse)?;
        }
        Ok(Entry {
            name: Name::new(&raw)?,
            kind,
            mode: (mode & 0o7777) as u32,
            uid: owner(pax.uid, header.uid())?,
            gid: owner(pax.gid, header.gid())?,
            mtime,
            attributes: pax.attributes,
        })
    }

    fn file(&mut self, stored: u64, records: &[(Vec<u8>, Vec<u8>)], raw: &[u8]) -> Result<Kind, Error> {
        self.begin(stored);
        if records.is_empty() {
            return Ok(Kind::File { size: stored, map: None });
        }
        let refused = || Error::refused(raw, Refusal::Sparse);
        let map = match sparse::from_records(records).ok_or_else(refused)? {
            sparse::Place::Records(map) => map,
            sparse::Place::Data { size } => {
                sparse::from_data(size, &mut || self.map_block())?.ok_or_else(refused)?
            }
        };
        self.sparse(map, raw)
    }

    fn gnu_sparse(&mut self, header: Header<'_>, stored: u64, raw: &[u8]) -> Result<Kind, Error> {
        let refused = || Error::refused(raw, Refusal::Sparse);
        let (mut map, mut more) = sparse::from_header(header.bytes()).ok_or_else(refused)?;
        while more {
            let offset = self.source.offset();
            let truncated = Error::Truncated { offset, inside: "a sparse map" };
            let block = self.source.block()?.ok_or(truncated)?;
            more = map.extend(block).ok_or_else(refused)?;
        }
        self.begin(stored);
        self.sparse(map, raw)
    }

    /// One block of a map that stands before the data it describes.
    fn map_block(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        if self.remaining < BLOCK as u64 {
            return Ok(None);
        }
        self.remaining -= BLOCK as u64;
        Ok(self.source.block()?.copied())
    }

    fn sparse(&self, map: Map, raw: &[u8]) -> Result<Kind, Error> {
        if map.is_consistent(self.remaining) {
            Ok(Kind::File { size: map.size, map: Some(map) })
        } else {
            Err(Error::refused(raw, Refusal::Sparse))
        }
    }
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.name.is_none() && self.link.is_none()
    }
}

/// -1 means "unchanged" to chown, so it is no owner.
fn own(id: i128) -> Option<u32> {
    u32::try_from(id).ok().filter(|id| *id != u32::MAX)
}

fn check_attribute(name: &[u8]) -> Result<(), Refusal> {
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return Err(Refusal::OverlayAttribute);
    }
    if name.is_empty() || name.len() > 255 || name.contains(&0) {
        return Err(Refusal::AttributeName);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::tests::archive::{Archive, Item};

    #[test]
    fn entries_are_limited() {
        let bytes = Archive::new().add(Item::file("a", b"")).add(Item::file("b", b"")).bytes();
        let mut entries = Entries::new(&bytes[..]);
        entries.count = ENTRIES - 1;
        assert_eq!(entries.next().unwrap().unwrap().name.as_bytes(), b"a");
        assert!(matches!(entries.next(), Err(Error::TooManyEntries { limit: ENTRIES })));
    }
}
