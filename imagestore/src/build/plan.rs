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

mod change;
mod config;
mod environment;
mod evaluate;
mod graph;
mod history;
mod options;
mod platform;
mod port;
mod signal;
mod step;
#[cfg(test)]
mod tests;
mod transfer;

use std::fmt;

use crate::Platform;

use super::{
    diagnostic::{Diagnostic, Span},
    dockerfile::Dockerfile,
};

pub(crate) use change::change;
pub(crate) use environment::Globals;
pub(crate) use graph::{expand, globals};

pub use config::{Config, Healthcheck};
pub use evaluate::{Evaluated, Foundation};
pub use options::Options;
pub use platform::parse as parse_platform;
pub use step::{
    Copy, Directory, Mount, MountKind, Network, Origin, Run, Script, Sharing, Source, Step, Work,
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

/// A Dockerfile with what a build was asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) dockerfile: Dockerfile,
    pub(crate) options: Options,
    /// Predefined and global arguments, as FROM sees them.
    pub(crate) globals: environment::Globals,
    pub(crate) stages: Vec<Stage>,
    pub(crate) target: StageId,
    /// SOURCE_DATE_EPOCH in seconds.
    pub(crate) epoch: Option<i64>,
    /// What the checks have to say of FROM lines.
    pub(crate) findings: Vec<super::check::Finding>,
}

impl Plan {
    /// Sees through the stages. Errors are of FROM lines, global arguments, `--target`, `--from` and SOURCE_DATE_EPOCH.
    pub fn new(dockerfile: Dockerfile, options: Options) -> Result<Plan, Box<Diagnostic>> {
        graph::plan(dockerfile, options)
    }

    /// The stage whose result is the build's.
    pub fn target(&self) -> StageId {
        self.target
    }

    /// One stage.
    pub fn stage(&self, id: StageId) -> &Stage {
        &self.stages[id.0]
    }

    /// Every stage of the file.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The stages that the target needs, itself among them, in the order of the file.
    pub fn reached(&self) -> Vec<StageId> {
        graph::reached(&self.stages, self.target)
    }

    /// The time that the image and its files get, in seconds since 1970: SOURCE_DATE_EPOCH, if it is set.
    pub fn epoch(&self) -> Option<i64> {
        self.epoch
    }

    /// The host name that steps see, if BUILDKIT_SANDBOX_HOSTNAME sets one.
    pub fn hostname(&self) -> Option<&str> {
        self.options
            .build_args
            .get("BUILDKIT_SANDBOX_HOSTNAME")
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }

    /// Whether what the checks find fails the build: `# check=error=true`.
    pub fn findings_fail(&self) -> bool {
        self.dockerfile.check.error
    }

    /// What the checks have to say of the file and its FROM lines.
    pub fn findings(&self) -> &[super::check::Finding] {
        &self.findings
    }

    /// Build arguments that were given and that nothing in the file declares or knows.
    pub fn unused_arguments(&self) -> Vec<&str> {
        graph::unused_arguments(self)
    }

    /// The steps of a stage on its base. The labels of [`Options`] are in the configuration of the target only.
    pub fn evaluate(&self, id: StageId, base: &Foundation) -> Result<Evaluated, Box<Diagnostic>> {
        evaluate::stage(self, id, base)
    }
}
