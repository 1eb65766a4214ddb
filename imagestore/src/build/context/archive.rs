//! A context that comes as a tar: from a pipe of the client's, or from a URL.
//!
//! Names in it are keys of a table and never paths; what it holds is stored by its content, and nothing is unpacked.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use rustix::fs::FileType;
use tar::{Archive, Entry, EntryType};
use tokio_util::sync::CancellationToken;

use super::{ContextEntry, Telling};
use crate::{
    Digest,
    build::{
        Error,
        error::shown,
        files::Files,
        step::blocking,
        transfer::archive,
        tree::{components, join},
    },
    swell,
};

/// What a stream turned out to be.
#[derive(Debug)]
pub enum Sent {
    /// A context.
    Context(Telling),
    /// No archive: a Dockerfile.
    Dockerfile(Vec<u8>),
}

/// Longer texts are no Dockerfiles.
const MAX_TEXT: u64 = 4 << 20;
const ATTRIBUTE: &str = "SCHILY.xattr.";

/// Looks at a file that was sent or fetched, until nobody waits for that any more.
pub(in crate::build) async fn look(files: Arc<Files>, digest: Digest) -> Result<Sent, Error> {
    let given_up = CancellationToken::new();
    let _guard = given_up.clone().drop_guard();
    blocking(move || read(&files, &digest, given_up)).await
}

fn read(files: &Arc<Files>, digest: &Digest, given_up: CancellationToken) -> Result<Sent, Error> {
    const NAME: &[u8] = b"the context's archive";
    let file = files.reader(digest)?;
    let size = file.metadata().map_err(Error::io("read", NAME))?.len();
    let mut room = Room { left: swell::bound(size), given_up };
    let Some(tar) = archive::open(file, NAME)? else {
        let mut text = Vec::new();
        let mut file = files.reader(digest)?.take(MAX_TEXT + 1);
        file.read_to_end(&mut text).map_err(Error::io("read", NAME))?;
        if text.len() as u64 > MAX_TEXT {
            return Err(Error::Invalid(
                "what was sent is neither a tar nor a Dockerfile of at most 4 MiB".into(),
            ));
        }
        return Ok(Sent::Dockerfile(text));
    };
    let mut telling = Telling::new(files.clone(), None);
    let mut archive = Archive::new(tar);
    let failed = |error: io::Error| Error::Invalid(format!("the context's archive: {error}"));
    for entry in archive.entries().map_err(failed)? {
        take(&mut telling, files, &mut room, entry.map_err(failed)?)?;
    }
    Ok(Sent::Context(telling))
}

/// What files may still come to, their holes included, which take no room in an archive.
struct Room {
    left: u64,
    given_up: CancellationToken,
}

/// A file that takes up room.
struct Filling<'a, W> {
    inner: W,
    room: &'a mut Room,
}

impl<W: Write> Write for Filling<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.room.given_up.is_cancelled() {
            return Err(io::Error::other("nobody waits for it any more"));
        }
        let written = self.inner.write(bytes)?;
        self.room.left = self.room.left.checked_sub(written as u64).ok_or_else(archive::too_large)?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn take<R: Read>(
    telling: &mut Telling,
    files: &Arc<Files>,
    room: &mut Room,
    mut entry: Entry<'_, R>,
) -> Result<(), Error> {
    let raw = entry.path_bytes().into_owned();
    let malformed = |what: &str| Error::Invalid(format!("the context's archive: {:?} {what}", shown(&raw)));
    let mut path = Vec::new();
    for name in components(&raw).filter(|name| *name != b".") {
        if name == b".." {
            return Err(malformed("leads out of it"));
        }
        path = join(&path, name);
    }
    if path.is_empty() {
        return Ok(());
    }
    let link = entry.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default();
    let header = entry.header();
    let kind = match header.entry_type() {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => FileType::RegularFile,
        EntryType::Directory => FileType::Directory,
        EntryType::Symlink => FileType::Symlink,
        EntryType::Char => FileType::CharacterDevice,
        EntryType::Block => FileType::BlockDevice,
        EntryType::Fifo => FileType::Fifo,
        EntryType::Link => {
            let target = components(&link)
                .filter(|name| *name != b".")
                .fold(Vec::new(), |path, name| join(&path, name));
            return telling.link(path, &target).ok_or_else(|| malformed("is a link to nothing"))?;
        }
        _ => return Ok(()),
    };
    let number = |number: io::Result<Option<u32>>| number.ok().flatten().unwrap_or_default();
    let device = (number(header.device_major()), number(header.device_minor()));
    let mode = header.mode().map_err(|_| malformed("has no mode"))?;
    let mtime = header.mtime().unwrap_or_default();
    let mut attributes = Vec::new();
    if let Ok(Some(extensions)) = entry.pax_extensions() {
        for extension in extensions.flatten() {
            if let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix(ATTRIBUTE)) {
                attributes.push((name.as_bytes().to_vec(), extension.value_bytes().to_vec()));
            }
        }
    }
    attributes.sort();
    let (mut digest, mut size) = (None, 0);
    if kind == FileType::RegularFile {
        let mut filling = Filling { inner: files.begin()?, room };
        let copied = io::copy(&mut entry, &mut filling);
        size = copied.map_err(|error| malformed(&format!("cannot be taken: {error}")))?;
        digest = Some(filling.inner.finish()?);
    }
    let described = ContextEntry {
        path,
        mode: kind.as_raw_mode() | (mode & 0o7777),
        size,
        mtime: i64::try_from(mtime).unwrap_or_default().saturating_mul(1_000_000_000),
        ctime: 0,
        inode: 0,
        link: if kind == FileType::Symlink { link } else { Vec::new() },
        device,
        attributes,
    };
    telling.replace(described, digest)
}
