//! A build's context: what the client says there is, and as much of the content as a step asks for.
//!
//! ```text
//!  client: entries ─add▶ Telling ─end▶ Context ◀─look, names── COPY
//!                                        │ want(numbers) ─▶ Wanted event ─▶ client
//!                                        ◀── receive(number, bytes) ──────────┘
//! ```
//!
//! The client is not trusted: a path is plain, its parent came before it and is a directory, and nothing is there twice.
//! Nothing is laid out on this machine; the context is a table, and its files are named by their content. What a client
//! says unchanged of a file (inode, size and both times) is what it was the last time: its content is not asked for.

mod archive;
mod memory;

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{Read, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::fs::FileType;
use tokio::sync::{mpsc, watch};

use super::{
    Error, Event, Ignore,
    error::shown,
    files::{Files, Writer},
    now,
    tree::{Node, Tree, resolve, split},
};
use crate::{Digest, xattr::Attributes};

pub use archive::Sent;
pub(super) use archive::look;
pub(super) use memory::Memory;

/// More entries than any context has.
const ENTRIES: usize = 2_000_000;
/// As long as a path of Linux.
const PATH: usize = 4095;
const NAME: usize = 255;
/// What is left out of a context, where no Dockerfile has a file of its own for that.
const IGNORE: &str = ".dockerignore";
/// Longer texts are no Dockerfiles.
const MAX_TEXT: u64 = 8 << 20;
/// A file that is written to while it is sent may come to this much more than twice what it was.
const GROWTH: u64 = 64 << 20;
/// How long a client may say nothing while content is awaited.
const SILENCE: Duration = Duration::from_secs(120);

/// What the client says of a file.
#[derive(Clone, Debug, Default)]
pub struct ContextEntry {
    /// Relative, with single slashes.
    pub path: Vec<u8>,
    /// Type and permissions, as stat(2) has them.
    pub mode: u32,
    /// Of a regular file.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime: i64,
    /// Nanoseconds since 1970; 0: the file is not known again.
    pub ctime: i64,
    /// Tells it from another file of this path.
    pub inode: u64,
    /// Of a symbolic link.
    pub link: Vec<u8>,
    /// Major and minor number.
    pub device: (u32, u32),
    /// Extended attributes, sorted by name.
    pub attributes: Attributes,
}

/// A context that is being told.
#[derive(Debug)]
pub struct Telling {
    files: Arc<Files>,
    memory: Option<Arc<Memory>>,
    entries: Vec<ContextEntry>,
    by_path: HashMap<Vec<u8>, u32>,
    digests: Vec<Option<Digest>>,
}

/// What an ignore file leaves of a context that came whole.
#[derive(Debug)]
pub struct Ignoring {
    /// What is left.
    pub left: Telling,
    /// The Dockerfile's text, which may be left out itself; none if there is none.
    pub dockerfile: Option<Vec<u8>>,
    /// What was ignored.
    pub ignore: Option<Ignore>,
}

/// A context that has been told whole.
#[derive(Debug)]
pub struct Context {
    files: Arc<Files>,
    memory: Option<Arc<Memory>>,
    entries: Vec<ContextEntry>,
    by_path: HashMap<Vec<u8>, u32>,
    /// What is in each directory; the root's comes first, that of entry N is N + 1.
    children: Vec<Vec<u32>>,
    state: Mutex<State>,
    /// Counts what came of the client.
    arrivals: watch::Sender<u64>,
    /// Where content is asked for; none where all of it is here.
    events: Mutex<Option<mpsc::Sender<Event>>>,
    /// When it had been told, in nanoseconds since 1970: the time of what has none of its own.
    told: i64,
}

#[derive(Debug, Default)]
struct State {
    digests: Vec<Option<Digest>>,
    asked: HashSet<u32>,
    arriving: HashMap<u32, Writer>,
    failed: HashMap<u32, String>,
    gone: bool,
}

impl Telling {
    pub(super) fn new(files: Arc<Files>, memory: Option<Arc<Memory>>) -> Telling {
        Telling { files, memory, entries: Vec::new(), by_path: HashMap::new(), digests: Vec::new() }
    }

    /// Takes one entry.
    pub fn add(&mut self, entry: ContextEntry) -> Result<(), Error> {
        let digest = self.memory.as_ref().and_then(|memory| memory.find(&entry));
        let digest = digest.filter(|digest| self.files.touch(digest));
        self.add_known(entry, digest)
    }

    fn add_known(&mut self, entry: ContextEntry, digest: Option<Digest>) -> Result<(), Error> {
        let refused =
            |why: &str| Err(Error::Invalid(format!("the context's {:?} {why}", shown(&entry.path))));
        if self.entries.len() >= ENTRIES {
            return Err(Error::Limit(format!("the context has more than {ENTRIES} entries")));
        }
        if entry.path.is_empty() || entry.path.len() > PATH || entry.path.contains(&0) {
            return refused("is no path");
        }
        if entry
            .path
            .split(|byte| *byte == b'/')
            .any(|name| matches!(name, b"" | b"." | b"..") || name.len() > NAME)
        {
            return refused("is no plain path");
        }
        let (parent, _) = split(&entry.path);
        let above = self.by_path.get(parent).map(|number| self.entries[*number as usize].mode);
        if !parent.is_empty() && above.is_none_or(|mode| FileType::from_raw_mode(mode) != FileType::Directory)
        {
            return refused("is in no directory that was told before it");
        }
        match FileType::from_raw_mode(entry.mode) {
            FileType::Socket | FileType::Unknown => return refused("is nothing that can be copied"),
            FileType::Symlink
                if entry.link.is_empty() || entry.link.len() > PATH || entry.link.contains(&0) =>
            {
                return refused("leads nowhere");
            }
            _ => {}
        }
        for (name, value) in &entry.attributes {
            let fit = name == b"security.capability"
                || name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
            if !fit || name.len() > NAME || name.contains(&0) || value.len() > 64 << 10 {
                return refused("has an extended attribute that no layer may have");
            }
        }
        let number = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        if self.by_path.insert(entry.path.clone(), number).is_some() {
            return refused("is told twice");
        }
        self.entries.push(entry);
        self.digests.push(digest);
        Ok(())
    }

    /// Takes an entry of an archive: the last one of a name counts, and directories that it does not tell are implied.
    fn replace(&mut self, entry: ContextEntry, digest: Option<Digest>) -> Result<(), Error> {
        self.imply(split(&entry.path).0)?;
        let Some(number) = self.by_path.get(&entry.path).copied() else {
            return self.add_known(entry, digest);
        };
        let known = &mut self.entries[number as usize];
        let is_directory = |mode| FileType::from_raw_mode(mode) == FileType::Directory;
        if is_directory(known.mode) != is_directory(entry.mode) {
            return Err(Error::Invalid(format!(
                "the context's {:?} is a directory and something else",
                shown(&entry.path)
            )));
        }
        *known = entry;
        self.digests[number as usize] = digest;
        Ok(())
    }

    /// Takes another name of a file that is there; none if there is no such file.
    fn link(&mut self, path: Vec<u8>, target: &[u8]) -> Option<Result<(), Error>> {
        let number = *self.by_path.get(target)?;
        let entry = ContextEntry { path, ..self.entries[number as usize].clone() };
        Some(self.replace(entry, self.digests[number as usize].clone()))
    }

    fn imply(&mut self, path: &[u8]) -> Result<(), Error> {
        if path.is_empty() || self.by_path.contains_key(path) {
            return Ok(());
        }
        self.imply(split(path).0)?;
        let mode = FileType::Directory.as_raw_mode() | 0o755;
        let mtime = now();
        self.add_known(ContextEntry { path: path.to_vec(), mode, mtime, ..ContextEntry::default() }, None)
    }

    /// Applies the ignore file of a context that came whole: `NAME.dockerignore` beside the Dockerfile, else `.dockerignore`.
    /// Blocks.
    ///
    /// # Errors
    /// An ignore file with a mistake in it.
    pub fn ignoring(self, dockerfile: &str) -> Result<Ignoring, Error> {
        let text = self.text(dockerfile)?;
        let own = format!("{dockerfile}.dockerignore");
        let (name, patterns) = match (self.text(&own)?, self.text(IGNORE)?) {
            (Some(patterns), _) => (own.as_str(), patterns),
            (None, Some(patterns)) => (IGNORE, patterns),
            (None, None) => return Ok(Ignoring { left: self, dockerfile: text, ignore: None }),
        };
        let ignore = Ignore::parse(&String::from_utf8_lossy(&patterns))
            .map_err(|problem| Error::Invalid(format!("{name}: {problem}")))?;
        let mut kept: Vec<bool> = self.entries.iter().map(|entry| !ignore.excludes(&entry.path)).collect();
        // Parents come before what is in them.
        for (number, entry) in self.entries.iter().enumerate().rev() {
            if let Some(parent) = self.by_path.get(split(&entry.path).0)
                && kept[number]
            {
                kept[*parent as usize] = true;
            }
        }
        let mut left = Telling::new(self.files, self.memory);
        for ((entry, digest), kept) in self.entries.into_iter().zip(self.digests).zip(kept) {
            if kept {
                left.add_known(entry, digest)?;
            }
        }
        Ok(Ignoring { left, dockerfile: text, ignore: Some(ignore) })
    }

    /// A small text file whose content is here.
    fn text(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some(number) = self.by_path.get(path.trim_start_matches("./").as_bytes()) else {
            return Ok(None);
        };
        let Some(digest) = &self.digests[*number as usize] else { return Ok(None) };
        if self.entries[*number as usize].size > MAX_TEXT {
            return Err(Error::Limit(format!("{path} has more than {} MiB", MAX_TEXT >> 20)));
        }
        let mut text = Vec::new();
        let mut file = self.files.reader(digest)?;
        file.read_to_end(&mut text).map_err(Error::io("read", path.as_bytes()))?;
        Ok(Some(text))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// That was all. Content that is not here is asked for by `events`.
    pub fn end(self, events: Option<mpsc::Sender<Event>>) -> Context {
        let Telling { files, memory, entries, by_path, digests } = self;
        let mut children = vec![Vec::new(); entries.len() + 1];
        for (number, entry) in entries.iter().enumerate() {
            let parent = by_path.get(split(&entry.path).0).map_or(0, |parent| *parent as usize + 1);
            children[parent].push(number as u32);
        }
        for numbers in &mut children {
            numbers.sort_by(|a, b| entries[*a as usize].path.cmp(&entries[*b as usize].path));
        }
        let state = Mutex::new(State { digests, ..State::default() });
        let (arrivals, events) = (watch::Sender::new(0), Mutex::new(events));
        Context { files, memory, entries, by_path, children, state, arrivals, events, told: now() }
    }
}

impl Context {
    /// A context with nothing in it.
    pub(super) fn empty(files: Arc<Files>) -> Context {
        Telling::new(files, None).end(None)
    }

    /// Takes a piece of a file that was asked for. `error` says why there is no content; `end` that there is no more.
    pub fn receive(&self, number: u32, data: &[u8], end: bool, error: &str) -> Result<(), Error> {
        let path = self.entries.get(number as usize).map(|entry| shown(&entry.path));
        let mut state = self.state();
        if !state.asked.contains(&number) {
            return Err(Error::Client(format!("the client sends content {number}, which nobody asked for")));
        }
        if !error.is_empty() {
            let path = path.unwrap_or_default();
            state.failed.insert(number, format!("the client cannot read {path:?}: {error}"));
        } else {
            let mut writer = match state.arriving.remove(&number) {
                Some(writer) => writer,
                None => self.files.begin()?,
            };
            drop(state);
            let told = self.entries.get(number as usize).map_or(0, |entry| entry.size);
            if writer.size() + data.len() as u64 > told.saturating_mul(2).saturating_add(GROWTH) {
                let path = path.unwrap_or_default();
                return Err(Error::Client(format!("the client sends far more of {path:?} than it told")));
            }
            writer.write_all(data).map_err(Error::io("write", b"a file of the context"))?;
            if !end {
                self.state().arriving.insert(number, writer);
                self.arrivals.send_modify(|count| *count += 1);
                return Ok(());
            }
            let size = writer.size();
            let digest = writer.finish()?;
            if let (Some(memory), Some(entry)) = (&self.memory, self.entries.get(number as usize))
                && entry.size == size
            {
                memory.learn(entry, &digest);
            }
            state = self.state();
            state.digests[number as usize] = Some(digest);
        }
        state.asked.remove(&number);
        drop(state);
        self.arrivals.send_modify(|count| *count += 1);
        Ok(())
    }

    /// The client is gone: nobody waits for it in vain.
    pub fn abandon(&self) {
        self.state().gone = true;
        *self.events.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.arrivals.send_modify(|count| *count += 1);
    }

    /// Waits until the content of these files is here.
    pub(super) async fn fetch(&self, paths: impl Iterator<Item = &[u8]>) -> Result<(), Error> {
        let mut arrivals = self.arrivals.subscribe();
        let mut missing = self.missing(paths);
        let wanted: Vec<u32> = {
            let mut state = self.state();
            missing.iter().copied().filter(|number| state.asked.insert(*number)).collect()
        };
        // They come in the order in which they are asked for: whether that of the last is here is asked first and most.
        missing.reverse();
        for numbers in wanted.chunks(16 << 10) {
            let events =
                self.events.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(gone)?;
            events.send(Event::Wanted(numbers.to_vec())).await.map_err(|_| gone())?;
        }
        loop {
            {
                let state = self.state();
                while missing.pop_if(|number| state.digests[*number as usize].is_some()).is_some() {}
                if missing.is_empty() {
                    return Ok(());
                }
                let of_ours = |number: &u32| missing.binary_search_by(|other| number.cmp(other)).is_ok();
                if let Some((_, why)) = state.failed.iter().find(|(number, _)| of_ours(number)) {
                    return Err(Error::Client(why.clone()));
                }
                if state.gone {
                    return Err(gone());
                }
            }
            let waited = tokio::time::timeout(SILENCE, arrivals.changed()).await;
            waited
                .map_err(|_| {
                    Error::Client(format!(
                        "the client sent none of what it was asked for in {} s",
                        SILENCE.as_secs()
                    ))
                })?
                .map_err(|_| gone())?;
        }
    }

    /// Regular files whose content is not here, by their numbers, in order and once each.
    fn missing<'p>(&self, paths: impl Iterator<Item = &'p [u8]>) -> Vec<u32> {
        let state = self.state();
        let mut numbers: Vec<u32> = paths.filter_map(|path| self.by_path.get(path).copied()).collect();
        numbers.retain(|number| {
            let entry = &self.entries[*number as usize];
            FileType::from_raw_mode(entry.mode) == FileType::RegularFile
                && state.digests[*number as usize].is_none()
        });
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// The whole of a small text file.
    pub(super) async fn read(&self, path: &str) -> Result<Vec<u8>, Error> {
        let missing = || Error::Missing(format!("{path} is not in the build's context"));
        let found = resolve(self, path.as_bytes(), true)?.ok_or_else(missing)?;
        let node =
            self.look(&found)?.filter(|node| node.kind == FileType::RegularFile).ok_or_else(missing)?;
        if node.size > MAX_TEXT {
            return Err(Error::Limit(format!("{path} has more than {} MiB", MAX_TEXT >> 20)));
        }
        self.fetch(std::iter::once(&*found)).await?;
        let mut text = Vec::new();
        self.open(&found)?.take(MAX_TEXT).read_to_end(&mut text).map_err(Error::io("read", &found))?;
        Ok(text)
    }

    /// Keeps for the next build what was learned of files.
    pub(super) fn remember(&self) {
        if let Some(memory) = &self.memory {
            memory.save(self.entries.iter().zip(&self.state().digests));
        }
    }

    fn entry(&self, path: &[u8]) -> Option<(u32, &ContextEntry)> {
        let number = *self.by_path.get(path)?;
        Some((number, &self.entries[number as usize]))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds and nanoseconds.
fn parted(time: i64) -> (i64, u32) {
    (time.div_euclid(1_000_000_000), u32::try_from(time.rem_euclid(1_000_000_000)).unwrap_or_default())
}

fn gone() -> Error {
    Error::Client("the client is gone".into())
}

impl Tree for Context {
    fn look(&self, path: &[u8]) -> Result<Option<Node>, Error> {
        if path.is_empty() {
            return Ok(Some(Node {
                kind: FileType::Directory,
                mode: 0o755,
                uid: 0,
                gid: 0,
                size: 0,
                mtime: parted(self.told),
                link: Vec::new(),
                device: (0, 0),
                attributes: Attributes::new(),
                inode: None,
            }));
        }
        let Some((_, entry)) = self.entry(path) else { return Ok(None) };
        Ok(Some(Node {
            kind: FileType::from_raw_mode(entry.mode),
            mode: entry.mode & 0o7777,
            // Who owns a file elsewhere says nothing here.
            uid: 0,
            gid: 0,
            size: entry.size,
            mtime: parted(entry.mtime),
            link: entry.link.clone(),
            device: entry.device,
            attributes: entry.attributes.clone(),
            inode: None,
        }))
    }

    fn names(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let at =
            if path.is_empty() { Some(0) } else { self.entry(path).map(|(number, _)| number as usize + 1) };
        let numbers = at.map(|at| self.children[at].as_slice()).unwrap_or_default();
        Ok(numbers.iter().map(|number| split(&self.entries[*number as usize].path).1.to_vec()).collect())
    }

    fn open(&self, path: &[u8]) -> Result<File, Error> {
        self.files.reader(&self.digest(path)?)
    }

    fn digest(&self, path: &[u8]) -> Result<Digest, Error> {
        let known = self.entry(path).and_then(|(number, _)| self.state().digests[number as usize].clone());
        known.ok_or_else(|| Error::Client(format!("the content of {:?} was not sent", shown(path))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: String) -> ContextEntry {
        ContextEntry { path: path.into_bytes(), mode: 0o100_644, size: 1, ..ContextEntry::default() }
    }

    fn files() -> (tempfile::TempDir, Arc<Files>) {
        let root = tempfile::tempdir().unwrap();
        let files = Arc::new(Files::open(root.path(), "boot").unwrap());
        (root, files)
    }

    #[tokio::test]
    async fn a_million_entries_are_taken_and_awaited_in_reasonable_time() {
        let (_root, files) = files();
        let began = std::time::Instant::now();
        let mut telling = Telling::new(files, None);
        for number in 0..1_000_000 {
            telling.add(file(format!("f{number}"))).unwrap();
        }
        let (events, mut told) = mpsc::channel(100);
        let context = Arc::new(telling.end(Some(events)));
        let names: Vec<Vec<u8>> = (0..20_000).map(|number| format!("f{number}").into_bytes()).collect();
        let fetching = {
            let context = context.clone();
            tokio::spawn(async move { context.fetch(names.iter().map(Vec::as_slice)).await })
        };
        let mut sent = 0;
        while sent < 20_000 {
            let Some(Event::Wanted(numbers)) = told.recv().await else { panic!("no wish") };
            for number in numbers {
                context.receive(number, b"x", true, "").unwrap();
                sent += 1;
                if sent % 64 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        }
        fetching.await.unwrap().unwrap();
        assert!(began.elapsed() < Duration::from_secs(120), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn what_cannot_be_read_and_what_comes_unasked_or_too_large_is_told() {
        let (_root, files) = files();
        let mut telling = Telling::new(files, None);
        for name in ["a", "b"] {
            telling.add(file(name.to_owned())).unwrap();
        }
        let (events, _told) = mpsc::channel(100);
        let context = Arc::new(telling.end(Some(events)));
        let fetching = {
            let context = context.clone();
            tokio::spawn(async move { context.fetch([&b"a"[..], b"b"].into_iter()).await })
        };
        while context.missing([&b"a"[..]].into_iter()).is_empty() || !context.state().asked.contains(&1) {
            tokio::task::yield_now().await;
        }
        assert!(context.receive(7, b"", true, "").unwrap_err().to_string().contains("nobody asked"));
        let large = vec![0; 33 << 20];
        context.receive(0, &large, false, "").unwrap();
        let error = context.receive(0, &large, false, "").unwrap_err();
        assert!(error.to_string().contains("far more of \"a\""), "{error}");
        context.receive(1, b"", true, "permission denied").unwrap();
        let error = fetching.await.unwrap().unwrap_err();
        assert!(error.to_string().contains("permission denied"), "{error}");
    }
}
