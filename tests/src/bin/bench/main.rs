//! Sampan beside Debian's containerd and runc: the same client, images, registry and machine, in one run.
//!
//! Figures of two systems from one run can be compared; those of two days cannot. So both run at the same time and
//! take turns, and what counts is the ratio. Nothing here passes or fails.

#![allow(clippy::print_stdout, clippy::print_stderr)] // the report goes to stdout, progress to stderr

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use sampan_tests::{Agent, Disk, Options, fixture};
use tempfile::TempDir;

mod containerd;
mod growth;
mod measure;
mod memory;
mod report;
mod system;

use containerd::Containerd;
use report::Report;
use system::System;

/// Measures Sampan, and containerd with runc next to it.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where sampand and sampan-runtime are; without, beside this program
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,

    /// Pods brought up one after the other
    #[arg(long, default_value_t = 30, value_name = "COUNT")]
    rounds: usize,

    /// Pods that run at once when lists and memory are measured
    #[arg(long, default_value_t = 50, value_name = "COUNT")]
    pods: usize,

    /// Pulls of the large image; 0: none, and it is not made
    #[arg(long, default_value_t = 3, value_name = "COUNT")]
    pulls: usize,

    /// Instead of the table: how figures grow up to so many pods; 0: the table
    #[arg(long, default_value_t = 0, value_name = "PODS")]
    growth: usize,

    /// Measure only this system
    #[arg(long, value_enum, value_name = "SYSTEM")]
    only: Option<Only>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    Sampan,
    Containerd,
}

/// Where both systems keep their files, as on a node: a disk with a journal, and memory for what a reboot makes void.
///
/// An ext4 without a journal, which a machine for tests may have, looks at every inode that was deleted in the last minutes
/// before it gives one away, so that pods which come and go cost more and more.
struct Place {
    disk: Disk,
    memory: TempDir,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // 16 GiB of a sparse file: room for what two systems pull and unpack.
    let place = Place { disk: Disk::new(16 << 10), memory: tempfile::tempdir_in("/dev/shm")? };
    let image = fixture().image("busybox");
    let agent = match arguments.only {
        Some(Only::Containerd) => None,
        _ => Some(start_agent(arguments.bin_dir.clone(), &place).await),
    };
    let containerd = match arguments.only {
        Some(Only::Sampan) => None,
        _ => Some(Containerd::start(&place.disk.path(), Some(place.memory.path().join("c"))).await?),
    };
    let systems: Vec<System> =
        agent.iter().map(System::of_agent).chain(containerd.iter().map(System::of_containerd)).collect();
    let mut report = Report::new(&systems).await?;
    for system in &systems {
        system.cri.pull(&image).await?;
    }
    if arguments.growth > 0 {
        for system in &systems {
            print!("{}", growth::growth(system, &image, arguments.growth).await?);
        }
        return Ok(());
    }
    measure::pod_up(&systems, &image, arguments.rounds, &mut report).await?;
    measure::ten_at_once(&systems, &image, arguments.rounds.div_ceil(3), &mut report).await?;
    measure::exec(&systems, &image, arguments.rounds * 5, &mut report).await?;
    measure::many(&systems, &image, arguments.pods, &mut report).await?;
    if arguments.pulls > 0 {
        measure::pulls(&systems, &fixture().large(), arguments.pulls, &mut report).await?;
    }
    print!("{report}");
    Ok(())
}

async fn start_agent(binaries: Option<PathBuf>, place: &Place) -> Agent {
    Agent::start_with(Options {
        binaries,
        base_in: Some(place.disk.path()),
        state: Some(place.memory.path().join("s")),
        log_level: Some("info".into()),
        subnet_bits: Some(20),
        ..Options::default()
    })
    .await
}
