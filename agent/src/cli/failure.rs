//! Why a verb failed, in a sentence that says what to do.
//!
//! The agent's own message always comes first and unchanged; advice follows it, chosen by the gRPC code.

use std::{error::Error, io};

use tonic::{Code, Status};

use super::output::Output;

/// What a shell sees of a program that SIGPIPE ended; Rust programs ignore that signal and get an error instead.
pub(super) const BROKEN_PIPE: u8 = 128 + 13;

/// What to do, by the code the agent answered with.
pub(super) type Advice = &'static [(Code, &'static str)];

pub(super) const ABOUT_CONTAINERS: Advice = &[
    (Code::NotFound, "'sampan ps -a' lists all containers"),
    (Code::FailedPrecondition, "'sampan ps -a' shows its state"),
];
pub(super) const ABOUT_IMAGES: Advice = &[(Code::NotFound, "'sampan images' lists what is here")];

#[derive(Debug)]
pub(super) enum Failure {
    /// To be told on standard error.
    Message(String),
    /// The same, with an exit code of its own: the program of a container could not be executed.
    Program(String, u8),
    /// Told already; only the exit code is left to give.
    Reported,
    /// The reader of our output has gone away: `sampan ps | head`. Not worth a word.
    BrokenPipe,
}

impl Failure {
    pub(super) fn message(text: impl Into<String>) -> Self {
        Self::Message(text.into())
    }

    /// What the agent answered, with advice for its code when there is any.
    pub(super) fn answered(status: &Status, advice: Advice) -> Self {
        // Only a status made on this side of the connection has a source.
        if let Some(source) = status.source() {
            return Self::Message(format!(
                "lost the connection to the agent: {}; containers run on, and 'journalctl -u sampand' \
                 says what happened to it",
                chain(source)
            ));
        }
        let message = match status.message() {
            "" => status.code().description(),
            message => message,
        };
        let general = (status.code() == Code::Unimplemented)
            .then_some("this agent does not know the call; 'sampan version' compares the versions");
        let advice =
            advice.iter().find(|(code, _)| *code == status.code()).map(|(_, advice)| *advice).or(general);
        Self::Message(match advice {
            Some(advice) => format!("{message}; {advice}"),
            None => message.to_owned(),
        })
    }

    /// The same for a program of a container: what a shell gives for one that is not there, and for one that is and
    /// cannot be executed.
    pub(super) fn of_program(status: &Status, advice: Advice) -> Self {
        let message = status.message();
        match status.code() {
            Code::InvalidArgument if message.starts_with("exec: ") => {
                let missing = message.contains("No such file") || message.contains("not found");
                Self::Program(message.to_owned(), if missing { 127 } else { 126 })
            }
            _ => Self::answered(status, advice),
        }
    }

    /// Turned into a status by `?` where a call needs no advice of its own.
    pub(super) fn plain(status: Status) -> Self {
        Self::answered(&status, &[])
    }

    pub(super) fn of_container(status: Status) -> Self {
        Self::answered(&status, ABOUT_CONTAINERS)
    }

    pub(super) fn of_image(status: Status) -> Self {
        Self::answered(&status, ABOUT_IMAGES)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::Message(format!("cannot write the output: {error}")),
        }
    }
}

/// An error with its causes, leaving out causes that their parent has told already.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

/// Counts failures of one call among several, so that the others are still made.
#[derive(Debug, Default)]
pub(super) struct Failures(bool);

impl Failures {
    /// Tells of a failure at once; a reader that has gone away ends everything.
    pub(super) fn note<T>(
        &mut self,
        result: Result<T, Failure>,
        out: &mut Output,
    ) -> Result<Option<T>, Failure> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Failure::BrokenPipe) => Err(Failure::BrokenPipe),
            Err(failure) => {
                out.flush()?;
                out.complain(&failure);
                self.0 = true;
                Ok(None)
            }
        }
    }

    pub(super) fn into_result(self) -> Result<(), Failure> {
        if self.0 { Err(Failure::Reported) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(failure: Failure) -> String {
        match failure {
            Failure::Message(text) => text,
            other => panic!("not a message: {other:?}"),
        }
    }

    #[test]
    fn the_agents_message_is_followed_by_advice_for_its_code() {
        let missing = Status::not_found("no container \"web\"");
        assert_eq!(
            text(Failure::of_container(missing)),
            "no container \"web\"; 'sampan ps -a' lists all containers"
        );
        assert_eq!(text(Failure::of_container(Status::internal("read record"))), "read record");
    }

    #[test]
    fn an_empty_message_is_replaced_by_the_codes_meaning() {
        assert!(text(Failure::plain(Status::new(Code::PermissionDenied, ""))).contains("permission"));
    }

    #[test]
    fn a_closed_pipe_is_told_apart_from_a_full_disk() {
        assert!(matches!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)), Failure::BrokenPipe));
        assert!(
            text(io::Error::from(io::ErrorKind::StorageFull).into()).starts_with("cannot write the output")
        );
    }
}
