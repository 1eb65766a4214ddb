//! Pulls of the large image by Sampan, containerd and dockerd, and the floor beneath all of them, in one run.
//!
//! All pull from the same registry on loopback into an empty store on the same file system, in turns, after a `sync`;
//! what matters is the ratio. The floor is `pigz -dc | tar -x` for every layer at once, from files: no registry, no
//! digest, nothing stored twice. Pulls answer before all that they wrote is on the disk, each system in its own way,
//! so the time until another `sync` has returned is told as well. Nothing here passes or fails.

#![allow(clippy::print_stdout, clippy::print_stderr)] // the report goes to stdout, progress to stderr

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use sampan_tests::{Agent, Docker, Options, fixture};

#[path = "../bench/containerd.rs"]
#[allow(dead_code)] // the other benchmark looks at more of it
mod containerd;
mod floor;
mod list;
mod memory;
mod report;

use containerd::Containerd;
use report::{Figures, Report};

/// Measures pulls by Sampan, containerd, dockerd and by pigz and tar.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where sampand and sampan-runtime are; without, beside this program
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,

    /// Pulls by each
    #[arg(long, default_value_t = 3, value_name = "COUNT")]
    rounds: usize,

    /// Images in the list that is timed; 0: no list
    #[arg(long, default_value_t = 1000, value_name = "COUNT")]
    images: usize,

    /// Measure neither containerd nor dockerd
    #[arg(long)]
    alone: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let image = fixture().large();
    let layers = floor::layers(&fixture().images().join("large"))?;
    let agent = start_agent(arguments.bin_dir.clone()).await;
    let mut report = Report::new(&layers);
    let others = match arguments.alone {
        true => None,
        false => Some((Containerd::start(Path::new("/tmp"), None).await?, Docker::start())),
    };
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}", arguments.rounds);
        let pid = agent.scope().pid;
        let ours = measured(&[pid], async || Ok(agent.cri().pull(&image).await.map(drop)?)).await?;
        report.add("Sampan", ours);
        let start = Instant::now();
        agent.cri().pull(&image).await?;
        report.again(start.elapsed());
        agent.cri().remove_image(&image).await?;
        if let Some((containerd, docker)) = &others {
            let cri = containerd.cri();
            let pid = containerd.pid();
            let theirs = measured(&[pid], async || Ok(cri.pull(&image).await.map(drop)?)).await?;
            report.add("containerd", theirs);
            cri.remove_image(&image).await?;
            let pids = docker.pids();
            let theirs = measured(&pids, async || {
                docker.run(&["pull", "-q", &image]);
                Ok(())
            });
            report.add("dockerd", theirs.await?);
            docker.run(&["rmi", &image]);
        }
        report.add("floor", measured(&[], async || floor::unpack(&layers)).await?);
        floor::clear()?;
    }
    if arguments.images > 0 {
        report.list(arguments.images, &list::times(&agent, arguments.images).await?);
    }
    print!("{report}");
    Ok(())
}

/// How long it takes, from a quiet disk, and the most memory that these processes had together meanwhile.
async fn measured(pids: &[u32], work: impl AsyncFnOnce() -> Result<()>) -> Result<Figures> {
    rustix::fs::sync();
    pids.iter().for_each(|pid| memory::forget_peak(*pid));
    let start = Instant::now();
    work().await?;
    let pulled = start.elapsed();
    let peak = pids.iter().map(|pid| memory::peak(*pid)).sum();
    rustix::fs::sync();
    Ok(Figures { pulled, synced: start.elapsed(), peak })
}

async fn start_agent(binaries: Option<PathBuf>) -> Agent {
    Agent::start_with(Options { binaries, log_level: Some("info".into()), ..Options::default() }).await
}
