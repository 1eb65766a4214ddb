//! A cgroup as a directory tree: making it, listing its processes, removing it.
//!
//! Paths here are a trusted hierarchy root joined with a checked cgroup path.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Error;

/// Makes the directory and whatever is missing above it; one that exists is fine.
pub(super) fn make(path: &Path) -> Result<(), Error> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(Errno::NOENT) => match path.parent() {
            Some(parent) => {
                make(parent)?;
                match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => Ok(()),
                    Err(errno) => Err(Error::io("mkdir", path)(errno)),
                }
            }
            None => Err(Error::io("mkdir", path)(Errno::NOENT)),
        },
        Err(errno) => Err(Error::io("mkdir", path)(errno)),
    }
}

/// Calls `each` with every process of the cgroup and of those below it; a cgroup that is gone has none.
pub(super) fn each_process(path: &Path, each: &mut dyn FnMut(i32)) -> Result<(), Error> {
    each_child(path, &mut |child| each_process(child, each))?;
    let procs = path.join("cgroup.procs");
    let file = match rustix::fs::open(&procs, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
        Err(errno) => return Err(Error::io("open", procs)(errno)),
    };
    let mut buffer = [0u8; 1024];
    let mut pid = 0i32;
    loop {
        // The list may come in pieces that end in the middle of a number.
        match rustix::io::read(&file, &mut buffer) {
            Ok(0) | Err(Errno::NODEV) => return Ok(()),
            Ok(count) => {
                for byte in &buffer[..count] {
                    match byte {
                        b'0'..=b'9' => pid = pid.wrapping_mul(10).wrapping_add((byte - b'0').into()),
                        _ => {
                            // 0 is a process outside of our pid namespace.
                            if pid > 0 {
                                each(pid);
                            }
                            pid = 0;
                        }
                    }
                }
            }
            Err(errno) => return Err(Error::io("read", procs)(errno)),
        }
    }
}

/// Removes the cgroup and those below it, deepest first, waiting until `deadline` for processes to end.
pub(super) fn remove(path: &Path, deadline: Duration, since: Instant) -> Result<(), Error> {
    let mut pause = Duration::from_micros(200);
    loop {
        match remove_once(path) {
            Ok(true) => return Ok(()),
            Ok(false) if since.elapsed() < deadline => {}
            Ok(false) => return Err(Error::Busy { path: path.to_owned(), deadline }),
            Err(error) => return Err(error),
        }
        std::thread::sleep(pause.min(deadline.saturating_sub(since.elapsed())));
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// One try; false when something in it is still busy.
fn remove_once(path: &Path) -> Result<bool, Error> {
    // An empty cgroup, the usual case, costs one call.
    match rustix::fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(errno) => return Err(Error::io("rmdir", path)(errno)),
    }
    let mut free = true;
    each_child(path, &mut |child| {
        free &= remove_once(child)?;
        Ok(())
    })?;
    match rustix::fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(free),
        Err(Errno::BUSY | Errno::NOTEMPTY) => Ok(false),
        Err(errno) => Err(Error::io("rmdir", path)(errno)),
    }
}

fn each_child(path: &Path, each: &mut dyn FnMut(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
        Err(errno) => return Err(Error::io("open", path)(errno)),
    };
    // kernfs counts a directory's children among its links: no link beyond `.` and `..`, nothing to list.
    if rustix::fs::fstat(&directory).is_ok_and(|stat| stat.st_nlink == 2) {
        return Ok(());
    }
    let entries = Dir::new(directory).map_err(Error::io("readdir", path))?;
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
            Err(errno) => return Err(Error::io("readdir", path)(errno)),
        };
        let name = entry.file_name().to_bytes();
        if entry.file_type() == FileType::Directory && name != b"." && name != b".." {
            each(&path.join(OsStr::from_bytes(name)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_whose_names_are_no_text_are_removed_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("container");
        std::fs::create_dir_all(path.join(OsStr::from_bytes(b"\xff")).join("deep")).unwrap();
        remove(&path, Duration::ZERO, Instant::now()).unwrap();
        assert!(!path.exists());
    }
}
