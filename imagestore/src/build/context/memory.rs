//! What is remembered of a context from one build to the next: the content of each file, by its inode, size and times.
//!
//! A record that is damaged, or of another boot of this machine, is as good as none: files are sent again.

use std::{
    collections::HashMap,
    fs,
    io::Write as _,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use sha2::{Digest as _, Sha256};

use super::ContextEntry;
use crate::Digest;

/// A file that was written this shortly before it was looked at may be written again within the same tick of the clock.
const FRESH: i64 = 100_000_000;

/// Of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    size: u64,
    mtime: i64,
    ctime: i64,
    inode: u64,
    digest: [u8; 32],
}

/// Of one context.
#[derive(Debug)]
pub(in crate::build) struct Memory {
    path: PathBuf,
    boot: String,
    seen: Mutex<HashMap<Vec<u8>, Seen>>,
    /// When the build began, in nanoseconds since 1970.
    now: i64,
    /// Whether there is something that is not in the file.
    learned: AtomicBool,
}

impl Memory {
    /// Reads what is known of a context.
    pub(in crate::build) fn open(folder: &std::path::Path, id: &str, boot: &str, now: i64) -> Memory {
        let path = folder.join(Digest::of(id.as_bytes()).hex());
        let seen = fs::read(&path).ok().and_then(|bytes| decode(&bytes, boot)).unwrap_or_default();
        Memory { path, boot: boot.to_owned(), seen: Mutex::new(seen), now, learned: AtomicBool::new(false) }
    }

    /// The content that a file had when it was as it is now.
    pub(super) fn find(&self, entry: &ContextEntry) -> Option<Digest> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.get(&entry.path)?;
        let same = entry.ctime != 0
            && (seen.size, seen.mtime, seen.ctime, seen.inode)
                == (entry.size, entry.mtime, entry.ctime, entry.inode);
        same.then(|| Digest::from_sha256(&seen.digest))
    }

    /// Notes a file's content.
    pub(super) fn learn(&self, entry: &ContextEntry, digest: &Digest) {
        if let Some(seen) = self.seen_of(entry, digest) {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(entry.path.clone(), seen);
            self.learned.store(true, Ordering::Relaxed);
        }
    }

    fn seen_of(&self, entry: &ContextEntry, digest: &Digest) -> Option<Seen> {
        if entry.ctime == 0 || entry.ctime.max(entry.mtime) > self.now - FRESH {
            return None;
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(digest.hex(), &mut bytes).ok()?;
        Some(Seen {
            size: entry.size,
            mtime: entry.mtime,
            ctime: entry.ctime,
            inode: entry.inode,
            digest: bytes,
        })
    }

    /// Writes what is known of these entries, and nothing of what is no longer there.
    pub(super) fn save<'e>(&self, entries: impl Iterator<Item = (&'e ContextEntry, &'e Option<Digest>)>) {
        let known = entries
            .filter_map(|(entry, digest)| Some((entry.path.clone(), self.seen_of(entry, digest.as_ref()?)?)));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let next: HashMap<Vec<u8>, Seen> = known.collect();
        if next != *seen || !self.path.exists() || self.learned.swap(false, Ordering::Relaxed) {
            let temporary = self.path.with_extension("tmp");
            let written = fs::File::create(&temporary)
                .and_then(|mut file| file.write_all(&encode(&next, &self.boot)))
                .and_then(|()| fs::rename(&temporary, &self.path));
            if let Err(error) = written {
                tracing::debug!(%error, "the context will be sent again");
            }
        }
        *seen = next;
    }
}

fn encode(seen: &HashMap<Vec<u8>, Seen>, boot: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let text = |bytes: &mut Vec<u8>, text: &[u8]| {
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text);
    };
    text(&mut bytes, boot.as_bytes());
    for (path, seen) in seen {
        text(&mut bytes, path);
        bytes.extend(seen.size.to_le_bytes());
        bytes.extend(seen.mtime.to_le_bytes());
        bytes.extend(seen.ctime.to_le_bytes());
        bytes.extend(seen.inode.to_le_bytes());
        bytes.extend(seen.digest);
    }
    let sum: [u8; 32] = Sha256::digest(&bytes).into();
    bytes.extend(sum);
    bytes
}

fn decode(bytes: &[u8], boot: &str) -> Option<HashMap<Vec<u8>, Seen>> {
    let (mut left, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    let actual: [u8; 32] = Sha256::digest(left).into();
    if actual[..] != *sum {
        return None;
    }
    let mut take = |length: usize| -> Option<&[u8]> {
        let (taken, rest) = left.split_at_checked(length)?;
        left = rest;
        Some(taken)
    };
    let length = u32::from_le_bytes(take(4)?.try_into().ok()?);
    if take(length as usize)? != boot.as_bytes() {
        return None;
    }
    let mut seen = HashMap::new();
    while let Some(length) = take(4) {
        let path = take(u32::from_le_bytes(length.try_into().ok()?) as usize)?.to_vec();
        let mut number = || <[u8; 8]>::try_from(take(8)?).ok();
        let (size, mtime) = (u64::from_le_bytes(number()?), i64::from_le_bytes(number()?));
        let (ctime, inode) = (i64::from_le_bytes(number()?), u64::from_le_bytes(number()?));
        seen.insert(path, Seen { size, mtime, ctime, inode, digest: take(32)?.try_into().ok()? });
    }
    Some(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> ContextEntry {
        ContextEntry {
            path: path.into(),
            size: 3,
            mtime: 10,
            ctime: 11,
            inode: 12,
            ..ContextEntry::default()
        }
    }

    #[test]
    fn an_unchanged_file_is_known_again_and_a_changed_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"abc");
        let memory = Memory::open(folder.path(), "machine:/src", "boot", FRESH + 100);
        memory.learn(&entry("a/b"), &digest);
        memory.save([(&entry("a/b"), &Some(digest.clone()))].into_iter());
        let again = Memory::open(folder.path(), "machine:/src", "boot", 0);
        assert_eq!(again.find(&entry("a/b")), Some(digest));
        for other in [
            entry("a/c"),
            ContextEntry { size: 4, ..entry("a/b") },
            ContextEntry { mtime: 9, ..entry("a/b") },
            ContextEntry { ctime: 9, ..entry("a/b") },
            ContextEntry { inode: 9, ..entry("a/b") },
        ] {
            assert_eq!(again.find(&other), None, "{other:?}");
        }
        for (id, boot) in [("machine:/other", "boot"), ("machine:/src", "other")] {
            assert_eq!(Memory::open(folder.path(), id, boot, 0).find(&entry("a/b")), None);
        }
    }

    #[test]
    fn a_file_written_a_moment_ago_is_not_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::open(folder.path(), "x", "boot", FRESH);
        memory.learn(&entry("a"), &Digest::of(b"abc"));
        assert_eq!(memory.find(&entry("a")), None);
    }

    #[test]
    fn a_damaged_record_is_none() {
        let seen =
            HashMap::from([(b"a".to_vec(), Seen { size: 1, mtime: 2, ctime: 3, inode: 4, digest: [5; 32] })]);
        let bytes = encode(&seen, "boot");
        assert_eq!(decode(&bytes, "boot"), Some(seen));
        for length in 0..bytes.len() {
            assert_eq!(decode(&bytes[..length], "boot"), None);
        }
    }
}
