//! What a build tells of itself while it runs.

use crate::ProgressEvent;

use super::{Diagnostic, Output};

/// Something that has happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Content of the context is wanted: entries by their numbers.
    Wanted(Vec<u32>),
    /// A step as it is now.
    Step(StepEvent),
    /// A command's output.
    Log {
        /// The step.
        step: u32,
        /// A piece.
        output: Output,
    },
    /// How the pull of a step's image goes.
    Pull {
        /// The step.
        step: u32,
        /// One layer.
        layer: ProgressEvent,
    },
    /// Something in the Dockerfile that is better written otherwise.
    Warning {
        /// The check; empty for none's.
        rule: String,
        /// What and where.
        diagnostic: Diagnostic,
    },
}

/// How far a step is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StepState {
    /// Its turn has not come.
    #[default]
    Waiting,
    /// It is being done.
    Running,
    /// Nothing had to be done.
    Cached,
    /// It was done.
    Done,
    /// It failed.
    Failed,
    /// Something else failed first.
    Cancelled,
}

/// A step as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepEvent {
    /// From 0, one for each step of a build.
    pub id: u32,
    /// The stage's name, or `stage-N`; empty for none's.
    pub stage: String,
    /// Its place in the stage, from 1, and how many there are; 0 for none.
    pub number: u32,
    /// Likewise.
    pub total: u32,
    /// One line.
    pub title: String,
    /// How far it is.
    pub state: StepState,
    /// Nanoseconds since 1970; 0: not yet.
    pub started: i64,
    /// Likewise.
    pub finished: i64,
    /// Why it failed.
    pub error: String,
    /// Why it was not cached, if that was asked for.
    pub explanation: String,
    /// In the Dockerfile, from 1; 0 for none.
    pub line: u32,
}
