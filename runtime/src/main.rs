//! `sampan-runtime`: a table of contents of what the program does.
//!
//! It is single-threaded from its first line to its last, whatever the verb.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A monitor is started for every pod: it doesn't pay for the other verbs.
    match std::env::args_os().nth(1) {
        Some(verb) if verb == "shim" => cli::shim(),
        _ => sampan_runtime::oci::main(),
    }
}
