//! Credential helpers: the programs that keep a registry's credentials for Docker, `docker-credential-NAME`.
//!
//! `get` on the command line, the server on standard input, JSON on standard output. A helper runs when a registry
//! asks for credentials that the node's configuration leaves to it, and never on the way of a pod's start: clusters
//! bring credentials with the pull. Neither its output nor the credentials are ever logged.

use std::{process::Stdio, time::Duration};

use sampan_imagestore::{Auth, CredentialHelper, HelperAnswer};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::timeout,
};

/// What a helper gets to answer: some ask a service on the network.
const ANSWER: Duration = Duration::from_secs(30);
/// More than any credentials have.
const OUTPUT: u64 = 64 << 10;
/// What a helper prints when it has none (docker-credential-helpers: credentials/error.go).
const NOT_FOUND: &str = "credentials not found in native keychain";
/// In place of a user, it says that the secret is an identity token.
const TOKEN: &str = "<token>";

/// Runs helpers found in PATH.
#[derive(Debug)]
pub(crate) struct Helpers;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl CredentialHelper for Helpers {
    fn get<'a>(&'a self, name: &'a str, server: &'a str) -> HelperAnswer<'a> {
        Box::pin(async move {
            match timeout(ANSWER, run(name, server)).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("it did not answer within {ANSWER:?}")),
            }
        })
    }
}

async fn run(name: &str, server: &str) -> Result<Option<Auth>, String> {
    // The name comes from a file of the operator's; all the same it is to name a program and no path.
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err("that is no name of a helper".to_owned());
    }
    let failed = |error: std::io::Error| error.to_string();
    // Invariant 6 is about pods: this is a program that the operator asks for, and no part of a start.
    #[allow(clippy::disallowed_methods)]
    let mut child = Command::new(format!("docker-credential-{name}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (mut input, output) = (child.stdin.take(), child.stdout.take());
    if let Some(input) = &mut input {
        // One that does not listen may know without.
        let _ = input.write_all(server.as_bytes()).await;
    }
    drop(input);
    let mut bytes = Vec::new();
    if let Some(output) = output {
        output.take(OUTPUT + 1).read_to_end(&mut bytes).await.map_err(failed)?;
    }
    if bytes.len() as u64 > OUTPUT {
        return Err("it answers without end".to_owned());
    }
    let status = child.wait().await.map_err(failed)?;
    read(&bytes, status.success())
}

fn read(bytes: &[u8], success: bool) -> Result<Option<Auth>, String> {
    if !success {
        return match String::from_utf8_lossy(bytes).trim() == NOT_FOUND {
            true => Ok(None),
            false => Err("it failed; run it by hand to see why".to_owned()),
        };
    }
    let answer: Answer = serde_json::from_slice(bytes).map_err(|_| "its answer is malformed".to_owned())?;
    Ok(Some(match answer.username.as_str() {
        TOKEN => Auth::IdentityToken(answer.secret),
        _ => Auth::Basic { username: answer.username, password: answer.secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood_and_never_repeated() {
        let basic = read(br#"{"ServerURL":"x","Username":"u","Secret":"s"}"#, true).unwrap();
        assert_eq!(basic, Some(Auth::Basic { username: "u".into(), password: "s".into() }));
        let token = read(br#"{"Username":"<token>","Secret":"s"}"#, true).unwrap();
        assert_eq!(token, Some(Auth::IdentityToken("s".into())));
        assert_eq!(read(b"credentials not found in native keychain\n", false).unwrap(), None);
        for (bytes, success) in [(&b"hunter2"[..], true), (b"hunter2", false), (b"", true)] {
            assert!(!read(bytes, success).unwrap_err().contains("hunter2"));
        }
    }

    #[tokio::test]
    async fn only_programs_of_the_right_name_are_run() {
        for name in ["", "../x", "a/b", "a b", "a\0"] {
            assert!(Helpers.get(name, "x").await.unwrap_err().contains("no name"), "{name:?}");
        }
        let missing = Helpers.get("surely-not-there", "x").await.unwrap_err();
        assert!(missing.contains("No such file"), "{missing}");
    }
}
