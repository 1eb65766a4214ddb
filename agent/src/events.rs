//! What happens to pods, containers and images: numbered, kept on disk, and told to whoever listens.
//!
//! The newest events are in memory together with the pod as it was right after; older ones are in the journal, which
//! keeps a bounded number of them across restarts. Who listens is never waited for: a listener that falls behind
//! memory reads the journal, and one that falls behind the journal is told of the gap.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;

use crate::{
    context::{blocking, now},
    error::{Error, Result, at},
    pods::PodView,
};

mod journal;

use journal::Journal;

/// Events kept in memory, each with a view of its pod.
const MEMORY: usize = 256;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Greater than that of every event before.
    pub sequence: u64,
    /// Nanoseconds since 1970.
    pub at: i64,
    /// To what.
    pub object: Object,
    /// What.
    pub action: Action,
    /// Id of the object.
    pub id: String,
    /// The pod that a container is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Such as name and image.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// What events are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Object {
    /// A pod.
    Pod,
    /// A container.
    Container,
    /// An image.
    Image,
}

/// What happened, in docker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It was made.
    Create,
    /// It runs.
    Start,
    /// The kernel killed one of its processes for want of memory.
    Oom,
    /// It has ended.
    Die,
    /// It is gone.
    Remove,
    /// It was fetched.
    Pull,
}

impl Object {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Object::Pod => "pod",
            Object::Container => "container",
            Object::Image => "image",
        }
    }
}

impl Action {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Action::Create => "create",
            Action::Start => "start",
            Action::Oom => "oom",
            Action::Die => "die",
            Action::Remove => "remove",
            Action::Pull => "pull",
        }
    }
}

/// An event that has just happened, with its pod as it was right after.
#[derive(Debug, Clone)]
pub struct Told {
    /// The event.
    pub event: Arc<Event>,
    /// Of a pod or container; `None` for images and for what is read from the journal.
    pub pod: Option<Arc<PodView>>,
}

/// The next thing a listener hears.
#[derive(Debug, Clone)]
pub enum Heard {
    /// An event.
    Event(Told),
    /// Events of these numbers, both included, can't be told any more.
    Gap {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
}

/// All events of the agent.
#[derive(Debug)]
pub struct Events {
    inner: Mutex<Inner>,
    /// The number that the next event will have.
    next: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    journal: Journal,
    memory: VecDeque<Told>,
}

impl Events {
    /// Goes on where the journal below `root` ends. `boot_id` is the machine's present one.
    ///
    /// # Errors
    /// A journal that can't be opened or written.
    pub fn open(root: &Path, boot_id: &str) -> Result<Events> {
        let (journal, next) = Journal::open(&root.join("events"), boot_id)?;
        let inner = Mutex::new(Inner { journal, memory: VecDeque::new() });
        Ok(Events { inner, next: watch::Sender::new(next) })
    }

