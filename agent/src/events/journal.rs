//! Events on disk: a JSON value a line, in two files of bounded size, of which the older one goes when the newer is
//! full.
//!
//! An event that could not be written leaves its number in a file of one block that is there from the start, so that a full
//! disk does not make the next agent give the same number to another event.
//!
//! Lines are not synced. A line that a crash has cut is dropped, and after a new boot numbers go on far above the last
//! that is known, since a power failure may have taken later ones.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Event;
use crate::error::{Result, at};

/// Bytes of a file before the next is begun.
const FULL: u64 = 4 << 20;
/// Numbers left out after a boot: more than the kernel keeps unwritten for half a minute.
const BOOT_GAP: u64 = 1000;

const NEW: &str = "journal";
const OLD: &str = "journal.old";
const UNWRITTEN: &str = "unwritten";

/// A line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// From here on events are of this boot.
    Boot(String),
    Event(Event),
}

/// The files, open for appending.
#[derive(Debug)]
pub(super) struct Journal {
    folder: PathBuf,
    pub(super) file: File,
    length: u64,
    boot_id: String,
    /// The number of the last event that could not be written, always as long.
    unwritten: File,
}

impl Journal {
    /// Opens or makes the journal; gives it with the number that the next event has.
    pub(super) fn open(folder: &Path, boot_id: &str) -> Result<(Journal, u64)> {
        fs::create_dir_all(folder).map_err(at("create", folder))?;
        let (mut last, mut boot) = (0, None);
        for name in [OLD, NEW] {
            let path = folder.join(name);
            let text = match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                read => read.map_err(at("read", path))?,
            };
            for line in lines(&text) {
                match line {
                    Line::Boot(id) => boot = Some(id),
                    Line::Event(event) => last = event.sequence,
                }
            }
        }
        let (unwritten, number) = unwritten(&folder.join(UNWRITTEN))?;
        last = last.max(number);
        let path = folder.join(NEW);
        let file = File::options().append(true).create(true).open(&path).map_err(at("open", &path))?;
        // What follows the last line's end is half a line.
        let text = fs::read(&path).map_err(at("read", &path))?;
        let length = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end as u64 + 1);
        file.set_len(length).map_err(at("cut", &path))?;
        let mut journal =
            Journal { folder: folder.to_owned(), file, length, boot_id: boot_id.to_owned(), unwritten };
        let same_boot = boot.as_deref().is_none_or(|boot| boot == boot_id);
        if boot.as_deref() != Some(boot_id) {
            journal.write(&Line::Boot(boot_id.to_owned())).map_err(at("write", &path))?;
        }
        Ok((journal, if same_boot { last + 1 } else { last + 1 + BOOT_GAP }))
    }

    pub(super) fn append(&mut self, event: &Event) -> io::Result<()> {
        let appended = self.append_line(event);
        if appended.is_err() {
            // In its place, which takes no room.
            self.unwritten.write_all_at(&number(event.sequence), 0)?;
        }
        appended
    }

    fn append_line(&mut self, event: &Event) -> io::Result<()> {
        if self.length >= FULL {
            let new = self.folder.join(NEW);
            fs::rename(&new, self.folder.join(OLD))?;
            self.file = File::options().append(true).create(true).open(new)?;
            self.length = 0;
            self.write(&Line::Boot(self.boot_id.clone()))?;
        }
        self.write(&Line::Event(event.clone()))
    }

    /// The files as they are now, to be read by [`events`] while others write on.
    pub(super) fn files(&self) -> Result<Vec<File>> {
        let mut files = Vec::new();
        for name in [OLD, NEW] {
            let path = self.folder.join(name);
            match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => files.push(opened.map_err(at("open", path))?),
            }
        }
        Ok(files)
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let written = self.file.write_all(&text);
        match written {
            Ok(()) => self.length += text.len() as u64,
            // Half a line must not become the beginning of the next.
            Err(_) => self.file.set_len(self.length)?,
        }
        written
    }
}

/// The events in these files from this number on.
pub(super) fn events(files: Vec<File>, from: u64) -> io::Result<VecDeque<Event>> {
    let mut events = VecDeque::new();
    for mut file in files {
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        events.extend(lines(&text).filter_map(|line| match line {
            Line::Event(event) if event.sequence >= from => Some(event),
            _ => None,
        }));
    }
    Ok(events)
}

/// The lines that make sense.
fn lines(text: &[u8]) -> impl Iterator<Item = Line> {
    let whole = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    whole.filter_map(|line| serde_json::from_slice(line).ok())
}

fn number(sequence: u64) -> Vec<u8> {
    format!("{sequence:020}\n").into_bytes()
}

/// The file of the last number that could not be written, made if missing, and the number.
fn unwritten(path: &Path) -> Result<(File, u64)> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let known = text.trim().parse().unwrap_or(0);
    let file =
        File::options().write(true).create(true).truncate(false).open(path).map_err(at("open", path))?;
    if text.is_empty() {
        file.write_all_at(&number(0), 0).map_err(at("write", path))?;
    }
    Ok((file, known))
}
