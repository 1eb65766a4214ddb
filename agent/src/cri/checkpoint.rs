//! `CheckpointContainer`, `CheckpointPod` and `RestorePod`: refused, with what is missing.
//!
//! A checkpoint takes CRIU, and CRIU takes a kernel that it knows: where it says that it can't work, its own words are
//! the answer. Where it could, the answer is that this version doesn't use it yet.

use std::{process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};
use tonic::Status;

/// Longer than CRIU needs to try out what the kernel has.
const CHECK: Duration = Duration::from_secs(10);

pub(super) async fn refuse<T>(rpc: &str) -> Result<T, Status> {
    // CRIU is an exception of invariant 6.
    #[allow(clippy::disallowed_methods)]
    let mut command = Command::new("criu");
    command.arg("check").stdin(Stdio::null()).kill_on_drop(true);
    let why = match timeout(CHECK, command.output()).await {
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            "CRIU, which is not installed on this node (package criu)".to_owned()
        }
        Ok(Err(error)) => format!("CRIU, which does not start: {error}"),
        Err(_) => format!("CRIU, which did not say within {CHECK:?} whether it works here"),
        Ok(Ok(output)) if !output.status.success() => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            format!("CRIU, which does not work on this kernel: {}", reason(&said))
        }
        Ok(Ok(_)) => {
            let text = format!("{rpc}: this version of sampan makes no checkpoints, though CRIU works here");
            return Err(Status::unimplemented(text));
        }
    };
    Err(Status::failed_precondition(format!("{rpc} needs {why}")))
}

/// The first error, which the others follow from.
fn reason(said: &str) -> &str {
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    lines()
        .find(|line| line.starts_with("Error"))
        .or_else(|| lines().next_back())
        .unwrap_or("it does not say why")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_the_reason() {
        assert_eq!(reason("Warn: x\nError (a.c:1): first\nError (b.c:2): second\n"), "Error (a.c:1): first");
        assert_eq!(reason("something\n\n"), "something");
        assert_eq!(reason(""), "it does not say why");
    }
}
