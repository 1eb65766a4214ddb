//! `sampan-runtime`: a table of contents of what the program does.
//!
//! It is single-threaded from its first line to its last, whatever the verb.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Before anything a container could see: see `executable`.
    if let Err(error) = sampan_runtime::executable::protect() {
        return cli::fail(&error);
    }
    match cli::Cli::parse().command {
        cli::Command::Shim(arguments) => arguments.run(),
    }
}
