//! What is told of a build's steps, and in which order.
//!
//! Whoever listens may be slow, and then the build waits with telling; or may be gone, and then nobody is told.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU32, Ordering},
};

use tokio::sync::mpsc;

use crate::{
    ProgressEvent,
    build::{Diagnostic, Event, Output, StepEvent, StepState, now},
};

/// Tells of a build.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    events: mpsc::Sender<Event>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    next: AtomicU32,
    steps: Mutex<Vec<Arc<Mutex<StepEvent>>>>,
}

/// Tells of one step.
#[derive(Clone, Debug)]
pub(super) struct Told {
    events: mpsc::Sender<Event>,
    step: Arc<Mutex<StepEvent>>,
}

impl Reporter {
    pub(super) fn new(events: mpsc::Sender<Event>) -> Reporter {
        Reporter { events, state: Arc::default() }
    }

    /// A step is known from now on.
    pub(super) async fn announce(
        &self,
        stage: &str,
        (number, total): (usize, usize),
        title: &str,
        line: u32,
    ) -> Told {
        let step = StepEvent {
            id: self.state.next.fetch_add(1, Ordering::Relaxed),
            stage: stage.to_owned(),
            number: number as u32,
            total: total as u32,
            title: title.to_owned(),
            line,
            ..StepEvent::default()
        };
        let told = Told { events: self.events.clone(), step: Arc::new(Mutex::new(step)) };
        self.state.steps.lock().unwrap_or_else(PoisonError::into_inner).push(told.step.clone());
        told.send().await;
        told
    }

    pub(super) async fn warn(&self, rule: String, diagnostic: Diagnostic) {
        let _ = self.events.send(Event::Warning { rule, diagnostic }).await;
    }

    /// How many steps of stages came to an end, and how many of them were cached.
    pub(super) fn counts(&self) -> (u32, u32) {
        let steps = self.state.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = steps.iter().map(|step| step.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let steps: Vec<StepEvent> = steps.filter(|step| step.number > 0).collect();
        let cached = steps.iter().filter(|step| step.state == StepState::Cached).count();
        (steps.len() as u32, cached as u32)
    }

    /// Whatever has not come to an end by now never will.
    pub(super) async fn end(&self) {
        let steps = self.state.steps.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for step in steps {
            let told = Told { events: self.events.clone(), step };
            let open = matches!(told.now().state, StepState::Waiting | StepState::Running);
            if open {
                told.ended(StepState::Cancelled, "", "").await;
            }
        }
    }
}

impl Told {
    pub(super) fn id(&self) -> u32 {
        self.now().id
    }

    pub(super) async fn running(&self) {
        self.change(|step| {
            step.state = StepState::Running;
            step.started = now();
        });
        self.send().await;
    }

    pub(super) async fn ended(&self, state: StepState, error: &str, explanation: &str) {
        self.change(|step| {
            step.state = state;
            step.finished = now();
            step.error = error.to_owned();
            step.explanation = explanation.to_owned();
        });
        self.send().await;
    }

    pub(super) async fn log(&self, output: Output) {
        let _ = self.events.send(Event::Log { step: self.id(), output }).await;
    }

    pub(super) async fn pull(&self, layer: ProgressEvent) {
        let _ = self.events.send(Event::Pull { step: self.id(), layer }).await;
    }

    fn now(&self) -> StepEvent {
        self.step.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut StepEvent)) {
        change(&mut self.step.lock().unwrap_or_else(PoisonError::into_inner));
    }

    async fn send(&self) {
        let _ = self.events.send(Event::Step(self.now())).await;
    }
}
