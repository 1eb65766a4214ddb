//! `sampan`, the command line: a gRPC client of the agent and nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    sampan_agent::cli::main()
}
