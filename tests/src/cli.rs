//! The command line, run as a person runs it.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{binary, eventually_sync};

/// What a run of the command line gave.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit code; 128 + signal when it was killed.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}

/// `sampan --socket SOCKET`.
#[derive(Debug, Clone)]
pub struct Cli {
    socket: PathBuf,
}

/// Longer than anything a test asks the command line to do.
const LIMIT: Duration = Duration::from_secs(120);

impl Cli {
    pub(crate) fn new(socket: PathBuf) -> Cli {
        Cli { socket }
    }

    /// Starts it and leaves it to the caller.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().expect("start sampan")
    }

    /// Runs it to its end, whatever that is.
    ///
    /// # Panics
    /// When it does not end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.finish(self.spawn(arguments), arguments)
    }

    /// The same with something on its standard input, which ends then.
    ///
    /// # Panics
    /// When it does not end.
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().expect("start sampan");
        let mut stdin = child.stdin.take().expect("a pipe");
        let input = input.as_bytes().to_vec();
        // Beside the reading of its output, for which it may wait. It may end without reading it all.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = self.finish(child, arguments);
        writer.join().expect("no panic while writing");
        output
    }

    /// The same on a terminal made by `script`, with something typed.
    ///
    /// # Panics
    /// When it does not end.
    pub fn run_on_terminal(&self, arguments: &[&str], input: &str) -> Output {
        let quoted = |word: &&str| format!("'{word}'");
        let line = arguments.iter().map(quoted).collect::<Vec<_>>().join(" ");
        let program = binary("sampan");
        let line = format!("{} --socket {} {line}", program.display(), self.socket.display());
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start script, of Debian's bsdutils");
        let mut stdin = child.stdin.take().expect("a pipe");
        let _ = stdin.write_all(input.as_bytes());
        let output = self.finish(child, arguments);
        drop(stdin);
        output
    }

    fn finish(&self, child: Child, arguments: &[&str]) -> Output {
        use std::os::unix::process::ExitStatusExt;
        let pid = child.id();
        let waiter = std::thread::spawn(move || child.wait_with_output());
        if !eventually_sync(LIMIT, || waiter.is_finished()) {
            drop(Command::new("kill").arg("-9").arg(pid.to_string()).status());
            panic!("sampan {arguments:?} did not end within {LIMIT:?}");
        }
        let output = waiter.join().expect("no panic").expect("output of sampan");
        Output {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs it, and gives what it printed without the last line end.
    ///
    /// # Panics
    /// When it fails.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.code, 0, "sampan {arguments:?}: {}{}", output.stdout, output.stderr);
        output.stdout.trim_end_matches('\n').to_owned()
    }

    /// Runs it with `--output json`, and gives what it printed as a value.
    ///
    /// # Panics
    /// When it fails or prints no JSON.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let text = self.ok(&[arguments, &["--output", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("sampan {arguments:?}: {error}: {text}"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("sampan"));
        command
            .arg("--socket")
            .arg(&self.socket)
            .args(arguments)
            .env_remove("SAMPAN_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}
