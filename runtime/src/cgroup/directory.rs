//! One cgroup's directory in one hierarchy: its control files, read and written through its descriptor.
//!
//! A write is one system call, as control files want it. Errors name the file and the value.
//! A directory that was opened for an update notes in its journal what each file said before.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::Error;
use super::journal::Journal;

pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    journal: Option<Journal>,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Directory, Error> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(Error::io("open", path))?;
        Ok(Directory { fd, path: path.to_owned(), journal: None })
    }

    /// From now on `journal` learns what files said before they are written.
    pub(super) fn noting(mut self, journal: Option<&Journal>) -> Directory {
        self.journal = journal.cloned();
        self
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A descriptor of the directory that more can be done with than naming it.
    pub(super) fn reopen(&self) -> Result<OwnedFd, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, ".", flags, Mode::empty()).map_err(Error::io("open", &self.path))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        rustix::fs::accessat(&self.fd, name, rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty()).is_ok()
    }

    /// Sets a file that holds one value, or that takes back its own lines as they are.
    pub(super) fn write(&self, name: &str, value: &str) -> Result<(), Error> {
        self.write_each(name, std::iter::once(value))
    }

    /// Several values to one file, each in a write of its own, the file opened once.
    pub(super) fn write_each<V: AsRef<str>>(
        &self,
        name: &str,
        values: impl Iterator<Item = V>,
    ) -> Result<(), Error> {
        let Some(journal) = &self.journal else { return self.write_all(name, values) };
        // What can't be read can't be restored either: such files do something rather than hold something.
        let before = self.read(name).unwrap_or_default();
        let mut before = Some(match before.contains('\n') {
            true => before.lines().map(str::to_owned).collect(),
            false => vec![before],
        });
        for value in values {
            self.write_all(name, std::iter::once(value))?;
            if let Some(before) = before.take() {
                journal.note(&self.path.join(name), before);
            }
        }
        Ok(())
    }

    /// Sets a file that shows something else than it takes; `before` is what would restore it.
    pub(super) fn write_noting(&self, name: &str, value: &str, before: &str) -> Result<(), Error> {
        self.write_all(name, std::iter::once(value))?;
        if let Some(journal) = &self.journal {
            journal.note(&self.path.join(name), vec![before.to_owned()]);
        }
        Ok(())
    }

    /// Sets some of the lines of a file with a key at the start of each. A key that has no line gets one with `unset`
    /// when the write is undone.
    pub(super) fn write_keyed(&self, name: &str, lines: &[String], unset: &str) -> Result<(), Error> {
        let Some(journal) = &self.journal else { return self.write_all(name, lines.iter()) };
        for line in lines {
            let text = self.read(name).unwrap_or_default();
            let key = first_word(line);
            let old = text.lines().find(|old| first_word(old) == key);
            let before = old.map_or_else(|| format!("{key} {unset}"), str::to_owned);
            self.write_all(name, std::iter::once(line))?;
            journal.note(&self.path.join(name), vec![before]);
        }
        Ok(())
    }

    fn write_all<V: AsRef<str>>(&self, name: &str, values: impl Iterator<Item = V>) -> Result<(), Error> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.fd, name, flags, Mode::empty())
            .map_err(|errno| Error::io("open", self.path.join(name))(errno))?;
        for value in values {
            let value = value.as_ref();
            rustix::io::write(&file, value.as_bytes()).map_err(|errno| Error::Write {
                value: value.to_owned(),
                path: self.path.join(name),
                source: errno.into(),
            })?;
        }
        Ok(())
    }

    /// The names of the control files and of the cgroups below.
    pub(super) fn names(&self) -> Result<Vec<String>, Error> {
        let failed = || Error::io("readdir", &self.path);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(self.reopen()?).map_err(failed())? {
            names.push(entry.map_err(failed())?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    pub(super) fn read(&self, name: &str) -> Result<String, Error> {
        let file = self.open_file(name)?;
        let mut buffer = Vec::new();
        file.read(&mut buffer).map(|bytes| String::from_utf8_lossy(bytes).trim_end().to_owned())
    }

    /// A control file to be read again and again.
    pub(super) fn open_file(&self, name: &str) -> Result<ControlFile, Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty())
            .map_err(|errno| Error::io("open", self.path.join(name))(errno))?;
        Ok(ControlFile { fd, path: self.path.join(name) })
    }

    /// As `open_file`, for a file that some kernels lack.
    pub(super) fn open_optional(&self, name: &str) -> Result<Option<ControlFile>, Error> {
        match self.open_file(name) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn first_word(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

/// An open control file; each read starts at its beginning and makes the kernel compute it anew.
#[derive(Debug)]
pub(super) struct ControlFile {
    fd: OwnedFd,
    path: PathBuf,
}

impl AsFd for ControlFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl ControlFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file in `buffer`, which grows when needed and can be used again.
    pub(super) fn read<'b>(&self, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], Error> {
        if buffer.len() < 4096 {
            buffer.resize(4096, 0);
        }
        let mut length = 0;
        loop {
            let count = rustix::io::pread(&self.fd, &mut buffer[length..], length as u64)
                .map_err(|errno| Error::io("read", &self.path)(errno))?;
            length += count;
            // A statistics file is one record: a read that leaves room in the buffer has reached its end.
            if count == 0 || length < buffer.len() {
                return Ok(&buffer[..length]);
            }
            buffer.resize(buffer.len() * 2, 0);
        }
    }

    /// A file with one number; `max` is None.
    pub(super) fn number(&self, buffer: &mut Vec<u8>) -> Result<Option<u64>, Error> {
        let text = self.read(buffer)?.trim_ascii();
        if text == b"max" {
            return Ok(None);
        }
        number(text).map(Some).ok_or_else(|| Error::Contents { path: self.path.clone() })
    }
}

/// Asks `condition` again and again, ever less often, until it holds; false when it doesn't within `deadline`.
pub(super) fn within(
    deadline: Duration,
    mut condition: impl FnMut() -> Result<bool, Error>,
) -> Result<bool, Error> {
    let since = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        if condition()? {
            return Ok(true);
        }
        let left = deadline.saturating_sub(since.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// A decimal number.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, &byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        value.checked_mul(10)?.checked_add(digit.into())
    })
}

/// The `name value` lines of a flat keyed file.
pub(super) fn pairs(text: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let space = line.iter().position(|byte| *byte == b' ')?;
        Some((&line[..space], number(line[space + 1..].trim_ascii())?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_and_bounded() {
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
        for bad in [&b""[..], b"-1", b"18446744073709551616", b"1 2"] {
            assert_eq!(number(bad), None);
        }
    }

    #[test]
    fn files_longer_than_a_page_are_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("memory.stat"), vec![b'7'; 10_000]).unwrap();
        let file = Directory::open(dir.path()).unwrap().open_file("memory.stat").unwrap();
        assert_eq!(file.read(&mut Vec::new()).unwrap().len(), 10_000);
    }

    #[test]
    fn write_error_names_value_and_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = Directory::open(dir.path()).unwrap().write("pids.max", "5").unwrap_err();
        assert!(error.is_not_found() && error.to_string().contains("pids.max"), "{error}");
    }
}
