//! What a build is asked for, beside the Dockerfile itself.

use std::collections::BTreeMap;

use crate::{Platform, build::Ignore};

/// What the user of a build chose.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The stage to build: a name or a number. The last one without it.
    pub target: Option<String>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// `--label`: in the target's configuration, above those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
    /// What the image is for.
    pub platform: Platform,
    /// What the build runs on.
    pub build_platform: Platform,
    /// What the context leaves out: for a check.
    pub ignore: Option<Ignore>,
}
