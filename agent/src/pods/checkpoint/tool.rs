//! CRIU on this node: where it is, and whether it works on this kernel.

use std::{path::PathBuf, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use crate::error::{Error, Result};

/// Longer than CRIU needs to try out what the kernel has.
const CHECK: Duration = Duration::from_secs(30);

/// CRIU's program.
///
/// # Errors
/// `FailedPrecondition`, with what is missing in CRIU's own words.
pub(super) async fn find() -> Result<PathBuf> {
    let needs = |why: String| Error::Precondition(format!("a checkpoint needs CRIU, which {why}"));
    let program = sampan_runtime::criu::program();
    let program = program.ok_or_else(|| needs("is not installed on this node (package criu)".into()))?;
    // CRIU is an exception of invariant 6.
    #[allow(clippy::disallowed_methods)]
    let mut command = Command::new(&program);
    command.arg("check").stdin(Stdio::null()).kill_on_drop(true);
    match timeout(CHECK, command.output()).await {
        Ok(Err(error)) => Err(needs(format!("does not start: {error}"))),
        Err(_) => Err(needs(format!("did not say within {CHECK:?} whether it works here"))),
        Ok(Ok(output)) if !output.status.success() => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(needs(format!("does not work on this kernel: {}", reason(&said))))
        }
        Ok(Ok(_)) => Ok(program),
    }
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
