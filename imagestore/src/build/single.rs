//! One file as a tree: a document of the Dockerfile, or something that was fetched.

use std::{
    fs::File,
    io::{Seek, Write},
    sync::Arc,
};

use rustix::fs::FileType;

use super::{
    Error,
    files::Files,
    tree::{Node, Tree},
};
use crate::Digest;

/// A tree with one file in its root.
pub(super) struct Single {
    pub(super) name: Vec<u8>,
    pub(super) mode: u32,
    pub(super) size: u64,
    /// Seconds since 1970.
    pub(super) mtime: i64,
    pub(super) content: Content,
}

/// What is in it.
pub(super) enum Content {
    Bytes(Vec<u8>),
    Kept(Arc<Files>, Digest),
}

impl Tree for Single {
    fn look(&self, path: &[u8]) -> Result<Option<Node>, Error> {
        let file = path == self.name;
        if !path.is_empty() && !file {
            return Ok(None);
        }
        Ok(Some(Node {
            kind: if file { FileType::RegularFile } else { FileType::Directory },
            mode: if file { self.mode } else { 0o755 },
            uid: 0,
            gid: 0,
            size: if file { self.size } else { 0 },
            mtime: (self.mtime, 0),
            link: Vec::new(),
            device: (0, 0),
            attributes: Vec::new(),
            inode: None,
        }))
    }

    fn names(&self, _path: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        Ok(vec![self.name.clone()])
    }

    fn open(&self, _path: &[u8]) -> Result<File, Error> {
        match &self.content {
            Content::Kept(files, digest) => files.reader(digest),
            Content::Bytes(bytes) => {
                let failed = "memfd_create";
                let memory = rustix::fs::memfd_create("document", rustix::fs::MemfdFlags::CLOEXEC);
                let mut file = File::from(memory.map_err(Error::io(failed, &self.name))?);
                file.write_all(bytes).and_then(|()| file.rewind()).map_err(Error::io("write", &self.name))?;
                Ok(file)
            }
        }
    }

    fn digest(&self, _path: &[u8]) -> Result<Digest, Error> {
        Ok(match &self.content {
            Content::Kept(_, digest) => digest.clone(),
            Content::Bytes(bytes) => Digest::of(bytes),
        })
    }
}
