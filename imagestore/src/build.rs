//! Building images: the Dockerfile language, and what a build of one does.
//!
//! The language is pure and synchronous: text, arguments and the configurations of base images go in, steps come out.
//! What runs the steps, keeps the cache and holds the context stands beside it and is no concern of these modules.
//!
//! ```text
//! bytes ─Dockerfile::parse▶ stages of instructions ─Plan::new▶ graph of stages ─Plan::evaluate(base)▶ steps, configuration
//! ```

mod builder;
mod cache;
mod check;
mod context;
mod diagnostic;
mod dockerfile;
mod error;
mod event;
mod export;
mod fetch;
mod files;
mod ignore;
mod keep;
mod mounts;
mod pad;
mod plan;
mod runner;
mod single;
mod solve;
mod step;
mod transfer;
mod tree;

use crate::catalog::now;

pub use builder::{Builder, BuilderOptions, Request, Upload};
pub use check::{Finding, Rule};
pub use context::{Context, ContextEntry, Ignoring, Sent, Telling};
pub use diagnostic::{Diagnostic, Span};
pub use dockerfile::Dockerfile;
pub use dockerfile::mode::{Clause, ModeChange, What};
pub use error::Error;
pub use event::{Event, StepEvent, StepState};
pub use ignore::Ignore;
pub use keep::{Kept, KeptKind, Prune};
pub(crate) use plan::change;
pub use plan::parse_platform;
pub use plan::{
    Base, Config, Copy, Directory, Evaluated, Foundation, Healthcheck, Mount, MountKind, Network, Options,
    Origin, Plan, Run, Script, Sharing, Source, Stage, StageId, Step, Work,
};
pub use runner::{Bind, BindSource, Command, Exit, Output, Runner};
pub use solve::{Built, Failure};
