//! Containers made for real, by root, from a busybox: each case clones, mounts and executes.
//!
//! A harness of its own, since clone3 without exec needs a process with one thread: the cases run
//! one after the other, and once more with containers that are made from few mounts, as the agent has it. Arguments that aren't options choose cases by a part of their name; `--skip=PART` leaves some out.

#![allow(clippy::print_stdout, reason = "this is a test runner")]

mod attack;
mod exec;
mod filesystem;
mod fixture;
mod isolation;
mod latency;
mod process;
mod race;

use std::panic::catch_unwind;
use std::process::ExitCode;

type Case = (&'static str, fn());

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|first| first == attack::PROBE) {
        attack::probe();
    }
    // What the runtime does first, so that the cases run under the conditions that count.
    sampan_runtime::executable::protect().expect("run from a read-only mount");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [companion, rest @ ..] = arguments.as_slice()
        && companion == race::COMPANION
    {
        race::companion(rest);
    }
    if arguments.first().is_some_and(|first| first == attack::LINGER) {
        attack::linger();
    }
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let skipped: Vec<&str> =
        arguments.iter().filter_map(|argument| argument.strip_prefix("--skip=")).collect();
    let of_files = [isolation::CASES, filesystem::CASES, process::CASES, exec::CASES];
    let cases = of_files
        .into_iter()
        .chain([attack::CASES, race::CASES, latency::CASES])
        .flatten()
        .filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str())))
        .filter(|(name, _)| !skipped.iter().any(|part| name.contains(part)));
    if arguments.iter().any(|argument| argument == "--list") {
        cases.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let mut failed = Vec::new();
    let cases: Vec<&Case> = cases.collect();
    for made_from in ["", "few mounts: "] {
        if !made_from.is_empty() {
            fixture::make_from_few_mounts();
        }
        for (name, case) in &cases {
            let outcome = catch_unwind(case);
            println!("test {made_from}{name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
            if outcome.is_err() {
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("\nfailures: {failed:?}");
    ExitCode::FAILURE
}

/// A table of functions with their names.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(crate) const CASES: &[crate::Case] = &[$((stringify!($name), $name)),*];
    };
}
pub(crate) use cases;
