//! Progress: how far each layer of a pull has come, told to everybody who waits for it.
//!
//! Nothing here ever waits. A listener that does not keep up misses intermediate counts, never the end of a
//! phase; one that joins late is told first how things stand.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use crate::Digest;

/// What is being done with a layer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    /// For other layers to be done.
    Waiting,
    /// Fetching the blob, and perhaps unpacking it at the same time.
    Downloading,
    /// Laying out the files.
    Unpacking,
    /// It is complete.
    Done,
    /// It was here before.
    Exists,
}

/// How far a layer has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgressEvent {
    /// The layer's blob.
    pub digest: Digest,
    /// What is being done with it.
    pub phase: Phase,
    /// Bytes of the blob that this phase is through with.
    pub current: u64,
    /// Bytes of the blob.
    pub total: u64,
}

/// Where to send progress. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Progress(Option<mpsc::Sender<ProgressEvent>>);

/// Room for all phases of as many layers as there can be; counts may use the first half.
const ROOM: usize = 4096;
/// Between two counts of one layer.
const PACE: Duration = Duration::from_millis(100);

impl Progress {
    /// Tells nobody.
    pub fn none() -> Progress {
        Progress(None)
    }

    /// Progress, and where to read it. The channel ends with the pull.
    pub fn channel() -> (Progress, mpsc::Receiver<ProgressEvent>) {
        let (sender, receiver) = mpsc::channel(ROOM);
        (Progress(Some(sender)), receiver)
    }

    fn send(&self, event: &ProgressEvent, counts: bool) {
        if let Some(sender) = &self.0
            && (!counts || sender.capacity() > ROOM / 2)
        {
            let _ = sender.try_send(event.clone());
        }
    }
}

/// The progress of one pull, with all its listeners.
#[derive(Debug, Default)]
pub(crate) struct Reports(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    listeners: Vec<Progress>,
    /// By position in the image, for two layers may be one blob; and when it was last told.
    latest: BTreeMap<usize, (ProgressEvent, Instant)>,
}

impl Reports {
    /// Adds a listener and tells it how things stand.
    pub(crate) fn listen(&self, progress: Progress) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if progress.0.is_some() {
            state.latest.values().for_each(|(event, _)| progress.send(event, false));
            state.listeners.push(progress);
        }
    }

    /// Notes where a layer is. Counts within a phase are told at a bounded pace.
    pub(crate) fn report(&self, layer: usize, event: ProgressEvent) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (mut told, mut counts) = (now, false);
        if let Some((before, at)) = state.latest.get(&layer) {
            counts = before.phase == event.phase;
            if counts && (before.current == event.current || event.current < event.total && now - *at < PACE)
            {
                told = *at;
            }
        }
        if !counts || told == now {
            state.listeners.retain(|listener| listener.0.as_ref().is_some_and(|sender| !sender.is_closed()));
            state.listeners.iter().for_each(|listener| listener.send(&event, counts));
        }
        state.latest.insert(layer, (event, told));
    }

    /// Ends the channels of all listeners.
    pub(crate) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).listeners.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(phase: Phase, current: u64) -> ProgressEvent {
        ProgressEvent { digest: Digest::of(b""), phase, current, total: 1000 }
    }

    #[test]
    fn a_late_listener_is_told_how_things_stand() {
        let reports = Reports::default();
        reports.report(0, event(Phase::Done, 1000));
        reports.report(1, event(Phase::Downloading, 5));
        let (progress, mut receiver) = Progress::channel();
        reports.listen(progress);
        assert_eq!(receiver.try_recv().unwrap(), event(Phase::Done, 1000));
        assert_eq!(receiver.try_recv().unwrap(), event(Phase::Downloading, 5));
        reports.close();
        assert_eq!(receiver.try_recv().unwrap_err(), mpsc::error::TryRecvError::Disconnected);
    }

    #[test]
    fn a_listener_that_sleeps_costs_bounded_memory_and_misses_no_phase() {
        let reports = Reports::default();
        let (progress, mut receiver) = Progress::channel();
        reports.listen(progress.clone());
        for current in 0..10 * ROOM as u64 {
            progress.send(&event(Phase::Downloading, current), true);
        }
        for layer in 0..500 {
            for phase in [Phase::Waiting, Phase::Downloading, Phase::Unpacking, Phase::Done] {
                reports.report(layer, event(phase, 1000));
            }
        }
        let mut done = 0;
        while let Ok(event) = receiver.try_recv() {
            done += usize::from(event.phase == Phase::Done);
        }
        assert_eq!(done, 500);
    }

    #[test]
    fn counts_are_told_at_a_bounded_pace() {
        let reports = Reports::default();
        let (progress, mut receiver) = Progress::channel();
        reports.listen(progress);
        for current in 0..1000 {
            reports.report(0, event(Phase::Downloading, current));
        }
        reports.report(0, event(Phase::Downloading, 1000));
        let mut events = Vec::new();
        while let Ok(event) = receiver.try_recv() {
            events.push(event.current);
        }
        assert!(events.len() < 100, "{events:?}");
        assert_eq!(events.last(), Some(&1000));
    }
}
