//! The folder as the agent gets to know it: every entry once, parents first, without what is ignored; and the
//! content of those files that it asks for.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use sampan_imagestore::build::Ignore;
use sampan_proto::sampan::{ContextEntry, FileContent};

/// What a message carries of a file.
const PIECE: usize = 256 << 10;

/// Looks through a folder. `tell` gets each entry; what it refuses ends the walk.
///
/// # Errors
/// A folder that cannot be read: leaving it out in silence would build something else.
pub(super) fn scan(
    root: &Path,
    ignore: &Ignore,
    tell: &mut dyn FnMut(ContextEntry) -> io::Result<()>,
) -> io::Result<()> {
    let mut walk = Walk { root, ignore, tell, pending: Vec::new() };
    walk.folder(&mut Vec::new())
}

struct Walk<'w> {
    root: &'w Path,
    ignore: &'w Ignore,
    tell: &'w mut dyn FnMut(ContextEntry) -> io::Result<()>,
    /// Ignored folders on the way to what may be taken back: told when something is.
    pending: Vec<ContextEntry>,
}

impl Walk<'_> {
    /// `path` is the folder's, relative to the root.
    fn folder(&mut self, path: &mut Vec<u8>) -> io::Result<()> {
        let here = self.root.join(Path::new(std::ffi::OsStr::from_bytes(path)));
        let located = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", here.display()));
        let mut names = Vec::new();
        for entry in fs::read_dir(&here).map_err(located)? {
            names.push(entry.map_err(located)?.file_name());
        }
        names.sort_unstable();
        let (length, waiting) = (path.len(), self.pending.len());
        for name in names {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            self.entry(path, &here.join(&name))?;
            path.truncate(length);
        }
        self.pending.truncate(waiting);
        Ok(())
    }

    fn entry(&mut self, path: &mut Vec<u8>, place: &Path) -> io::Result<()> {
        let excluded = self.ignore.excludes(path);
        let metadata = match fs::symlink_metadata(place) {
            // One that has gone away since is none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata?,
        };
        if metadata.is_dir() {
            if excluded && !self.ignore.may_include_below(path) {
                return Ok(());
            }
            let entry = describe(path, place, &metadata)?;
            let waiting = self.pending.len();
            self.pending.push(entry);
            if !excluded {
                self.tell_pending()?;
            }
            self.folder(path)?;
            self.pending.truncate(waiting);
            return Ok(());
        }
        if excluded || metadata.file_type().is_socket() {
            return Ok(());
        }
        self.tell_pending()?;
        (self.tell)(describe(path, place, &metadata)?)
    }

    fn tell_pending(&mut self) -> io::Result<()> {
        // They stay in place, so that folders around them know how many there were; told ones are emptied.
        for entry in &mut self.pending {
            if !entry.path.is_empty() {
                (self.tell)(std::mem::take(entry))?;
            }
        }
        Ok(())
    }
}

fn describe(path: &[u8], place: &Path, metadata: &fs::Metadata) -> io::Result<ContextEntry> {
    const SECOND: i64 = 1_000_000_000;
    let kind = metadata.file_type();
    let mut entry = ContextEntry {
        path: path.to_vec(),
        mode: metadata.mode(),
        mtime: metadata.mtime().saturating_mul(SECOND).saturating_add(metadata.mtime_nsec()),
        ctime: metadata.ctime().saturating_mul(SECOND).saturating_add(metadata.ctime_nsec()),
        inode: metadata.ino(),
        ..ContextEntry::default()
    };
    if kind.is_file() {
        entry.size = metadata.len();
        entry.xattrs = attributes(place)?;
    } else if kind.is_symlink() {
        entry.link = fs::read_link(place)?.into_os_string().into_encoded_bytes();
    } else if kind.is_block_device() || kind.is_char_device() {
        (entry.major, entry.minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    }
    Ok(entry)
}

/// Those that are part of what a file is; most have none, which costs one call.
fn attributes(place: &Path) -> io::Result<HashMap<String, Vec<u8>>> {
    let mut names = [0; 4096];
    let length = match rustix::fs::llistxattr(place, &mut names) {
        Ok(0) | Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOENT) => return Ok(HashMap::new()),
        length => length?,
    };
    let names = names[..length].split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok());
    let mut found = HashMap::new();
    for name in names.filter(|name| *name == "security.capability" || name.starts_with("user.")) {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(place, name, &mut value)?;
        value.truncate(length);
        found.insert(name.to_owned(), value);
    }
    Ok(found)
}

/// Reads a file for the agent, piece by piece. A file that cannot be read is told of and ends nothing else.
pub(super) fn send(
    root: &Path,
    number: u32,
    path: &PathBuf,
    tell: &mut dyn FnMut(FileContent) -> io::Result<()>,
) -> io::Result<()> {
    let failed = |error: io::Error| FileContent {
        number,
        end: true,
        error: format!("{}: {error}", path.display()),
        ..FileContent::default()
    };
    // A link that has come into its place meanwhile may lead anywhere.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let opened =
        rustix::fs::open(root.join(path), flags | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty());
    let mut file = match opened {
        Ok(file) => File::from(file),
        Err(error) => return tell(failed(error.into())),
    };
    loop {
        let mut data = vec![0; PIECE];
        match file.read(&mut data) {
            Ok(0) => return tell(FileContent { number, end: true, ..FileContent::default() }),
            Ok(length) => {
                data.truncate(length);
                tell(FileContent { number, data, ..FileContent::default() })?;
            }
            Err(error) => return tell(failed(error)),
        }
    }
}
