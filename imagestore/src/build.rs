//! Building images: the Dockerfile language, and what a build of one does.
//!
//! The language is pure and synchronous: text, arguments and the configurations of base images go in, steps come out.
//! What runs the steps, keeps the cache and holds the context stands beside it and is no concern of these modules.
//!
//! ```text
//! bytes ─Dockerfile::parse▶ stages of instructions ─Plan::new▶ graph of stages ─Plan::evaluate(base)▶ steps, configuration
//! ```

mod check;
mod diagnostic;
mod dockerfile;
mod ignore;
mod plan;

pub use check::{Finding, Rule};
pub use diagnostic::{Diagnostic, Span};
pub use dockerfile::Dockerfile;
pub use dockerfile::mode::{Clause, ModeChange, What};
pub use ignore::Ignore;
pub use plan::{
    Base, Config, Copy, Directory, Evaluated, Foundation, Healthcheck, Mount, MountKind, Network, Options,
    Origin, Plan, Run, Script, Sharing, Source, Stage, StageId, Step, Work,
};
