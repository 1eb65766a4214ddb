//! A container's output on its way to its log, in the format that CRI prescribes:
//! `TIME stdout|stderr P|F TEXT`, where `P` marks a piece of a line that is longer than 16 KiB.
//!
//! Reading never depends on writing: what can't be written is dropped and counted, so that a full disk never blocks
//! a container. The file holds whole lines only: a line cut off by a full disk is taken back. One batch of output
//! costs one read and one write, and memory is held only for a line that isn't finished yet.

pub(crate) mod timestamp;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

/// A longer piece of text without a line's end is written as a partial line.
const MAX_LINE: usize = 16 * 1024;

/// The formatted lines of most batches fit in this.
const MAX_WRITE: usize = 32 * 1024;

/// The buffers that all streams of a shim share. They grow to their full size at the first busy stream.
pub(super) struct Buffers {
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Buffers {
    pub(super) fn new() -> Buffers {
        Buffers { input: Vec::new(), output: Vec::new() }
    }

    /// Gives the memory back; the next batch takes it anew.
    pub(super) fn release(&mut self) {
        *self = Buffers::new();
    }
}

/// An open log file.
pub(super) struct Log {
    path: PathBuf,
    file: OwnedFd,
    /// Bytes that could not be written since the last success.
    dropped: u64,
}

impl Log {
    /// Opens or makes the file. It must be a regular one: a FIFO could block us, and a link lead elsewhere.
    pub(super) fn open(path: &Path) -> io::Result<Log> {
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::CLOEXEC
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o640))?;
        match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
            FileType::RegularFile => Ok(Log { path: path.to_owned(), file, dropped: 0 }),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        }
    }

    /// Opens the path again; on failure the old file stays.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.file = Log::open(&self.path)?.file;
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes whole lines. Returns an error when dropping begins, for somebody to say so once.
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while written < lines.len() {
            match rustix::io::write(&self.file, &lines[written..]) {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(errno) => return self.give_up(lines, written, errno),
            }
        }
        self.dropped = 0;
        Ok(())
    }

    fn give_up(&mut self, lines: &[u8], written: usize, errno: Errno) -> io::Result<()> {
        let whole = lines[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < written {
            let cut = rustix::fs::fstat(&self.file).and_then(|stat| {
                rustix::fs::ftruncate(
                    &self.file,
                    (stat.st_size as u64).saturating_sub((written - whole) as u64),
                )
            });
            // Then the file has half a line in it, which readers have to live with.
            let _ = cut;
        }
        let first = self.dropped == 0;
        self.dropped += (lines.len() - whole) as u64;
        if first { Err(errno.into()) } else { Ok(()) }
    }
}

/// What a read of a stream found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Some output.
    Read(usize),
    /// Nothing now.
    Empty,
    /// Nobody holds the other end any more.
    End,
}

