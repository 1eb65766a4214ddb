//! What is measured. Systems take turns, so that whatever else the machine does hits them alike.

use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_cri::v1::ListContainerStatsRequest;

use crate::memory;
use crate::report::{Report, Unit};
use crate::system::System;

/// How often a list is asked for.
const LISTS: usize = 30;

/// Sandbox, create and start, with an address of its own.
pub(crate) async fn pod_up(
    systems: &[System],
    image: &str,
    rounds: usize,
    report: &mut Report,
) -> Result<()> {
    let mut times = vec![Vec::new(); systems.len()];
    // The first round makes bridges and fills caches.
    for round in 0..=rounds {
        eprintln!("pod up: {round} of {rounds}");
        for (system, times) in systems.iter().zip(&mut times) {
            let pod = system.pod();
            let start = Instant::now();
            let (pod_id, container) = system.up(image, &pod).await?;
            if round > 0 {
                times.push(start.elapsed());
            }
            system.down(&pod_id, &container).await?;
        }
    }
    report.row(
        "pod up (sandbox + create + start, own network), p50",
        Unit::Time,
        times.iter().map(|times| median(times)),
    );
    report.row("pod up, p95", Unit::Time, times.iter().map(|times| percentile(times, 95)));
    Ok(())
}

/// Ten clients, each bringing one pod up and down.
pub(crate) async fn ten_at_once(
    systems: &[System],
    image: &str,
    rounds: usize,
    report: &mut Report,
) -> Result<()> {
    let mut times = vec![Duration::ZERO; systems.len()];
    for round in 0..rounds {
        eprintln!("ten at once: {} of {rounds}", round + 1);
        for (system, time) in systems.iter().zip(&mut times) {
            let start = Instant::now();
            let lives = (0..10).map(async |_| -> Result<()> {
                let (pod, container) = system.up(image, &system.pod()).await?;
                system.down(&pod, &container).await
            });
            all(lives).await?;
            *time += start.elapsed();
        }
    }
    let rates = times.iter().map(|time| (rounds * 10) as f64 / time.as_secs_f64());
    report.row("pods a second, 10 at once, up and down", Unit::PerSecond, rates);
    Ok(())
}

/// A probe.
pub(crate) async fn exec(systems: &[System], image: &str, rounds: usize, report: &mut Report) -> Result<()> {
    let mut pods = Vec::new();
    for system in systems {
        pods.push(system.up(image, &system.pod()).await?);
    }
    eprintln!("exec: {rounds} rounds");
    let mut times = vec![Vec::new(); systems.len()];
    for round in 0..=rounds {
        for ((system, (_, container)), times) in systems.iter().zip(&pods).zip(&mut times) {
            let start = Instant::now();
            let answer = system.cri.exec(container, &["/bin/true"], 10).await?;
            anyhow::ensure!(answer.exit_code == 0, "true is false");
            if round > 0 {
                times.push(start.elapsed());
            }
        }
    }
    for (system, (pod, container)) in systems.iter().zip(&pods) {
        system.down(pod, container).await?;
    }
    report.row("ExecSync /bin/true, p50", Unit::Time, times.iter().map(|times| median(times)));
    Ok(())
}

/// Lists and memory with many pods running in each system.
pub(crate) async fn many(systems: &[System], image: &str, count: usize, report: &mut Report) -> Result<()> {
    let mut pods = vec![Vec::new(); systems.len()];
    for number in 0..count {
        eprintln!("many pods: {} of {count}", number + 1);
        for (system, pods) in systems.iter().zip(&mut pods) {
            pods.push(system.up(image, &system.pod()).await?);
        }
    }
    let mut times = vec![Vec::new(); systems.len()];
    let mut spent = vec![Duration::ZERO; systems.len()];
    for round in 0..=LISTS {
        for ((system, times), spent) in systems.iter().zip(&mut times).zip(&mut spent) {
            let before = memory::processor_time(system.pid);
            let start = Instant::now();
            let request = ListContainerStatsRequest { filter: None };
            let answer = system.cri.runtime.clone().list_container_stats(request).await?.into_inner();
            anyhow::ensure!(answer.stats.len() == count, "{} of {count} containers", answer.stats.len());
            if round > 0 {
                times.push(start.elapsed());
                *spent += memory::processor_time(system.pid).saturating_sub(before);
            }
        }
    }
    report.row(
        &format!("ListContainerStats with {count} containers, p50"),
        Unit::Time,
        times.iter().map(|times| median(times)),
    );
    report.row(
        &format!("ListContainerStats with {count} containers, the agent's processor time"),
        Unit::Time,
        spent.iter().map(|spent| spent.as_secs_f64() / LISTS as f64),
    );
    // Who has just had something to do keeps its pages at hand for a moment.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let monitors = systems.iter().zip(&pods).map(|(_, pods)| {
        pods.iter().map(|(pod, container)| memory::monitors(pod, container)).sum::<u64>() as f64
            / count as f64
    });
    report.row(&format!("monitor and pause, PSS a pod, of {count}"), Unit::Bytes, monitors);
    let resident = systems.iter().map(|system| memory::resident(system.pid) as f64);
    report.row(&format!("agent, RSS with {count} pods"), Unit::Bytes, resident);
    for (system, pods) in systems.iter().zip(&pods) {
        eprintln!("many pods: removing those of {}", system.name);
        for (pod, container) in pods {
            system.down(pod, container).await?;
        }
    }
    Ok(())
}

/// The large image, from the registry on loopback, removed between pulls.
pub(crate) async fn pulls(systems: &[System], image: &str, rounds: usize, report: &mut Report) -> Result<()> {
    let mut times = vec![Vec::new(); systems.len()];
    for round in 0..rounds {
        for (system, times) in systems.iter().zip(&mut times) {
            rustix::fs::sync();
            let start = Instant::now();
            system.cri.pull(image).await?;
            times.push(start.elapsed());
            eprintln!(
                "pull {} of {rounds} by {}: {:.1} s",
                round + 1,
                system.name,
                start.elapsed().as_secs_f64()
            );
            system.cri.remove_image(image).await?;
        }
    }
    report.row(
        "pull of the large image, first",
        Unit::Time,
        times.iter().map(|times| times[0].as_secs_f64()),
    );
    report.row("pull of the large image, p50", Unit::Time, times.iter().map(|times| median(times)));
    Ok(())
}

/// Waits for all of them, running at once.
async fn all(futures: impl Iterator<Item = impl Future<Output = Result<()>>>) -> Result<()> {
    futures_util::future::try_join_all(futures).await.map(drop)
}

pub(crate) fn median(times: &[Duration]) -> f64 {
    percentile(times, 50)
}

fn percentile(times: &[Duration], percent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(0.0, Duration::as_secs_f64)
}
