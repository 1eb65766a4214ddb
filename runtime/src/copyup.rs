//! What an image has at a path, copied into what will be mounted there: a tmpfs (`tmpcopyup`) or an anonymous volume.
//!
//! Everything goes by descriptor, and symbolic links are copied and never followed. Devices and sockets stay behind.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::beneath;
use crate::sys::{self, file};

const INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// Makes the directory `volume`, with what the directory `path` of a root has in it. Where there is no such directory, the
/// volume is empty and belongs to the user and group `owner`.
///
/// # Errors
/// What can't be made or copied, `volume` being there already among it.
pub fn seed(root: &Path, path: &Path, volume: &Path, owner: (u32, u32)) -> std::io::Result<()> {
    std::fs::create_dir_all(volume.parent().unwrap_or(volume))?;
    std::fs::DirBuilder::new().mode(0o755).create(volume)?;
    let seeded = (|| {
        let root = sys::mount::open_directory(root)?;
        let volume = File::open(volume).map_err(|error| call("open(volume)", &error))?;
        let found = beneath::find(&root, path)?;
        let kind = |found: &OwnedFd| file::fstat(found).map(|stat| FileType::from_raw_mode(stat.st_mode));
        match found {
            Some(found) if kind(&found)? == FileType::Directory => copy(&found, &volume),
            _ => file::fchownat(&volume, "", owner.0, owner.1),
        }
    })();
    seeded.map_err(|error: sys::Error| std::io::Error::new(std::io::Error::from(error.errno()).kind(), error))
}

/// Copies the contents of the directory `from` into `to`, with owners and modes, those of the directory included.
pub(crate) fn copy(from: impl AsFd, to: impl AsFd) -> sys::Result<()> {
    let readable = OFlags::RDONLY | OFlags::DIRECTORY;
    let from = file::openat2(from, ".", readable, ResolveFlags::BENEATH)?;
    let failed = |errno| sys::Error::new("getdents64()", errno);
    let entries = Dir::read_from(&from).map_err(failed)?;
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        copy_entry(&from, &to, Path::new(name))?;
    }
    dress(file::fstat(&from)?, &to)
}

fn copy_entry(from: &OwnedFd, to: &impl AsFd, name: &Path) -> sys::Result<()> {
    let found = file::openat2(from, name, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::BENEATH)?;
    let stat = file::fstat(&found)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            file::mkdirat(to, name, 0o700)?;
            copy(&found, file::openat2(to, name, OFlags::RDONLY | OFlags::DIRECTORY, INSIDE)?)
        }
        FileType::Symlink => {
            let target = file::readlinkat(from, name)?;
            file::symlinkat(OsStr::from_bytes(target.to_bytes()), to, name)?;
            file::fchownat(to, name, stat.st_uid, stat.st_gid)
        }
        FileType::RegularFile => {
            file::mknodat(to, name, FileType::RegularFile, 0o600, (0, 0))?;
            let mut source = File::from(file::openat2(from, name, OFlags::RDONLY, INSIDE)?);
            let mut copy = File::from(file::openat2(to, name, OFlags::WRONLY, INSIDE)?);
            std::io::copy(&mut source, &mut copy).map_err(|error| call(format!("copy({name:?})"), &error))?;
            dress(stat, &copy)
        }
        _ => Ok(()),
    }
}

fn call(what: impl Into<String>, error: &std::io::Error) -> sys::Error {
    sys::Error::new(what.into(), Errno::from_io_error(error).unwrap_or(Errno::IO))
}

fn dress(stat: rustix::fs::Stat, copy: &impl AsFd) -> sys::Result<()> {
    file::fchownat(copy, "", stat.st_uid, stat.st_gid)?;
    rustix::fs::fchmod(copy, Mode::from_raw_mode(stat.st_mode & 0o7777))
        .map_err(|errno| sys::Error::new("fchmod()", errno))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn names_that_are_no_text_are_copied_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let [file, target, link] = [&b"caf\xe9"[..], b"gar\xe7on", b"l\xefnk"].map(OsStr::from_bytes);
        let (from, to) = (folder.path().join("root/data"), folder.path().join("volume"));
        fs::create_dir_all(&from).unwrap();
        fs::write(from.join(file), "hot").unwrap();
        symlink(target, from.join(link)).unwrap();
        seed(&folder.path().join("root"), Path::new("/data"), &to, (0, 0)).unwrap();
        assert_eq!(fs::read_to_string(to.join(file)).unwrap(), "hot");
        assert_eq!(fs::read_link(to.join(link)).unwrap(), Path::new(target));
    }
}
