//! A writable directory as a layer: what overlayfs has on disk, in OCI's words.
//!
//! Whiteouts become `.wh.NAME`, opaque directories get `.wh..wh..opq`, names of one inode become hard links to the first
//! of them, sockets are left out. Times are whole seconds, as all tools that make layers have them.

use std::{
    collections::HashMap,
    io::Write,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::fs::{self, FileType};

use super::{
    DiffOptions, Error, Node, Walk,
    header::{self, Header, pad},
    shown,
    sparse::{self, Extent, read_at},
};
use crate::snapshot::{Upper, is_whiteout};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const PIECE: usize = 128 << 10;

/// Writes the layer, and says how many entries it has.
pub(crate) fn write(upper: &Upper, options: &DiffOptions, out: &mut impl Write) -> Result<u64, Error> {
    let mut walk = Walk::new(upper, options)?;
    let mut layer = Layer { out, options, links: HashMap::new(), entries: 0, buffer: vec![0; PIECE] };
    let root = walk.root()?;
    // The root's time changes with everything that is made in it; who owns it and what it allows does not.
    let below = upper.look_below(b"").map_err(Error::io("openat2", b""))?;
    let of = |stat: &rustix::fs::Stat| (stat.st_mode, stat.st_uid, stat.st_gid);
    if below.is_none_or(|below| of(&below) != of(&root.stat)) {
        layer.entry(&root, Header { kind: header::DIRECTORY, path: b"./", ..Header::default() })?;
    }
    while let Some(node) = walk.next()? {
        layer.node(&walk, &node)?;
    }
    let entries = layer.entries;
    header::finish(out).map_err(|source| Error::Write { source })?;
    Ok(entries)
}

struct Layer<'l, W> {
    out: &'l mut W,
    options: &'l DiffOptions,
    /// The first name of each inode that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    entries: u64,
    buffer: Vec<u8>,
}