/// Our end of a container's standard output or error.
pub(super) struct Stream {
    name: &'static [u8; 6],
    pipe: OwnedFd,
    /// The beginning of a line whose end has not come yet.
    unfinished: Vec<u8>,
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl Stream {
    /// `name` is `stdout` or `stderr`; `pipe` a nonblocking end for reading.
    pub(super) fn new(name: &'static [u8; 6], pipe: OwnedFd) -> Stream {
        Stream { name, pipe, unfinished: Vec::new() }
    }

    /// Moves a batch of output to the log, if there is one, and shows it to `copy`.
    pub(super) fn pump(
        &mut self,
        buffers: &mut Buffers,
        log: Option<&mut Log>,
        copy: impl FnOnce(&[u8]),
    ) -> (Progress, io::Result<()>) {
        let input = &mut buffers.input;
        input.clear();
        input.reserve_exact(MAX_LINE);
        input.extend_from_slice(&self.unfinished);
        let progress = match rustix::io::read(&self.pipe, rustix::buffer::spare_capacity(input)) {
            Ok(0) => Progress::End,
            Ok(count) => Progress::Read(count),
            // EIO is of a terminal that nobody has open now. Somebody may open it again while the container lives.
            Err(Errno::AGAIN | Errno::INTR | Errno::IO) => return (Progress::Empty, Ok(())),
            Err(_) => Progress::End,
        };
        copy(&input[self.unfinished.len()..]);
        let Some(log) = log else { return (progress, Ok(())) };
        let mut batch = Batch::new(self.name, &mut buffers.output, log);
        let rest = batch.lines(&input[..], progress == Progress::End);
        let result = batch.finish();
        let rest = &input[input.len() - rest..];
        self.unfinished.clear();
        match rest.len() {
            // Almost all output comes in lines: memory for the exception is not kept.
            0 => self.unfinished = Vec::new(),
            length => {
                self.unfinished.reserve_exact(length);
                self.unfinished.extend_from_slice(rest);
            }
        }
        (progress, result)
    }

    /// Writes the beginning of a line whose end will not come, and closes the pipe.
    pub(super) fn finish(self, buffers: &mut Buffers, log: &mut Log) -> io::Result<()> {
        let mut batch = Batch::new(self.name, &mut buffers.output, log);
        batch.lines(&self.unfinished, true);
        batch.finish()
    }
}

/// `TIME STREAM F `, with the place of the tag.
fn header(time: &[u8; timestamp::LENGTH], name: &[u8; 6]) -> [u8; HEADER] {
    let mut header = [b' '; HEADER];
    header[..timestamp::LENGTH].copy_from_slice(time);
    header[timestamp::LENGTH + 1..timestamp::LENGTH + 7].copy_from_slice(name);
    header
}

const TAG: usize = timestamp::LENGTH + 8;
const HEADER: usize = TAG + 2;

/// Lines with one time, on their way to one write.
struct Batch<'a> {
    header: [u8; HEADER],
    output: &'a mut Vec<u8>,
    log: &'a mut Log,
    result: io::Result<()>,
}

