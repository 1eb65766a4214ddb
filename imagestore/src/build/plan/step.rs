//! The steps of a stage: what is to be done, with nothing left to look up or expand.
//!
//! A step is a value. Two steps of equal [`Work`] on equal parents do the same, whatever stage or build they are of; what
//! must not count for the cache is marked so.

use std::sync::Arc;

use crate::build::{Span, plan::StageId};

use crate::build::dockerfile::mode::ModeChange;

/// One instruction, ready to be carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Where it stands; of a trigger, the FROM line that brought it.
    pub span: Span,
    /// Whether a trigger of the base brought it.
    pub trigger: bool,
    /// What to show of it: one line, variables put in.
    pub title: String,
    /// `created_by` of its entry in the image's history.
    pub history: String,
    /// What to do.
    pub work: Work,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Runs a command; makes a layer.
    Run(Box<Run>),
    /// Copies files in; makes a layer. ADD and COPY both.
    Copy(Box<Copy>),
    /// Makes a working directory; a layer only if it was not there.
    Directory(Directory),
    /// Changes the configuration only: the entry in the history is an empty layer.
    Metadata,
}

/// RUN.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The program and its arguments, the shell's included.
    pub arguments: Vec<String>,
    /// A script that the arguments name; read-only in the container and no part of the layer.
    pub script: Option<Script>,
    /// `NAME=VALUE`: the configuration's variables and the ARGs in effect.
    pub environment: Arc<Vec<String>>,
    /// `NAME=VALUE` for the process but not for the cache: proxies that nothing declares.
    pub proxies: Arc<Vec<String>>,
    /// Absolute.
    pub directory: String,
    /// As USER has it; empty is root.
    pub user: String,
    /// `--mount`, in order.
    pub mounts: Vec<Mount>,
    /// `--network`.
    pub network: Network,
    /// `--security=insecure`: wants an entitlement.
    pub insecure: bool,
}

/// A heredoc that begins with `#!`: an executable file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Where the container sees it: absolute.
    pub path: String,
    /// Its bytes.
    pub content: String,
}

/// `RUN --network`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// The build's.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The host's: wants an entitlement.
    Host,
}

/// `RUN --mount`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where the container sees it: absolute and clean, never `/`. Of a secret without a file, empty.
    pub target: String,
    /// What it is.
    pub kind: MountKind,
}

/// The kinds of mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// Files of another place.
    Bind {
        /// The place.
        from: Origin,
        /// The path there: absolute and clean.
        source: String,
        /// Whether writes are possible; they are thrown away.
        writable: bool,
    },
    /// A directory that outlives the build. Its content does not count for the cache.
    Cache {
        /// Which one.
        id: String,
        /// What it begins with.
        from: Origin,
        /// The path there.
        source: String,
        /// Who may use it at the same time.
        sharing: Sharing,
        /// Whether writes are possible.
        writable: bool,
        /// Of the directory, when it is made.
        uid: u32,
        /// Likewise.
        gid: u32,
        /// Likewise.
        mode: u32,
    },
    /// Memory.
    Tmpfs {
        /// Bytes at most.
        size: Option<u64>,
    },
    /// A secret of the client's. Its content does not count for the cache.
    Secret {
        /// Which one.
        id: String,
        /// Whether the step fails without it.
        required: bool,
        /// The variable to put it in. With an empty `target`, it is in no file.
        variable: Option<String>,
        /// Of the file.
        uid: u32,
        /// Likewise.
        gid: u32,
        /// Likewise.
        mode: u32,
    },
}

/// How builds share a cache mount; the stricter, the greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sharing {
    /// All at once.
    #[default]
    Shared,
    /// Each gets one of its own.
    Private,
    /// One after another.
    Locked,
}

/// Where files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The build's context.
    Context,
    /// The result of a stage that comes before.
    Stage(StageId),
    /// An image by its name.
    Image(String),
    /// Nothing at all.
    Scratch,
}

/// COPY or ADD.
#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    /// Whether it is ADD.
    pub add: bool,
    /// Where paths lead.
    pub from: Origin,
    /// At least one.
    pub sources: Vec<Source>,
    /// Absolute and clean; with a slash at the end, it is a directory whatever is there.
    pub destination: String,
    /// `user[:group]`, names or numbers; names are those of the stage's own passwd and group. Without it, 0:0.
    pub owner: Option<String>,
    /// How modes change.
    pub mode: Option<ModeChange>,
    /// `--exclude`, patterns below each source.
    pub exclude: Vec<String>,
    /// `--parents`: directories of a source's path are made below the destination.
    pub parents: bool,
    /// `--link`: a layer that does not depend on what is below, and follows no link of it.
    pub link: bool,
}

/// One source of [`Copy`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A path below the origin, absolute and clean; may have wildcards of Go's `filepath.Match`.
    Path {
        /// With `--parents`, the part before the pivot `/./`; the result keeps only what follows it.
        pivot: Option<String>,
        /// The path; with a pivot, below it.
        path: String,
        /// Whether a tar is unpacked.
        unpack: bool,
    },
    /// A file to fetch.
    Url {
        /// `http://` or `https://`.
        url: String,
        /// What the file is called.
        name: String,
        /// Whether a tar is unpacked.
        unpack: bool,
        /// What it must hash to: `sha256:HEX`.
        checksum: Option<String>,
    },
    /// A document of the Dockerfile; its mode is 0644.
    Inline {
        /// What the file is called.
        name: String,
        /// Its bytes.
        content: String,
    },
}

/// WORKDIR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Absolute and clean.
    pub path: String,
    /// Who owns the directories that are made, as USER has it; empty is root.
    pub user: String,
}