    /// Tells of something that has happened. A journal that can't be written costs later listeners this event.
    pub fn tell(
        &self,
        object: Object,
        action: Action,
        id: impl Into<String>,
        pod: Option<Arc<PodView>>,
        attributes: impl IntoIterator<Item = (&'static str, String)>,
    ) {
        let mut inner = self.inner();
        let sequence = *self.next.borrow();
        let event = Event {
            sequence,
            at: now(),
            object,
            action,
            id: id.into(),
            pod: pod.as_ref().filter(|_| object == Object::Container).map(|pod| pod.record.id.to_string()),
            attributes: attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        };
        if let Err(error) = inner.journal.append(&event) {
            warn!(%error, "an event could not be written to the journal");
        }
        if inner.memory.len() == MEMORY {
            inner.memory.pop_front();
        }
        inner.memory.push_back(Told { event: Arc::new(event), pod });
        self.next.send_replace(sequence + 1);
    }

    /// Listens from the event of that number on, or to what happens next.
    pub fn listen(self: &Arc<Events>, from: Option<u64>) -> Listener {
        let seen = self.next.subscribe();
        let next = from.unwrap_or_else(|| *seen.borrow());
        Listener { events: self.clone(), seen, next, replayed: VecDeque::new() }
    }

    /// The number of the oldest event that is kept, or of the next one.
    pub async fn oldest(self: &Arc<Events>) -> u64 {
        let first = self.kept(0).await;
        first.front().map_or(*self.next.borrow(), |event| event.sequence)
    }

    /// The events from this number on that the journal has.
    async fn kept(self: &Arc<Events>, from: u64) -> VecDeque<Event> {
        let events = self.clone();
        let read = blocking(move || {
            // Others tell of events while the files, which may be long, are read.
            let files = events.inner().journal.files()?;
            journal::events(files, from).map_err(at("read", "the journal of events"))
        });
        read.await.unwrap_or_else(|error: Error| {
            warn!(error = %error.chain(), "the journal of events could not be read");
            VecDeque::new()
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who hears every event once, in order.
#[derive(Debug)]
pub struct Listener {
    events: Arc<Events>,
    seen: watch::Receiver<u64>,
    next: u64,
    /// Read from the journal, and not told yet.
    replayed: VecDeque<Event>,
}

impl Listener {
    /// The next thing, when it happens.
    pub async fn next(&mut self) -> Heard {
        loop {
            if let Some(heard) = self.now().await {
                return heard;
            }
            let next = self.next;
            if self.seen.wait_for(|known| *known > next).await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// The next thing that has happened already.
    pub async fn now(&mut self) -> Option<Heard> {
        let known = *self.seen.borrow();
        if known <= self.next {
            return None;
        }
        if self.replayed.is_empty() {
            if let Some(told) = self.remembered() {
                self.next = told.event.sequence + 1;
                return Some(Heard::Event(told));
            }
            self.replayed = self.events.kept(self.next).await;
        }
        let Some(event) = self.replayed.front() else { return Some(self.gap(known)) };
        if event.sequence > self.next {
            return Some(self.gap(event.sequence));
        }
        self.next = event.sequence + 1;
        let event = self.replayed.pop_front()?;
        Some(Heard::Event(Told { event: Arc::new(event), pod: None }))
    }

    fn remembered(&self) -> Option<Told> {
        let inner = self.events.inner();
        let first = inner.memory.front()?.event.sequence;
        let index = usize::try_from(self.next.checked_sub(first)?).ok()?;
        inner.memory.get(index).cloned()
    }

    fn gap(&mut self, until: u64) -> Heard {
        let from = std::mem::replace(&mut self.next, until);
        Heard::Gap { from, to: until - 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(events: &Events, id: usize) {
        events.tell(Object::Image, Action::Pull, id.to_string(), None, [("name", "x".to_owned())]);
    }

    async fn heard(listener: &mut Listener) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(heard) = listener.now().await {
            all.push(match heard {
                Heard::Event(told) => format!("{}:{}", told.event.sequence, told.event.id),
                Heard::Gap { from, to } => format!("gap {from}-{to}"),
            });
        }
        all
    }

    #[tokio::test]
    async fn listeners_hear_every_event_once_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let events = Arc::new(Events::open(folder.path(), "boot").unwrap());
        tell(&events, 0);
        let (mut late, mut early) = (events.listen(None), events.listen(Some(1)));
        tell(&events, 1);
        assert_eq!(heard(&mut late).await, ["2:1"]);
        assert_eq!(heard(&mut early).await, ["1:0", "2:1"]);
        let waiting = tokio::spawn(async move { early.next().await });
        tell(&events, 2);
        let Heard::Event(told) = waiting.await.unwrap() else { panic!("a gap") };
        assert_eq!((told.event.sequence, told.event.attributes["name"].as_str()), (3, "x"));
    }

    #[tokio::test]
    async fn numbers_go_on_after_a_restart_and_what_memory_forgot_comes_from_the_journal() {
        let folder = tempfile::tempdir().unwrap();
        let events = Events::open(folder.path(), "boot").unwrap();
        (0..3).for_each(|id| tell(&events, id));
        drop(events);
        let events = Arc::new(Events::open(folder.path(), "boot").unwrap());
        (3..3 + MEMORY).for_each(|id| tell(&events, id));
        let all = heard(&mut events.listen(Some(1))).await;
        let expected: Vec<_> = (0..3 + MEMORY).map(|id| format!("{}:{id}", id + 1)).collect();
        assert_eq!(all, expected);
    }

    #[tokio::test]
    async fn a_number_is_given_once_even_if_its_event_could_not_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let events = Events::open(folder.path(), "boot").unwrap();
        tell(&events, 0);
        // Nothing can be written to a file that is open for reading.
        let path = folder.path().join("events/journal");
        let writable =
            std::mem::replace(&mut events.inner().journal.file, std::fs::File::open(&path).unwrap());
        tell(&events, 1);
        tell(&events, 2);
        drop((events, writable));
        let events = Arc::new(Events::open(folder.path(), "boot").unwrap());
        tell(&events, 3);
        assert_eq!(heard(&mut events.listen(Some(1))).await, ["1:0", "gap 2-3", "4:3"]);
    }

    #[tokio::test]
    async fn a_boot_leaves_a_gap_where_a_power_failure_may_have_taken_events() {
        let folder = tempfile::tempdir().unwrap();
        let events = Events::open(folder.path(), "first").unwrap();
        tell(&events, 0);
        drop(events);
        let events = Arc::new(Events::open(folder.path(), "second").unwrap());
        tell(&events, 1);
        assert_eq!(heard(&mut events.listen(Some(1))).await, ["1:0", "gap 2-1001", "1002:1"]);
    }

    #[tokio::test]
    async fn what_the_journal_has_dropped_is_a_gap() {
        let folder = tempfile::tempdir().unwrap();
        let events = Arc::new(Events::open(folder.path(), "boot").unwrap());
        let id = "i".repeat(10_000);
        for _ in 0..2_000 {
            events.tell(Object::Image, Action::Pull, id.clone(), None, []);
        }
        let mut listener = events.listen(Some(1));
        let Some(Heard::Gap { from: 1, to }) = listener.now().await else { panic!("no gap") };
        let Some(Heard::Event(told)) = listener.now().await else { panic!("no event") };
        assert_eq!(told.event.sequence, to + 1);
        let size: u64 = std::fs::read_dir(folder.path().join("events"))
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .sum();
        assert!(size < 10 << 20, "the journal is bounded: {size}");
    }
}
