//! Builds by Sampan beside docker.io's `docker build` and `buildah bud --layers`: how long they take, and what comes of them.
//!
//! `speed` takes times of all of them in one run, in turns; ratios count. `compare` builds the Dockerfiles in
//! `tests/builds` with each, and compares the resulting trees file by file and the configurations key by key.

#![allow(clippy::print_stdout, clippy::print_stderr)] // the report goes to stdout, progress to stderr

mod builders;
mod compare;
mod speed;
mod tree;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use builders::Builder;

/// Builds by Sampan, docker and buildah next to each other.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where sampand, sampan and sampan-runtime are; without, beside this program
    #[arg(long, global = true, value_name = "DIR")]
    bin_dir: Option<PathBuf>,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Take times
    Speed {
        /// Rounds of each measurement
        #[arg(long, default_value_t = 10, value_name = "COUNT")]
        rounds: usize,
    },
    /// Compare what comes of the Dockerfiles in tests/builds
    Compare {
        /// Only these
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let builders = Builder::all(arguments.bin_dir).await?;
    match arguments.verb {
        Verb::Speed { rounds } => speed::measure(&builders, rounds),
        Verb::Compare { names } => compare::compare(&builders, &names),
    }
}
