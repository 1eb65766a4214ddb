//! One call of one plugin: variables and standard input in, standard output out (CNI 1.1, section 2).

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;
use tracing::debug;

use super::error::Error;
use super::list::kind;

/// More than any result has.
const OUTPUT: u64 = 1 << 20;

/// What a plugin is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Gc => "GC",
            Verb::Status => "STATUS",
        }
    }

    fn limit(self) -> Duration {
        match self {
            // Less than the four minutes that kubelet gives a pod's start; some wait for addresses by DHCP.
            Verb::Add | Verb::Del => Duration::from_secs(100),
            // The agent's start, or kubelet's question for the node's health, waits for these.
            Verb::Check | Verb::Gc | Verb::Status => Duration::from_secs(10),
        }
    }
}

/// All of a call but the plugin and its input.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub verb: Verb,
    pub pod: &'a str,
    pub netns: &'a str,
    pub interface: &'a str,
    pub arguments: &'a str,
    pub folders: &'a [PathBuf],
}

/// An error as plugins print it.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// The plugin's program, in the first folder that has it.
pub(super) fn find(folders: &[PathBuf], plugin: &str) -> Result<PathBuf, Error> {
    let mut candidates = folders.iter().map(|folder| folder.join(plugin));
    candidates.find(|path| path.is_file()).ok_or_else(|| Error::Missing {
        plugin: plugin.to_owned(),
        folders: folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", "),
    })
}

/// Calls a plugin; what it prints, if anything.
pub(super) async fn run(
    call: &Call<'_>,
    plugin: &Map<String, Value>,
    input: Map<String, Value>,
) -> Result<Option<Value>, Error> {
    let name = kind(plugin);
    let program = find(call.folders, name)?;
    let input = Value::Object(input).to_string();
    let spoken = speak(call, program, &input);
    let (output, errors, success) = timeout(call.verb.limit(), spoken)
        .await
        .map_err(|_| Error::TimedOut {
            plugin: name.to_owned(),
            verb: call.verb.word(),
            limit: call.verb.limit(),
        })?
        .map_err(|source| Error::Run { plugin: name.to_owned(), source })?;
    debug!(plugin = name, verb = call.verb.word(), pod.id = call.pod, success, "CNI plugin called");
    if !success {
        return Err(refusal(call.verb, name, &output, &errors));
    }
    if output.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let malformed =
        |error: serde_json::Error| Error::Malformed { plugin: name.to_owned(), problem: error.to_string() };
    serde_json::from_slice(&output).map(Some).map_err(malformed)
}

async fn speak(call: &Call<'_>, program: PathBuf, input: &str) -> std::io::Result<(Vec<u8>, Vec<u8>, bool)> {
    let path = std::env::join_paths(call.folders).unwrap_or_default();
    let host = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    // Plugins are the exception of invariant 6.
    #[allow(clippy::disallowed_methods)]
    let mut command = Command::new(program);
    command.env_clear().env("PATH", host).env("CNI_COMMAND", call.verb.word()).env("CNI_PATH", path);
    if !call.pod.is_empty() {
        command
            .env("CNI_CONTAINERID", call.pod)
            .env("CNI_NETNS", call.netns)
            .env("CNI_IFNAME", call.interface)
            .env("CNI_ARGS", call.arguments);
    }
    // The agent may be killed: what a plugin does after a successor's DEL, nobody would undo.
    sampan_runtime::end_with_parent(command.as_std_mut());
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.current_dir("/").kill_on_drop(true).spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async move {
        if let Some(mut stdin) = stdin {
            // One that does not read its input may do without.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let ((), output, errors) = tokio::join!(write, all(stdout), all(stderr));
    Ok((output?, errors?, child.wait().await?.success()))
}

async fn all(pipe: Option<impl AsyncReadExt + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// Plugins tell errors on standard output; those that crash say what they can on standard error.
fn refusal(verb: Verb, plugin: &str, output: &[u8], errors: &[u8]) -> Error {
    let (code, message) = match serde_json::from_slice::<Refusal>(output) {
        Ok(Refusal { code, msg, details }) if details.is_empty() => (code, msg),
        Ok(Refusal { code, msg, details }) => (code, format!("{msg}: {details}")),
        Err(_) => {
            let text = String::from_utf8_lossy(if errors.is_empty() { output } else { errors });
            (0, text.trim().chars().take(1000).collect())
        }
    };
    let message = if message.is_empty() { "it failed without a word".to_owned() } else { message };
    Error::Refused { plugin: plugin.to_owned(), verb: verb.word(), code, message }
}
