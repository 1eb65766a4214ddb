//! From a Dockerfile to what a build does: which stages, on what they stand, and the steps of each.
//!
//! Pure. [`Plan::new`] finds out what can be known before any base image is; [`Plan::evaluate`] gives one stage's
//! steps, with every variable put in, once its base is known. A stage is evaluated whole, so that a mistake in its last
//! line is told before its first command runs.
//!
//! ```text
//!  Plan::new(dockerfile, options)
//!     │  reached(): every stage that the target needs; start a task for each
//!     ▼
//!  stage(id).base ── Scratch ─────────▶ Foundation::scratch
//!                 ── Stage(other) ────▶ Foundation::stage(&its Evaluated)   its evaluation, not its run
//!                 ── Image{name} ─────▶ Foundation::image(its configuration)
//!     ▼
//!  evaluate(id, &foundation) ──▶ Evaluated { origins, steps, config, … }
//! ```
//!
//! Stages need one another only backwards, so there are no circles. ONBUILD triggers of a base image can add to what
//! [`Stage::needs`] said: [`Evaluated::origins`] is the whole truth, and may name stages that `reached` did not.

mod config;
mod options;
mod step;

use std::fmt;

use crate::Platform;

use super::diagnostic::Span;

pub use config::{Config, Healthcheck};
pub use options::Options;
pub use step::{
    Clause, Copy, Directory, ModeChange, Mount, MountKind, Network, Origin, Run, Script, Sharing, Source,
    Step, What, Work,
};

/// The number of a stage, from 0 in the order of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageId(pub(crate) usize);

impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What is known of a stage before its base is resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Its number.
    pub id: StageId,
    /// What to call it in progress: its name, or `stage-N`.
    pub title: String,
    /// What it stands on.
    pub base: Base,
    /// The platform asked for: `--platform`, else that of the stage it stands on, else the build's.
    pub platform: Platform,
    /// The stages that its own instructions need, the base among them, in order and once each.
    pub needs: Vec<StageId>,
    /// Images that its own instructions copy or mount from.
    pub images: Vec<String>,
    /// The FROM line.
    pub span: Span,
    /// How many steps it has that do something, as far as is known: RUN, COPY, ADD, WORKDIR.
    pub steps: usize,
}

/// What a stage stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// `FROM scratch`: nothing.
    Scratch,
    /// Another stage's result.
    Stage(StageId),
    /// An image, by its name with variables put in. The platform is the stage's.
    Image(String),
}

/// What a stage stands on, known.
#[derive(Clone, Debug, PartialEq)]
pub struct Foundation {
    /// The configuration to begin with; its triggers are carried out first.
    pub config: Config,
    /// What the base was made for.
    pub platform: Platform,
    /// `author` of the base's document.
    pub author: String,
    /// Whether the configuration is what it really is: without it, checks keep quiet about its variables.
    pub known: bool,
}

/// A stage with nothing left to find out.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    /// The stage.
    pub id: StageId,
    /// Its steps, triggers of the base first. Those of the base itself are not among them.
    pub steps: Vec<Step>,
    /// Where the steps take files from, once each: wait for the stages, pull the images.
    pub origins: Vec<Origin>,
    /// The result's configuration.
    pub config: Config,
    /// `author` of the result's document; empty without one.
    pub author: String,
}
