//! Clients that we did not write: kubectl, and the Kubernetes library for Python.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::api::Api;

/// Longer than any of the tests' commands takes, even on a loaded machine.
const LIMIT: Duration = Duration::from_secs(60);

/// What a client ended with.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: String,
}

impl Ended {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// What kubectl speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speech {
    Spdy,
    /// WebSocket where this kubectl knows it, which is from 1.31 on.
    Newest,
}

impl Speech {
    pub(super) const BOTH: [Speech; 2] = [Speech::Spdy, Speech::Newest];
}

impl Speech {
    /// Whether what a client asked for is what this kubectl should ask for.
    pub(super) async fn fits(self, seen: &str) -> bool {
        let version = tool(Command::new("kubectl").args(["version", "--client", "--output=json"])).await;
        let version: serde_json::Value = serde_json::from_slice(&version).expect("kubectl's version");
        let minor = version["clientVersion"]["minor"].as_str().unwrap_or_default();
        let minor: u32 = minor.trim_end_matches('+').parse().expect("a number");
        let upgrade = if self == Speech::Newest && minor >= 31 { "websocket " } else { "SPDY/3.1 " };
        seen.starts_with(upgrade)
    }
}

/// Runs a tool and gives what it prints.
///
/// # Panics
/// When it is missing or fails.
pub(super) async fn tool(command: &mut Command) -> Vec<u8> {
    let name = command.as_std().get_program().to_owned();
    let output = command.output().await;
    let output = output.unwrap_or_else(|error| panic!("start {name:?} (make setup installs it): {error}"));
    assert!(output.status.success(), "{name:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// kubectl, aimed at the pod `target`.
pub(super) fn kubectl(api: &Api, speech: Speech, home: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("kubectl");
    command.args(["--server", &api.url, "--kubeconfig", "/dev/null", "--namespace", "default"]).args(words);
    command.env("HOME", home).env_remove("KUBECONFIG");
    let websockets = if speech == Speech::Spdy { "false" } else { "true" };
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
    command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
    command.kill_on_drop(true);
    command
}

/// The Python library, with a script of ours and the API server's address as its first argument.
pub(super) fn python(url: &str, script: &str, words: &[&str]) -> Command {
    // Debian's own, which has Debian's libraries.
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", script, url]).args(words).kill_on_drop(true);
    command
}

/// Runs a client to its end.
///
/// # Panics
/// When it is missing, or does not end.
pub(super) async fn run(mut command: Command, input: &[u8]) -> Ended {
    let name = command.as_std().get_program().to_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.spawn().unwrap_or_else(|error| panic!("start {name:?} (make setup installs it): {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // It may end before it has read everything.
    let feeder = tokio::spawn(async move { drop(stdin.write_all(&input).await) });
    let ended = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
    feeder.abort();
    let Output { status, stdout, stderr } =
        ended.unwrap_or_else(|_| panic!("{name:?} has not ended after {LIMIT:?}")).unwrap();
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    assert!(!stderr.contains("ModuleNotFoundError"), "make setup installs what is missing: {stderr}");
    Ended { code: status.code(), stdout, stderr }
}