impl<'a> Batch<'a> {
    fn new(name: &[u8; 6], output: &'a mut Vec<u8>, log: &'a mut Log) -> Batch<'a> {
        let now = clock_gettime(ClockId::Realtime);
        let time = timestamp::format(now.tv_sec, now.tv_nsec as u32);
        Batch { header: header(&time, name), output, log, result: Ok(()) }
    }

    fn finish(mut self) -> io::Result<()> {
        self.flush();
        self.result
    }

    /// Formats the lines of `text` and returns how many bytes at its end are no line yet.
    fn lines(&mut self, mut text: &[u8], end: bool) -> usize {
        while let Some(length) = text.iter().position(|byte| *byte == b'\n') {
            self.line(b'F', &text[..length]);
            text = &text[length + 1..];
        }
        if text.len() >= MAX_LINE {
            self.line(b'P', text);
            return 0;
        }
        if end && !text.is_empty() {
            self.line(b'F', text);
            return 0;
        }
        text.len()
    }

    fn line(&mut self, tag: u8, text: &[u8]) {
        let length = HEADER + text.len() + 1;
        if self.output.len() + length > MAX_WRITE {
            self.flush();
        }
        self.header[TAG] = tag;
        self.output.reserve(length);
        self.output.extend_from_slice(&self.header);
        self.output.extend_from_slice(text);
        self.output.push(b'\n');
    }

    fn flush(&mut self) {
        if self.output.is_empty() {
            return;
        }
        let result = self.log.write(self.output);
        if self.result.is_ok() {
            self.result = result;
        }
        self.output.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    struct Fixture {
        directory: tempfile::TempDir,
        writer: OwnedFd,
        stream: Stream,
        log: Log,
        buffers: Buffers,
    }

    impl Fixture {
        fn new() -> Fixture {
            let directory = tempfile::tempdir().unwrap();
            let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
            let log = Log::open(&directory.path().join("log")).unwrap();
            Fixture {
                directory,
                writer,
                stream: Stream::new(b"stdout", reader),
                log,
                buffers: Buffers::new(),
            }
        }

        fn write(&self, text: &[u8]) {
            assert_eq!(rustix::io::write(&self.writer, text).unwrap(), text.len());
        }

        fn pump(&mut self) -> Progress {
            let mut copied = Vec::new();
            let copy = |output: &[u8]| copied.extend_from_slice(output);
            let (progress, result) = self.stream.pump(&mut self.buffers, Some(&mut self.log), copy);
            result.unwrap();
            match progress {
                Progress::Read(count) => assert_eq!(copied.len(), count),
                _ => assert!(copied.is_empty()),
            }
            progress
        }

        /// The lines without their times, which are checked.
        fn lines(&self) -> Vec<String> {
            let text = std::fs::read_to_string(self.directory.path().join("log")).unwrap();
            let line = |line: &str| {
                let (time, rest) = line.split_once(' ').unwrap();
                assert!(time.len() == 30 && time.ends_with('Z'), "{time}");
                rest.to_owned()
            };
            text.lines().map(line).collect()
        }
    }

    #[test]
    fn lines_are_written_as_they_come_and_the_rest_waits_for_its_end() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.pump(), Progress::Empty);
        fixture.write(b"one\n\ntwo");
        assert_eq!(fixture.pump(), Progress::Read(8));
        assert_eq!(fixture.lines(), ["stdout F one", "stdout F "]);
        fixture.write(b" and a half\n");
        fixture.pump();
        assert_eq!(fixture.lines()[2..], ["stdout F two and a half"]);
        assert_eq!(fixture.stream.unfinished.capacity(), 0);
    }

    #[test]
    fn a_line_without_end_is_finished_by_the_end_of_the_stream() {
        let mut fixture = Fixture::new();
        fixture.write(b"prompt> ");
        fixture.pump();
        assert!(fixture.lines().is_empty());
        let (_, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(std::mem::replace(&mut fixture.writer, writer));
        assert_eq!(fixture.pump(), Progress::End);
        assert_eq!(fixture.lines(), ["stdout F prompt> "]);
    }

    #[test]
    fn long_lines_come_in_pieces_of_16_kib() {
        let mut fixture = Fixture::new();
        let mut text = vec![b'x'; 40_000];
        text.push(b'\n');
        fixture.write(&text);
        while fixture.pump() != Progress::Empty {}
        let lines = fixture.lines();
        let tags: Vec<_> = lines.iter().map(|line| (&line[..8], line.len() - 9)).collect();
        assert_eq!(
            tags,
            [("stdout P", MAX_LINE), ("stdout P", MAX_LINE), ("stdout F", 40_000 - 2 * MAX_LINE)]
        );
    }

    #[test]
    fn many_short_lines_need_more_than_one_write() {
        let mut fixture = Fixture::new();
        fixture.write(&[b'\n'; 5000]);
        assert_eq!(fixture.pump(), Progress::Read(5000));
        assert_eq!(fixture.lines().len(), 5000);
    }

    #[test]
    fn reopening_follows_the_path_and_a_failure_keeps_the_old_file() {
        let mut fixture = Fixture::new();
        let path = fixture.directory.path().join("log");
        let moved = fixture.directory.path().join("log.1");
        std::fs::rename(&path, &moved).unwrap();
        fixture.write(b"old\n");
        fixture.pump();
        std::fs::create_dir(&path).unwrap();
        assert!(fixture.log.reopen().is_err());
        fixture.write(b"still old\n");
        fixture.pump();
        std::fs::remove_dir(&path).unwrap();
        fixture.log.reopen().unwrap();
        fixture.write(b"new\n");
        fixture.pump();
        assert_eq!(fixture.lines(), ["stdout F new"]);
        assert_eq!(std::fs::read_to_string(&moved).unwrap().lines().count(), 2);
    }

    #[test]
    fn only_regular_files_are_logs() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Log::open(Path::new("/dev/null")).is_err());
        std::os::unix::fs::symlink("/dev/null", directory.path().join("link")).unwrap();
        assert!(Log::open(&directory.path().join("link")).is_err());
        assert!(Log::open(&directory.path().join("missing/log")).is_err());
        assert!(!directory.path().join("missing").exists());
    }

    #[test]
    fn a_failing_write_is_told_once_and_counted() {
        let mut fixture = Fixture::new();
        fixture.log.file = rustix::fs::open("/dev/full", OFlags::WRONLY, Mode::empty()).unwrap();
        fixture.write(b"lost\n");
        let (_, first) = fixture.stream.pump(&mut fixture.buffers, Some(&mut fixture.log), |_| ());
        assert_eq!(first.unwrap_err().kind(), io::ErrorKind::StorageFull);
        fixture.write(b"lost too\n");
        fixture.pump();
        assert_eq!(fixture.log.dropped, 2 * (HEADER as u64 + 1) + 12);
        fixture.log.reopen().unwrap();
        fixture.write(b"back\n");
        fixture.pump();
        assert_eq!((fixture.log.dropped, fixture.lines()), (0, vec!["stdout F back".to_owned()]));
    }
}