impl<W: Write> Layer<'_, W> {
    fn node(&mut self, walk: &Walk<'_>, node: &Node) -> Result<(), Error> {
        let (parent, name) = split(&node.path);
        if is_whiteout(&node.stat) {
            return self.marker(&[parent, WHITEOUT, name].concat());
        }
        if name.starts_with(WHITEOUT) {
            return Err(Error::Reserved { path: shown(&node.path) });
        }
        if node.stat.st_nlink > 1 && node.kind() != FileType::Directory {
            // The types differ between architectures.
            #[allow(clippy::unnecessary_cast)]
            let inode = (node.stat.st_dev as u64, node.stat.st_ino as u64);
            if let Some(first) = self.links.get(&inode) {
                let first = first.clone();
                let header =
                    Header { kind: header::HARD_LINK, path: &node.path, link: &first, ..Header::default() };
                // Only the name is new: readers take everything else from the first one.
                return self.header(node, header);
            }
            self.links.insert(inode, node.path.clone());
        }
        let plain = |kind| Header { kind, path: &node.path, ..Header::default() };
        match node.kind() {
            FileType::Directory => {
                let path = [&node.path[..], b"/"].concat();
                self.entry(node, Header { kind: header::DIRECTORY, path: &path, ..Header::default() })?;
                if node.opaque()? {
                    self.marker(&[&path[..], OPAQUE].concat())?;
                }
                Ok(())
            }
            FileType::RegularFile => self.file(walk, node),
            FileType::Symlink => {
                let target = node.target()?;
                self.entry(node, Header { link: &target, ..plain(header::SYMLINK) })
            }
            FileType::Fifo => self.entry(node, plain(header::FIFO)),
            kind @ (FileType::CharacterDevice | FileType::BlockDevice) => {
                let device = (fs::major(node.stat.st_rdev), fs::minor(node.stat.st_rdev));
                let character = kind == FileType::CharacterDevice;
                let kind = if character { header::CHARACTER } else { header::BLOCK_DEVICE };
                self.entry(node, Header { device, ..plain(kind) })
            }
            // A socket without its process is nothing.
            FileType::Socket | FileType::Unknown => {
                self.links.retain(|_, first| *first != node.path);
                Ok(())
            }
        }
    }

    fn file(&mut self, walk: &Walk<'_>, node: &Node) -> Result<(), Error> {
        let Some(file) = walk.open_file(node)? else { return Ok(()) };
        let size = u64::try_from(node.stat.st_size).unwrap_or_default();
        let extents = sparse::extents(file.as_fd(), size).map_err(Error::io("read", &node.path))?;
        let header = Header { kind: header::FILE, path: &node.path, size, ..Header::default() };
        let Some(extents) = extents else {
            self.entry(node, header)?;
            self.copy(file.as_fd(), node, Extent { offset: 0, length: size })?;
            return pad(self.out, size).map_err(|source| Error::Write { source });
        };
        // GNU's sparse format 1.0: the map stands before the data, in whole blocks (GNU tar manual, "PAX 1").
        let mut map = format!("{}\n", extents.len()).into_bytes();
        for Extent { offset, length } in &extents {
            map.extend(format!("{offset}\n{length}\n").into_bytes());
        }
        map.resize(map.len().next_multiple_of(512), 0);
        let stored = map.len() as u64 + extents.iter().map(|extent| extent.length).sum::<u64>();
        let record = |key: &str, value: &[u8]| (format!("GNU.sparse.{key}").into_bytes(), value.to_vec());
        let records = vec![
            record("major", b"1"),
            record("minor", b"0"),
            record("name", &node.path),
            record("realsize", size.to_string().as_bytes()),
        ];
        self.entry(node, Header { path: b"GNUSparseFile", size: stored, records, ..header })?;
        self.out.write_all(&map).map_err(|source| Error::Write { source })?;
        for extent in extents {
            self.copy(file.as_fd(), node, extent)?;
        }
        pad(self.out, stored).map_err(|source| Error::Write { source })
    }

    /// Exactly as many bytes as the header promised, whatever has become of the file: zeros for what it lost.
    fn copy(&mut self, file: BorrowedFd<'_>, node: &Node, extent: Extent) -> Result<(), Error> {
        let Extent { mut offset, mut length } = extent;
        while length > 0 {
            let wanted = length.min(PIECE as u64) as usize;
            let piece = &mut self.buffer[..wanted];
            let read = read_at(file, offset, piece).map_err(Error::io("read", &node.path))?;
            piece[read..].fill(0);
            self.out.write_all(piece).map_err(|source| Error::Write { source })?;
            offset += wanted as u64;
            length -= wanted as u64;
        }
        Ok(())
    }

    /// Something that stands for what is not there.
    fn marker(&mut self, path: &[u8]) -> Result<(), Error> {
        self.entries += 1;
        let header = Header { kind: header::FILE, path, ..Header::default() };
        header.write(self.out).map_err(|source| Error::Write { source })
    }

    fn entry(&mut self, node: &Node, mut header: Header<'_>) -> Result<(), Error> {
        for (name, value) in node.attributes()? {
            header.records.push(([b"SCHILY.xattr.", &keyword(&name)[..]].concat(), value));
        }
        self.header(node, header)
    }

    fn header(&mut self, node: &Node, header: Header<'_>) -> Result<(), Error> {
        self.entries += 1;
        let mtime = self.options.latest.map_or(node.stat.st_mtime, |latest| node.stat.st_mtime.min(latest));
        let mode = node.stat.st_mode & 0o7777;
        let header = Header { mode, uid: node.stat.st_uid, gid: node.stat.st_gid, mtime, ..header };
        header.write(self.out).map_err(|source| Error::Write { source })
    }
}

/// The name of an attribute as GNU tar writes it: an equals sign would end the keyword.
fn keyword(name: &[u8]) -> Vec<u8> {
    let escaped = |byte: &u8| match byte {
        b'%' => b"%25".to_vec(),
        b'=' => b"%3D".to_vec(),
        byte => vec![*byte],
    };
    name.iter().flat_map(escaped).collect()
}

/// The parent with its slash, and the name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.split_at(path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1))
}
