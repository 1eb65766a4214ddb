//! Reading a container's log file (CRI's format) and following it while it grows.
//!
//! A task reads and a bounded channel holds what the client has not taken yet: a slow client slows its own
//! task and nothing else.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sampan_proto::sampan;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::{
    context::blocking,
    error::{Error, Result, at},
    pods::{ContainerId, Found, PodView, Pods},
    services::Feed,
};

/// How often a followed file is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// What is read at once, and so about the largest message.
const CHUNK: usize = 256 << 10;
/// Messages that may wait for a slow client.
const QUEUE: usize = 4;

/// Starts reading; the stream ends with the file, or with the container when it is followed.
pub(super) fn follow(
    pods: &Pods,
    found: &Found,
    request: &sampan::LogsRequest,
) -> Result<Feed<sampan::LogsResponse>> {
    let id = found.container.id.clone();
    let path = found
        .container
        .log_path
        .clone()
        .ok_or_else(|| Error::Precondition(format!("container {} was made without a log", id.short())))?;
    let reader = Reader::open(path, request.tail, request.since)?;
    let view = pods.watch(&found.pod.record.id)?;
    let (context, follow) = (pods.context().clone(), request.follow);
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move { context.feed(&sender, tell(reader, id, view, follow, &sender)).await });
    Ok(ReceiverStream::new(receiver))
}

async fn tell(
    mut reader: Reader,
    id: ContainerId,
    view: watch::Receiver<Arc<PodView>>,
    follow: bool,
    sender: &mpsc::Sender<Result<sampan::LogsResponse, Status>>,
) {
    loop {
        // Looked up before the read: what an ended container wrote is in the file by then.
        let ended = {
            let view = view.borrow();
            view.gone || view.containers.get(&id).is_none_or(|container| container.exit.is_some())
        };
        let (returned, read) = blocking(move || {
            let read = reader.next();
            (reader, read)
        })
        .await;
        reader = returned;
        match read {
            Ok(entries) if entries.is_empty() => {
                if ended || !follow {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
            Ok(entries) => {
                if sender.send(Ok(sampan::LogsResponse { entries })).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let _ = sender.send(Err(error.into())).await;
                return;
            }
        }
    }
}

/// What a log file has, from some place on.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    /// `None` until the container has made it.
    file: Option<File>,
    /// Of a line whose end has not been read.
    rest: Vec<u8>,
    since: i64,
}

impl Reader {
    /// Begins with as many of the last lines, all of them if negative, and no entry older than `since`.
    pub(crate) fn open(path: PathBuf, tail: i64, since: i64) -> Result<Reader> {
        let mut file = open(&path)?;
        if let (Some(file), Ok(lines)) = (&mut file, u64::try_from(tail)) {
            let start = tail_offset(file, lines).map_err(at("read", &path))?;
            file.seek(SeekFrom::Start(start)).map_err(at("read", &path))?;
        }
        Ok(Reader { path, file, rest: Vec::new(), since })
    }

    /// The entries that have come since; none at the end of what is there.
    pub(crate) fn next(&mut self) -> Result<Vec<sampan::LogEntry>> {
        if self.file.is_none() {
            self.file = open(&self.path)?;
        }
        let Some(file) = &mut self.file else { return Ok(Vec::new()) };
        let known = self.rest.len();
        self.rest.resize(known + CHUNK, 0);
        let length = file.read(&mut self.rest[known..]);
        self.rest.truncate(known + length.as_ref().copied().unwrap_or(0));
        if length.map_err(at("read", &self.path))? == 0 {
            self.reopen_if_rotated()?;
            return Ok(Vec::new());
        }
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let rest = self.rest.split_off(end);
        let lines = std::mem::replace(&mut self.rest, rest);
        let entries = lines.split_inclusive(|byte| *byte == b'\n').filter_map(parse);
        Ok(entries.filter(|entry| entry.timestamp >= self.since).collect())
    }

    fn reopen_if_rotated(&mut self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let same = match (file.metadata(), std::fs::metadata(&self.path)) {
            (Ok(own), Ok(named)) => own.ino() == named.ino() && own.dev() == named.dev(),
            // Gone: what was open is all there will be.
            _ => true,
        };
        if !same {
            self.file = open(&self.path)?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at("open", path)(error)),
    }
}

/// Where the last `lines` lines begin.
fn tail_offset(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let mut position = file.metadata()?.len();
    if lines == 0 {
        return Ok(position);
    }
    let mut block = vec![0; 64 << 10];
    // The line end of the last line does not begin another one.
    let mut ends = 0;
    while position > 0 {
        let length = position.min(block.len() as u64);
        position -= length;
        file.seek(SeekFrom::Start(position))?;
        let block = &mut block[..usize::try_from(length).unwrap_or(0)];
        file.read_exact(block)?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            ends += 1;
            if ends > lines {
                return Ok(position + index as u64 + 1);
            }
        }
    }
    Ok(0)
}

