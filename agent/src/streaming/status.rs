//! How a command ended, as the client is told on the error stream.
//!
//! From version 4 of the protocol on it is Kubernetes' `metav1.Status` as JSON, success included; before, a sentence, and
//! nothing for success.

use serde_json::json;

use crate::error::Result;

/// How the end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `metav1.Status`.
    Json,
    /// A sentence.
    Text,
}

/// What to write on the error stream for an exit code, or for what kept the command from running.
pub(super) fn status(format: Format, outcome: &Result<i32>) -> String {
    match (format, outcome) {
        (Format::Json, Ok(0)) => json!({ "metadata": {}, "status": "Success" }).to_string(),
        (Format::Json, Ok(code)) => json!({
            "metadata": {},
            "status": "Failure",
            "message": failure(*code),
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        })
        .to_string(),
        (Format::Json, Err(error)) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("Internal error occurred: {}", error.chain()),
            "reason": "InternalError",
            "details": { "causes": [{ "message": error.chain() }] },
            "code": 500,
        })
        .to_string(),
        (Format::Text, Ok(0)) => String::new(),
        (Format::Text, Ok(code)) => failure(*code),
        (Format::Text, Err(error)) => format!("Internal error occurred: {}", error.chain()),
    }
}

fn failure(code: i32) -> String {
    format!("command terminated with non-zero exit code: {code}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn clients_find_the_exit_code_where_they_look_for_it() {
        let status = |outcome| {
            let text = status(Format::Json, &outcome);
            serde_json::from_str::<serde_json::Value>(&text).unwrap()
        };
        assert_eq!(status(Ok(0))["status"], "Success");
        let failed = status(Ok(137));
        assert_eq!((&failed["status"], &failed["reason"]), (&"Failure".into(), &"NonZeroExitCode".into()));
        assert_eq!(failed["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "137" }));
        let broken = status(Err(Error::Precondition("container x is not running".into())));
        assert_eq!((&broken["reason"], &broken["code"]), (&"InternalError".into(), &500.into()));
        assert!(broken["message"].as_str().unwrap().ends_with("container x is not running"));
    }

    #[test]
    fn old_clients_read_a_sentence_and_nothing_of_success() {
        assert_eq!(status(Format::Text, &Ok(0)), "");
        assert!(status(Format::Text, &Ok(3)).ends_with("exit code: 3"));
    }
}
