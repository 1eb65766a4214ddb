//! Events on disk: a JSON value a line, in two files of bounded size, of which the older one goes when the newer is
//! full.
//!
//! Lines are not synced. A line that a crash has cut is dropped, and after a new boot numbers go on far above the last
//! that is known, since a power failure may have taken later ones.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Write},
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
    file: File,
    length: u64,
    boot_id: String,
}

impl Journal {
    /// Opens or makes the journal; gives it with the number that the next event has.
    pub(super) fn open(folder: &Path, boot_id: &str) -> Result<(Journal, u64)> {
        fs::create_dir_all(folder).map_err(at("create", folder))?;
        let (mut last, mut boot) = (0, None);
        for name in [OLD, NEW] {
            for line in lines(&folder.join(name))? {
                match line {
                    Line::Boot(id) => boot = Some(id),
                    Line::Event(event) => last = event.sequence,
                }
            }
        }
        let path = folder.join(NEW);
        let file = File::options().append(true).create(true).open(&path).map_err(at("open", &path))?;
        // What follows the last line's end is half a line.
        let text = fs::read(&path).map_err(at("read", &path))?;
        let length = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end as u64 + 1);
        file.set_len(length).map_err(at("cut", &path))?;
        let mut journal = Journal { folder: folder.to_owned(), file, length, boot_id: boot_id.to_owned() };
        let same_boot = boot.as_deref().is_none_or(|boot| boot == boot_id);
        if boot.as_deref() != Some(boot_id) {
            journal.write(&Line::Boot(boot_id.to_owned())).map_err(at("write", &path))?;
        }
        Ok((journal, if same_boot { last + 1 } else { last + 1 + BOOT_GAP }))
    }

    pub(super) fn append(&mut self, event: &Event) -> io::Result<()> {
        if self.length >= FULL {
            let new = self.folder.join(NEW);
            fs::rename(&new, self.folder.join(OLD))?;
            self.file = File::options().append(true).create(true).open(new)?;
            self.length = 0;
            self.write(&Line::Boot(self.boot_id.clone()))?;
        }
        self.write(&Line::Event(event.clone()))
    }

    /// The events from this number on that are still kept.
    pub(super) fn read(&self, from: u64) -> Result<VecDeque<Event>> {
        let mut events = VecDeque::new();
        for name in [OLD, NEW] {
            let wanted = lines(&self.folder.join(name))?.into_iter().filter_map(|line| match line {
                Line::Event(event) if event.sequence >= from => Some(event),
                _ => None,
            });
            events.extend(wanted);
        }
        Ok(events)
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

/// The lines of a file that make sense; none of a file that is not there.
fn lines(path: &Path) -> Result<Vec<Line>> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(at("read", path))?,
    };
    let whole = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    Ok(whole.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}