/// `RFC3339Nano stdout|stderr P|F text`; a line that is not so is left out.
fn parse(line: &[u8]) -> Option<sampan::LogEntry> {
    let text = line.strip_suffix(b"\n")?;
    let mut parts = text.splitn(4, |byte| *byte == b' ');
    let time: jiff::Timestamp = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let stream = match parts.next()? {
        b"stdout" => sampan::LogStream::Stdout,
        b"stderr" => sampan::LogStream::Stderr,
        _ => return None,
    };
    let whole = parts.next()?.starts_with(b"F");
    let mut data = parts.next().unwrap_or_default().to_vec();
    if whole {
        data.push(b'\n');
    }
    let timestamp = i64::try_from(time.as_nanosecond()).ok()?;
    Some(sampan::LogEntry { stream: stream as i32, timestamp, data })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read_all(reader: &mut Reader) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let entries = reader.next().unwrap();
            if entries.is_empty() {
                return all;
            }
            all.extend(entries.into_iter().map(|entry| String::from_utf8(entry.data).unwrap()));
        }
    }

    fn line(text: &str) -> String {
        format!("2026-01-02T03:04:05.000000006Z stdout F {text}\n")
    }

    #[test]
    fn partial_lines_carry_no_line_end() {
        let entry = parse(b"2026-01-02T03:04:05.000000006Z stderr P abc \n").unwrap();
        assert_eq!((entry.data.as_slice(), entry.stream), (&b"abc "[..], 2));
        assert_eq!(entry.timestamp % 1_000_000_000, 6);
        assert_eq!(parse(b"2026-01-02T03:04:05Z stdout F \n").unwrap().data, b"\n");
        assert!(parse(b"nonsense\n").is_none());
    }

    #[test]
    fn tail_gives_the_last_lines_and_following_gives_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file = File::create(&path).unwrap();
        for number in 0..5000 {
            file.write_all(line(&number.to_string()).as_bytes()).unwrap();
        }
        let mut reader = Reader::open(path.clone(), 3, 0).unwrap();
        assert_eq!(read_all(&mut reader), ["4997\n", "4998\n", "4999\n"]);
        let whole = line("later");
        let (half, other) = whole.split_at(20);
        file.write_all(half.as_bytes()).unwrap();
        assert!(read_all(&mut reader).is_empty());
        file.write_all(other.as_bytes()).unwrap();
        assert_eq!(read_all(&mut reader), ["later\n"]);
        assert_eq!(read_all(&mut Reader::open(path.clone(), -1, 0).unwrap()).len(), 5001);
        assert!(read_all(&mut Reader::open(path, 0, 0).unwrap()).is_empty());
    }

    #[test]
    fn a_rotated_log_is_followed_into_its_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, line("old")).unwrap();
        let mut reader = Reader::open(path.clone(), -1, 0).unwrap();
        assert_eq!(read_all(&mut reader), ["old\n"]);
        std::fs::rename(&path, folder.path().join("log.1")).unwrap();
        std::fs::write(&path, line("new")).unwrap();
        let mut all = read_all(&mut reader);
        all.extend(read_all(&mut reader));
        assert_eq!(all, ["new\n"]);
    }
}
