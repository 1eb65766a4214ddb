//! Records: what makes a directory count as a snapshot.
//!
//! A record that does not match its own checksum is no record. It is written whole, by a rename, and names
//! what it belongs to, so that a record in the wrong place is none either.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::{
    fs::{self, Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Access;
use crate::{ChainId, Digest};

const NAME: &str = "record.json";
const TEMPORARY: &str = "record.json.new";

/// More than any record has.
const LIMIT: usize = 64 * 1024;

/// Of a committed layer.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) chain: ChainId,
    pub(super) parent: Option<ChainId>,
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    /// Its root hides all lower layers; overlayfs does not heed the mark on a root.
    pub(super) opaque: bool,
    /// The only boot of the machine in which the layer counts, as long as its files may not be on the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) boot: Option<String>,
}

/// Of an active snapshot.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(super) struct Active {
    pub(super) key: String,
    pub(super) parent: Option<ChainId>,
    // Left out where it is what it always was: the checksums of older records stay good.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) access: Access,
    /// The project that its writable layer is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) project: Option<u32>,
}

fn is_default(access: &Access) -> bool {
    *access == Access::default()
}

#[derive(Serialize, Deserialize)]
struct Sealed<T> {
    record: T,
    checksum: Digest,
}

/// A name of the time since the machine was started: what was written since is there, synced or not.
pub(crate) fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match id.trim() {
        // Without it nothing may be taken for written in this boot, not even by the next process.
        "" => format!("unknown-{}-{:?}", std::process::id(), std::time::SystemTime::now()),
        id => id.to_owned(),
    }
}

/// Puts `record` into `directory`. It is durable once the file system was synced.
pub(super) fn write<T: Serialize>(directory: BorrowedFd<'_>, record: &T) -> std::io::Result<()> {
    let sealed = Sealed { checksum: checksum(record)?, record };
    let mut data = &serde_json::to_vec(&sealed)?[..];
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(directory, TEMPORARY, flags, Mode::from(0o600))?;
    while !data.is_empty() {
        match rustix::io::write(&file, data) {
            Ok(written) => data = &data[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(fs::renameat(directory, TEMPORARY, directory, NAME)?)
}

/// The record in `directory`, if there is a whole one.
pub(super) fn read<T: DeserializeOwned + Serialize>(directory: BorrowedFd<'_>) -> Option<T> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file: OwnedFd = fs::openat(directory, NAME, flags, Mode::empty()).ok()?;
    let mut data = vec![0; LIMIT];
    let mut length = 0;
    while length < LIMIT {
        match rustix::io::read(&file, &mut data[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    let sealed: Sealed<T> = serde_json::from_slice(&data[..length]).ok()?;
    (checksum(&sealed.record).ok()? == sealed.checksum).then_some(sealed.record)
}

fn checksum<T: Serialize>(record: &T) -> std::io::Result<Digest> {
    Ok(Digest::of(&serde_json::to_vec(record)?))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn only_a_whole_record_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(directory.path()).unwrap();
        let record = Active { key: "a".to_owned(), parent: None, access: Access::Write, project: None };
        assert_eq!(read::<Active>(fd.as_fd()), None);
        write(fd.as_fd(), &record).unwrap();
        assert_eq!(read(fd.as_fd()), Some(record));
        let path = directory.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(read::<Active>(fd.as_fd()), None, "{length}");
        }
        let mut flipped = whole.clone();
        let at = whole.windows(3).position(|w| w == b"\"a\"").unwrap();
        flipped[at + 1] ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        assert_eq!(read::<Active>(fd.as_fd()), None);
    }
}
