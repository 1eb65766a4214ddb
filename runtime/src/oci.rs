//! The OCI runtime as a command line: the verbs, options, texts and exit codes that callers of runc know.
//!
//! One process does one verb and ends; what lasts is a folder for each container (see `record`). A verb that makes a
//! process is single-threaded from its beginning to its end. Nothing here waits for anything without a deadline but
//! for a container that is being made or run in the foreground, whose end is noticed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

mod arguments;
mod checkpoint;
mod child;
mod configuration;
mod create;
mod delete;
mod error;
mod events;
mod exec;
mod features;
mod filter;
mod foreground;
mod guest;
mod list;
mod log;
mod record;
mod restore;
mod signal;
mod socket;
mod specification;
mod start;
mod update;

use arguments::{Arguments, Verb};
use error::{Error, Result};
use log::Log;

/// The version of the specification that is implemented.
const OCI_VERSION: &str = "1.3.0";

/// What every verb gets.
struct Context {
    root: PathBuf,
    /// Whether the caller chose it.
    root_was_named: bool,
    log: Log,
    systemd: bool,
}

/// Does what the arguments of this process say.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // There is nobody to tell that telling failed.
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    if arguments.version {
        let text = format!("sampan-runtime version {}\nspec: {OCI_VERSION}\n", env!("CARGO_PKG_VERSION"));
        return match write_out(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let log = match Log::open(arguments.log.as_deref(), arguments.log_format, arguments.debug) {
        Ok(log) => log,
        Err(error) => {
            Log::standard().error(&error);
            return ExitCode::FAILURE;
        }
    };
    let root_was_named = arguments.root.is_some();
    let root = arguments.root.unwrap_or_else(default_root);
    let context = Context { root, root_was_named, log, systemd: arguments.systemd_cgroup };
    let Some(verb) = arguments.verb else {
        context.log.error(&Error::refused("no command is given; --help lists them"));
        return ExitCode::FAILURE;
    };
    // Exec fails with a code that its program is unlikely to have.
    let failure = if matches!(verb, Verb::Exec(_)) { 255 } else { 1 };
    match run(&context, verb) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            context.log.error(&error);
            ExitCode::from(failure)
        }
    }
}

fn run(context: &Context, verb: Verb) -> Result<u8> {
    if verb.makes_processes() {
        // Before anything a container could see: see `executable`.
        crate::executable::protect().map_err(Error::Protect)?;
    }
    match verb {
        Verb::Create(arguments) => create::create(context, &arguments).map(|()| 0),
        Verb::Run(arguments) => create::run(context, &arguments),
        Verb::Start(arguments) => start::start(context, &arguments.id).map(|()| 0),
        Verb::State(arguments) => list::state(context, &arguments.id).map(|()| 0),
        Verb::Kill(arguments) => signal::kill(context, &arguments).map(|()| 0),
        Verb::Delete(arguments) => delete::delete(context, &arguments.id, arguments.force).map(|()| 0),
        Verb::Exec(arguments) => exec::exec(context, &arguments),
        Verb::List(arguments) => list::list(context, &arguments).map(|()| 0),
        Verb::Ps(arguments) => list::ps(context, &arguments).map(|()| 0),
        Verb::Pause(arguments) => update::freeze(context, &arguments.id, true).map(|()| 0),
        Verb::Resume(arguments) => update::freeze(context, &arguments.id, false).map(|()| 0),
        Verb::Update(arguments) => update::update(context, &arguments).map(|()| 0),
        Verb::Events(arguments) => events::events(context, &arguments).map(|()| 0),
        Verb::Checkpoint(arguments) => checkpoint::checkpoint(context, &arguments).map(|()| 0),
        Verb::Restore(arguments) => restore::restore(context, &arguments),
        Verb::Features => features::features().map(|()| 0),
        Verb::Spec(arguments) => specification::write(&arguments).map(|()| 0),
    }
}

/// A user's own folder where there is one, as for runc.
fn default_root() -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !rustix::process::geteuid().is_root());
    own.map_or_else(|| PathBuf::from("/run"), PathBuf::from).join("sampan-runtime")
}

/// Bytes on standard output.
fn write_out(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|source| Error::io("write to standard output", source))
}

/// JSON and a line's end on standard output.
fn write_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::io("write JSON", error.into()))?;
    write_out(format!("{text}\n").as_bytes())
}

/// A file that appears whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |source| Error::io(format!("write {}", path.display()), source);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|source| {
        // What was told is the first failure.
        let _ = std::fs::remove_file(&temporary);
        failed(source)
    })
}
