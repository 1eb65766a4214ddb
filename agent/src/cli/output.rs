//! Where everything a person or a script reads goes out: results to standard output, the rest to standard error.
//!
//! A closed pipe comes back as a `Failure` of its own and never as a panic, which is why nothing here or elsewhere
//! in the command line uses the print macros.

use std::{
    fmt::Display,
    io::{self, BufWriter, IsTerminal, Write},
};

use serde::Serialize;

use super::{failure::Failure, json};

pub(super) struct Output {
    stdout: Box<dyn Write + Send>,
    stderr: Box<dyn Write + Send>,
    stdout_is_terminal: bool,
    stderr_is_terminal: bool,
}

/// A terminal's rows and columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Screen {
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Output {
    /// The process's own streams.
    pub(super) fn standard() -> Self {
        Self {
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr_is_terminal: io::stderr().is_terminal(),
            stdout: Box::new(BufWriter::new(io::stdout())),
            stderr: Box::new(io::stderr()),
        }
    }

    /// Streams that are no terminals, for tests.
    #[cfg(test)]
    pub(super) fn new(stdout: Box<dyn Write + Send>, stderr: Box<dyn Write + Send>) -> Self {
        Self { stdout, stderr, stdout_is_terminal: false, stderr_is_terminal: false }
    }

    pub(super) fn line(&mut self, text: impl Display) -> Result<(), Failure> {
        Ok(writeln!(self.stdout, "{text}")?)
    }

    pub(super) fn text(&mut self, text: impl Display) -> Result<(), Failure> {
        Ok(write!(self.stdout, "{text}")?)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.stdout.write_all(bytes)?)
    }

    /// What a container wrote to its standard error.
    pub(super) fn error_bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.stderr.write_all(bytes)?)
    }

    /// A value as indented JSON.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        self.line(json::indent(&json::compact(value)))
    }

    /// What is good to know on the way, such as how a pull goes. Nobody fails for not being told.
    pub(super) fn note(&mut self, text: impl Display) {
        let _ = writeln!(self.stderr, "{text}");
    }

    /// Tells why something failed.
    pub(super) fn complain(&mut self, failure: &Failure) {
        if let Failure::Message(message) | Failure::Program(message, _) = failure {
            self.note(format_args!("sampan: {message}"));
        }
    }

    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.stdout.flush()?)
    }

    /// Whether progress may be drawn on standard error.
    pub(super) fn draws_progress(&self) -> bool {
        self.stderr_is_terminal
    }

    /// The terminal that standard output is, if it is one.
    pub(super) fn screen(&self) -> Option<Screen> {
        if !self.stdout_is_terminal {
            return None;
        }
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
        let size = size.filter(|size| size.ws_row > 0 && size.ws_col > 0);
        Some(size.map_or(Screen { rows: 24, columns: 80 }, |size| Screen {
            rows: usize::from(size.ws_row),
            columns: usize::from(size.ws_col),
        }))
    }
}
