//! Bare starts: `RUNTIME run` of a static `/bin/true`, of this runtime beside runc, crun and the floor, in one run.
//!
//! All take turns, so that an hour in which the machine is busy is busy for everybody; what counts is the ratio. The
//! floor is a program that does what none of them can leave out: it is executed, makes the namespaces, changes the root,
//! has a child execute `/bin/true` and waits for it. The second floor makes, enters and removes a cgroup in each hierarchy
//! besides: nine on a machine with version 1. The third, of the usual container, also has its mounts, masks and limits.
//! Nothing here passes or fails. Needs root.

#![allow(clippy::print_stdout, clippy::print_stderr)] // the report goes to stdout, progress to stderr

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

mod bundle;
mod floor;

use bundle::{Bundle, Kind};

/// Measures the start of a container by runtimes from the command line.
#[derive(Debug, Parser)]
struct Arguments {
    /// This runtime; without, beside this program
    #[arg(long, value_name = "PATH")]
    runtime: Option<PathBuf>,

    /// Starts of each runtime in each bundle
    #[arg(long, default_value_t = 50, value_name = "COUNT")]
    rounds: usize,

    /// Only this kind of bundle
    #[arg(long, value_enum, value_name = "KIND")]
    only: Option<Kind>,

    /// Rest before each start in the last table, in milliseconds
    #[arg(long, default_value_t = 100, value_name = "MS")]
    idle: u64,
}

const FLOOR_WITH_CGROUPS: &str = "floor with cgroups";
const FLOOR_WITH_ALL: &str = "floor with cgroups, mounts, masks, limits";

/// One who starts containers.
struct Contender {
    name: &'static str,
    program: PathBuf,
    /// Of each start so far.
    times: Vec<Duration>,
}

fn main() -> Result<()> {
    if let Some(rest) = floor::asked() {
        return floor::run(&rest);
    }
    let arguments = Arguments::parse();
    floor::own_mounts()?;
    for kind in [Kind::Minimal, Kind::Full] {
        if arguments.only.is_none_or(|only| only == kind) {
            table(&arguments, kind, Duration::ZERO)?;
        }
    }
    if arguments.only.is_none() && arguments.idle > 0 {
        table(&arguments, Kind::Full, Duration::from_millis(arguments.idle))?;
    }
    Ok(())
}

fn table(arguments: &Arguments, kind: Kind, idle: Duration) -> Result<()> {
    let bundle = Bundle::make(kind)?;
    let mut contenders = contenders(arguments, kind)?;
    for round in 0..arguments.rounds + 1 {
        for contender in &mut contenders {
            std::thread::sleep(idle);
            let time = start(contender, &bundle, round)?;
            // The first warms caches: of files, and of a compiled filter.
            if round > 0 {
                contender.times.push(time);
            }
        }
    }
    let rest =
        if idle.is_zero() { String::new() } else { format!(", after {} ms of rest", idle.as_millis()) };
    println!("\n{}{rest}; {} starts each\n", kind.describe(), arguments.rounds);
    println!("| | p50 | p95 | times the floor |\n|---|---|---|---|");
    let floor = percentile(&contenders[0].times, 50);
    for contender in &contenders {
        let (p50, p95) = (percentile(&contender.times, 50), percentile(&contender.times, 95));
        println!("| {} | {p50:.2} ms | {p95:.2} ms | {:.2} |", contender.name, p50 / floor);
    }
    Ok(())
}

/// The floor first, then this runtime and those of others that are installed.
fn contenders(arguments: &Arguments, kind: Kind) -> Result<Vec<Contender>> {
    let own = std::env::current_exe().context("find this program")?;
    let beside = || own.with_file_name("sampan-runtime");
    let runtime = arguments.runtime.clone().unwrap_or_else(beside);
    ensure!(runtime.is_file(), "{} is missing: build it, or name another by --runtime", runtime.display());
    let contender = |name, program| Contender { name, program, times: Vec::new() };
    let mut all = vec![contender("floor", own.clone()), contender(FLOOR_WITH_CGROUPS, own.clone())];
    all.extend((kind == Kind::Full).then(|| contender(FLOOR_WITH_ALL, own)));
    all.push(contender("sampan-runtime", runtime));
    for name in ["runc", "crun"] {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file());
        match found {
            Some(program) => all.push(contender(name, program)),
            None => eprintln!("{name} is not installed and left out"),
        }
    }
    Ok(all)
}

/// From the start of the runtime to its end, which is that of the container.
fn start(contender: &Contender, bundle: &Bundle, round: usize) -> Result<Duration> {
    let mut command = Command::new(&contender.program);
    let id = format!("sampan-bench-{}-{round}", std::process::id());
    let mut cgroups = Vec::new();
    if contender.name.starts_with("floor") {
        let equipped = contender.name == FLOOR_WITH_ALL;
        if equipped || contender.name == FLOOR_WITH_CGROUPS {
            cgroups = floor::cgroups(&id);
        }
        floor::arguments(&mut command, &bundle.rootfs(), bundle.kind, &cgroups, equipped);
    } else {
        command
            .arg("--root")
            .arg(bundle.state(contender.name))
            .arg("run")
            .arg("--bundle")
            .arg(bundle.path())
            .arg(id);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let since = Instant::now();
    let output = command.output().with_context(|| format!("run {}", contender.program.display()))?;
    floor::remove(&cgroups)?;
    let time = since.elapsed();
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}: {told}", contender.name, output.status);
    Ok(time)
}

/// In milliseconds.
fn percentile(times: &[Duration], percent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort();
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}

/// A folder that has to be there.
fn folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))
}
