//! Building images: the Dockerfile language, and what a build of one does.
//!
//! The language is pure and synchronous: text, arguments and the configurations of base images go in, steps come out.
//! What runs the steps, keeps the cache and holds the context stands beside it and is no concern of these modules.
//!
//! ```text
//! bytes ─Dockerfile::parse▶ stages of instructions ─Plan::new▶ graph of stages ─Plan::evaluate(base)▶ steps, configuration
//! ```

mod diagnostic;
mod dockerfile;
mod error;
mod plan;
mod transfer;
mod tree;

pub use error::Error;
pub use diagnostic::{Diagnostic, Span};
pub use plan::{
    Base, Clause, Config, Copy, Directory, Evaluated, Foundation, Healthcheck, ModeChange, Mount, MountKind,
    Network, Options, Origin, Run, Script, Sharing, Source, Stage, StageId, Step, What, Work,
};
