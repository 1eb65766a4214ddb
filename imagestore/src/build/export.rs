//! The files of a build's target as a tar, for those who want no image.
//!
//! What the layers show together is written, as it would be seen in a container: no whiteouts, names in order, nothing of
//! the moment. Sockets are left out.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    sync::Arc,
};

use rustix::fs::FileType;

use super::{
    Built, Error, Runner,
    builder::Inner,
    pad::View,
    tree::{Node, Tree, join},
};
use crate::diff::header::{self, Header};

/// Writes the tar.
pub(super) fn export(
    builder: &Arc<Inner>,
    built: &Built,
    runner: &Arc<dyn Runner>,
    out: &mut impl Write,
) -> Result<(), Error> {
    if let Some(layer) = built.layers.last() {
        let number = builder.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let view =
            View::new(&builder.store, runner, format!("build-export-{number}"), &layer.chain_id, false)?;
        let mut export = Export { tree: view.tree(), out: &mut *out, links: HashMap::new() };
        export.directory(b"")?;
    }
    header::finish(out).map_err(Error::io("write", b"the tar"))
}

struct Export<'e, W> {
    tree: &'e dyn Tree,
    out: &'e mut W,
    /// The first name of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Export<'_, W> {
    fn directory(&mut self, path: &[u8]) -> Result<(), Error> {
        for name in self.tree.names(path)? {
            let path = join(path, &name);
            let Some(node) = self.tree.look(&path)? else { continue };
            self.node(&path, &node)?;
            if node.kind == FileType::Directory {
                self.directory(&path)?;
            }
        }
        Ok(())
    }

    fn node(&mut self, path: &[u8], node: &Node) -> Result<(), Error> {
        let failed = |source: io::Error| Error::io("write", path)(source);
        let records = node.attributes.iter();
        let records = records.map(|(name, value)| ([b"SCHILY.xattr.", &name[..]].concat(), value.clone()));
        let mut header = Header {
            path,
            link: &node.link,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime.0,
            size: node.size,
            device: node.device,
            records: records.collect(),
            kind: header::FILE,
        };
        let whole = [path, b"/"].concat();
        let first = node.inode.and_then(|inode| self.links.get(&inode).cloned());
        if let Some(first) = &first {
            let header =
                Header { kind: header::HARD_LINK, link: first, size: 0, records: Vec::new(), ..header };
            return header.write(self.out).map_err(failed);
        }
        if let Some(inode) = node.inode {
            self.links.insert(inode, path.to_vec());
        }
        header.kind = match node.kind {
            FileType::RegularFile => {
                header.write(self.out).map_err(failed)?;
                let mut file = self.tree.open(path)?.take(node.size);
                let copied = io::copy(&mut file, self.out).map_err(failed)?;
                if copied != node.size {
                    return Err(failed(io::ErrorKind::UnexpectedEof.into()));
                }
                return header::pad(self.out, node.size).map_err(failed);
            }
            FileType::Directory => {
                header.path = &whole;
                header::DIRECTORY
            }
            FileType::Symlink => header::SYMLINK,
            FileType::CharacterDevice => header::CHARACTER,
            FileType::BlockDevice => header::BLOCK_DEVICE,
            FileType::Fifo => header::FIFO,
            FileType::Socket | FileType::Unknown => return Ok(()),
        };
        header.write(self.out).map_err(failed)
    }
}
