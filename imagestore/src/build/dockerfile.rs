//! The Dockerfile language: from bytes to typed instructions, with the place of each.
//!
//! Parsing needs nothing but the text: no variable is expanded, no name looked up. What is returned is well-formed:
//! every instruction is known, has the arguments and flags that it takes, and stands in a stage. Values stay as they
//! were written, quotes and escapes included; putting variables in is [`super::plan`]'s work, with [`expand`].

mod directive;
pub(crate) mod expand;
mod flag;
mod heredoc;
mod instruction;
mod line;
pub(crate) mod mode;
pub(crate) mod mount;
mod pairs;
pub(crate) mod suggest;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::diagnostic::{Diagnostic, Span};

pub(crate) use directive::CheckOptions;
pub(crate) use instruction::instruction;

/// Larger files are refused: no Dockerfile that a person wrote comes near.
pub(crate) const MAX_SIZE: usize = 4 << 20;
/// More instructions are refused; an image has at most 500 layers.
pub(crate) const MAX_INSTRUCTIONS: usize = 4096;

/// A parsed Dockerfile.
#[derive(Clone, Debug)]
pub struct Dockerfile {
    pub(crate) text: Arc<Text>,
    pub(crate) escape: char,
    pub(crate) check: CheckOptions,
    /// ARG instructions before the first FROM.
    pub(crate) globals: Vec<Instruction>,
    /// At least one.
    pub(crate) stages: Vec<StageSource>,
    /// Empty lines inside continuations.
    pub(crate) empty_continuations: Vec<Span>,
}

/// The lines of a file, for diagnostics.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) file: Arc<str>,
    pub(crate) lines: Vec<String>,
}

impl Text {
    /// The first place of `part` within `span`; `span` itself if it is not there as written.
    pub(crate) fn point(&self, span: Span, part: &str) -> Span {
        if part.is_empty() {
            return span;
        }
        for number in span.line..=span.last.max(span.line) {
            let Some(line) = self.lines.get((number as usize).saturating_sub(1)) else { break };
            if let Some(at) = line.find(part) {
                let column = line[..at].chars().count() as u32 + 1;
                return Span { line: number, last: span.last, column, width: part.chars().count() as u32 };
            }
        }
        span
    }

    /// A diagnostic about a place in this file.
    pub(crate) fn diagnostic(
        &self,
        span: Span,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) -> Box<Diagnostic> {
        let line = self.lines.get((span.line as usize).saturating_sub(1));
        Box::new(Diagnostic {
            file: self.file.clone(),
            span: Some(span),
            excerpt: line.cloned().unwrap_or_default(),
            message: message.into(),
            help: help.into(),
        })
    }
}

/// A stage as it was written: FROM and the instructions up to the next.
#[derive(Clone, Debug)]
pub(crate) struct StageSource {
    pub(crate) span: Span,
    /// FROM in the case it was written in.
    pub(crate) keyword: String,
    /// Comments directly above it.
    pub(crate) comments: Vec<String>,
    /// What it stands on, not yet expanded.
    pub(crate) base: String,
    pub(crate) platform: Option<String>,
    /// The word AS in its case, and the name in its case.
    pub(crate) alias: Option<(String, String)>,
    pub(crate) instructions: Vec<Instruction>,
}

impl StageSource {
    /// The stage's name, in lower case as names are compared.
    pub(crate) fn name(&self) -> Option<String> {
        self.alias.as_ref().map(|(_, name)| name.to_lowercase())
    }
}

/// An instruction with its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Instruction {
    pub(crate) span: Span,
    /// Its name in the case it was written in.
    pub(crate) keyword: String,
    /// All of it in one line, continuations joined, without heredocs' content.
    pub(crate) source: String,
    /// Comments directly above it, without their `#`.
    pub(crate) comments: Vec<String>,
    pub(crate) command: Command,
}

/// What an instruction says. Texts are as written: with quotes, escapes and variables.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Command {
    Add(Transfer),
    Arg(Vec<ArgDeclaration>),
    Cmd(CommandLine),
    Copy(Transfer),
    Entrypoint(CommandLine),
    Env(Vec<Pair>),
    Expose(Vec<String>),
    Healthcheck(HealthcheckSource),
    Label(Vec<Pair>),
    Maintainer(String),
    /// The trigger, heredocs and all: what the image's configuration keeps.
    Onbuild(String),
    Run(RunSource),
    Shell(Vec<String>),
    StopSignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

/// `NAME` or `NAME=DEFAULT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ArgDeclaration {
    pub(crate) name: String,
    pub(crate) default: Option<String>,
}

/// `NAME=VALUE`, or the old form with a space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) legacy: bool,
}

/// A command in one of its two forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CommandLine {
    /// One text for the shell.
    Shell(String),
    /// Arguments from a JSON array.
    Exec(Vec<String>),
}

/// A document inside the Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heredoc {
    pub(crate) name: String,
    /// The descriptor that was written before `<<`; 0 without one.
    pub(crate) descriptor: u32,
    /// `<<-`: tabs at the beginning of its lines do not count.
    pub(crate) strip_tabs: bool,
    /// Whether variables are put in: its name was written without quotes.
    pub(crate) expand: bool,
    /// As written, with the last line's end.
    pub(crate) content: String,
}

impl Heredoc {
    /// What the document says: without leading tabs, if it was written with `<<-`.
    pub(crate) fn text(&self) -> String {
        if self.strip_tabs {
            self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
        } else {
            self.content.clone()
        }
    }
}

/// COPY and ADD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transfer {
    /// Paths, URLs and heredocs, in order.
    pub(crate) sources: Vec<SourceText>,
    pub(crate) destination: String,
    pub(crate) from: Option<String>,
    pub(crate) owner: Option<String>,
    pub(crate) mode: Option<String>,
    pub(crate) checksum: Option<String>,
    pub(crate) exclude: Vec<String>,
    pub(crate) parents: bool,
    pub(crate) link: bool,
    pub(crate) unpack: Option<bool>,
    pub(crate) keep_git_dir: Option<bool>,
}

/// A source of COPY or ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SourceText {
    Path(String),
    Inline(Heredoc),
}

/// RUN.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RunSource {
    pub(crate) command: CommandLine,
    pub(crate) heredocs: Vec<Heredoc>,
    pub(crate) mounts: Vec<mount::MountText>,
    pub(crate) network: super::plan::Network,
    /// `--security=insecure`.
    pub(crate) insecure: bool,
}

/// HEALTHCHECK. Times are nanoseconds; 0 is "as the base has it".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HealthcheckSource {
    /// `None` for HEALTHCHECK NONE.
    pub(crate) command: Option<CommandLine>,
    pub(crate) interval: i64,
    pub(crate) timeout: i64,
    pub(crate) start_period: i64,
    pub(crate) start_interval: i64,
    pub(crate) retries: i64,
}

impl Dockerfile {
    /// Reads a Dockerfile. `file` is its name in diagnostics.
    ///
    /// The language is that of Docker's frontend `docker/dockerfile:1`; a `# syntax=` that asks for another is an
    /// error, and nothing is fetched or executed for it.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Dockerfile, Box<Diagnostic>> {
        instruction::file(file, bytes)
    }
}

/// Whether a command is nothing but the name of a document.
pub(crate) fn is_document(command: &str) -> bool {
    heredoc::heredoc(command.trim()).is_some()
}
