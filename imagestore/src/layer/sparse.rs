//! Maps of files with holes, in the four forms that GNU tar writes: its old header, and PAX 0.0, 0.1 and 1.0.
//!
//! A map is only used once [`Map::is_consistent`] said so: extents in order, without overlap, within the
//! file, and of exactly as many bytes as the archive holds for them.

use super::{Error, header::number, pax::decimal, source::BLOCK};

/// Where the pieces of a file lie.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Map {
    /// Of the whole file, holes included.
    pub(super) size: u64,
    pub(super) extents: Vec<Extent>,
}

/// A piece that is no hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// Where the map of a file stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the extended header.
    Records(Map),
    /// Before the data (PAX 1.0), for a file of this size.
    Data { size: u64 },
}

/// A million pieces, in 16 MiB of memory: more has no honest use.
const EXTENTS: usize = 1 << 20;

impl Map {
    /// Whether it describes one file with `stored` bytes of data.
    pub(super) fn is_consistent(&self, stored: u64) -> bool {
        let mut end = 0;
        let mut sum = 0;
        for Extent { offset, length } in &self.extents {
            match offset.checked_add(*length) {
                Some(next) if *offset >= end && next <= self.size => end = next,
                _ => return false,
            }
            sum += length;
        }
        sum == stored && i64::try_from(self.size).is_ok()
    }

    /// Adds a further block of an old GNU map; whether yet another follows.
    pub(super) fn extend(&mut self, block: &[u8; BLOCK]) -> Option<bool> {
        self.add(&block[..504])?;
        Some(block[504] != 0)
    }

    fn add(&mut self, table: &[u8]) -> Option<()> {
        for row in table.chunks_exact(24) {
            if row[0] == 0 {
                break;
            }
            let offset = u64::try_from(number(&row[..12])?).ok()?;
            let length = u64::try_from(number(&row[12..])?).ok()?;
            self.push(offset, length)?;
        }
        Some(())
    }

    fn push(&mut self, offset: u64, length: u64) -> Option<()> {
        self.extents.push(Extent { offset, length });
        (self.extents.len() <= EXTENTS).then_some(())
    }
}

/// The map in an old GNU header, and whether more of it follows.
pub(super) fn from_header(block: &[u8; BLOCK]) -> Option<(Map, bool)> {
    let size = u64::try_from(number(&block[483..495])?).ok()?;
    let mut map = Map { size, extents: Vec::new() };
    map.add(&block[386..482])?;
    Some((map, block[482] != 0))
}

/// The name of a sparse file: in its header stands a made-up one.
pub(super) fn name(records: &[(Vec<u8>, Vec<u8>)]) -> Option<Vec<u8>> {
    value(records, b"name").map(<[u8]>::to_vec)
}

/// What an extended header says of the map.
pub(super) fn from_records(records: &[(Vec<u8>, Vec<u8>)]) -> Option<Place> {
    let major = value(records, b"major").map_or(Some(0), decimal)?;
    let minor = value(records, b"minor").map_or(Some(0), decimal)?;
    if (major, minor) == (1, 0) {
        return Some(Place::Data { size: decimal(value(records, b"realsize")?)? });
    }
    if major != 0 {
        return None;
    }
    let mut map = Map { size: decimal(value(records, b"size")?)?, extents: Vec::new() };
    if let Some(list) = value(records, b"map").filter(|list| !list.is_empty()) {
        let numbers = list.split(|b| *b == b',').map(decimal).collect::<Option<Vec<u64>>>()?;
        if numbers.len() % 2 != 0 {
            return None;
        }
        for pair in numbers.chunks_exact(2) {
            map.push(pair[0], pair[1])?;
        }
        return Some(Place::Records(map));
    }
    let mut offset = None;
    for (key, value) in records {
        match (&key[..], offset) {
            (b"offset", None) => offset = Some(decimal(value)?),
            (b"numbytes", Some(start)) => {
                map.push(start, decimal(value)?)?;
                offset = None;
            }
            (b"offset" | b"numbytes", _) => return None,
            _ => {}
        }
    }
    offset.is_none().then_some(Place::Records(map))
}

/// Reads a map of decimal lines (a count, then offset and length by turns) from whole blocks.
/// The outer result is of the reading, the inner one of the map.
pub(super) fn from_data(
    size: u64,
    next: &mut dyn FnMut() -> Result<Option<[u8; BLOCK]>, Error>,
) -> Result<Option<Map>, Error> {
    let mut map = Map { size, extents: Vec::new() };
    let mut wanted = None;
    let mut offset = None;
    let mut line = Vec::new();
    while let Some(block) = next()? {
        for byte in block {
            if byte != b'\n' {
                line.push(byte);
                if line.len() > 20 {
                    return Ok(None);
                }
                continue;
            }
            let Some(number) = decimal(&line) else { return Ok(None) };
            line.clear();
            match (wanted, offset.take()) {
                (None, _) => wanted = Some(number),
                (Some(_), None) => offset = Some(number),
                (Some(_), Some(start)) => {
                    if map.push(start, number).is_none() {
                        return Ok(None);
                    }
                }
            }
            if wanted == Some(map.extents.len() as u64) {
                return Ok(Some(map));
            }
        }
    }
    Ok(None)
}

fn value<'r>(records: &'r [(Vec<u8>, Vec<u8>)], key: &[u8]) -> Option<&'r [u8]> {
    records.iter().rev().find(|(name, _)| name == key).map(|(_, value)| &value[..])
}
