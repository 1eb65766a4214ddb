//! How figures grow with the number of pods that are there already: flat is the goal.

use std::fmt::{Display, Formatter, Result as Formatted};
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_cri::v1::ListContainerStatsRequest;

use crate::measure::median;
use crate::memory;
use crate::system::System;

/// Where it is measured.
const STEPS: [usize; 8] = [1, 25, 50, 100, 200, 300, 400, 500];
/// Samples of each figure at each step.
const SAMPLES: usize = 15;
/// How long the agent is left alone to see what it does by itself: sampling, above all.
const REST: Duration = Duration::from_secs(20);

/// One system's figures, step by step.
#[derive(Debug)]
pub(crate) struct Growth {
    system: String,
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    pods: usize,
    /// Seconds, as the next two.
    pod_up: f64,
    exec: f64,
    stats: f64,
    /// Bytes.
    resident: f64,
    /// Processor time while nobody asks for anything: the part of one core.
    alone: f64,
}

/// Brings up pods, more and more, and looks at each step what one more costs.
pub(crate) async fn growth(system: &System, image: &str, most: usize) -> Result<Growth> {
    let mut pods: Vec<(String, String)> = Vec::new();
    let mut steps = Vec::new();
    for step in STEPS.into_iter().filter(|step| *step <= most) {
        eprintln!("growth: {} with {step} pods", system.name);
        let missing = step - pods.len();
        let made = stream::iter(0..missing).map(|_| async { system.up(image, &system.pod()).await });
        pods.extend(made.buffer_unordered(10).try_collect::<Vec<_>>().await?);
        steps.push(measure(system, image, step, &pods[0].1).await?);
    }
    eprintln!("growth: removing the pods of {}", system.name);
    let gone = stream::iter(&pods).map(|(pod, container)| system.down(pod, container));
    gone.buffer_unordered(10).try_collect::<()>().await?;
    Ok(Growth { system: system.name.to_owned(), steps })
}

async fn measure(system: &System, image: &str, pods: usize, container: &str) -> Result<Step> {
    let (mut ups, mut execs, mut lists) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=SAMPLES {
        let pod = system.pod();
        let start = Instant::now();
        let (id, own) = system.up(image, &pod).await?;
        let up = start.elapsed();
        system.down(&id, &own).await?;
        let start = Instant::now();
        system.cri.exec(container, &["/bin/true"], 10).await?;
        let exec = start.elapsed();
        let start = Instant::now();
        let request = ListContainerStatsRequest { filter: None };
        let answer = system.cri.runtime.clone().list_container_stats(request).await?.into_inner();
        let list = start.elapsed();
        anyhow::ensure!(answer.stats.len() == pods, "{} of {pods} containers", answer.stats.len());
        if round > 0 {
            ups.push(up);
            execs.push(exec);
            lists.push(list);
        }
    }
    let before = memory::processor_time(system.pid);
    tokio::time::sleep(REST).await;
    let spent = memory::processor_time(system.pid).saturating_sub(before);
    Ok(Step {
        pods,
        pod_up: median(&ups),
        exec: median(&execs),
        stats: median(&lists),
        resident: memory::resident(system.pid) as f64,
        alone: spent.as_secs_f64() / REST.as_secs_f64(),
    })
}

impl Growth {
    /// A chart that Markdown's readers draw.
    fn chart(
        &self,
        out: &mut Formatter<'_>,
        title: &str,
        unit: &str,
        value: impl Fn(&Step) -> f64,
    ) -> Formatted {
        let join =
            |text: &dyn Fn(&Step) -> String| self.steps.iter().map(text).collect::<Vec<_>>().join(", ");
        let top = self.steps.iter().map(&value).fold(0.0, f64::max);
        writeln!(out, "```mermaid\nxychart-beta\n    title \"{}: {title}\"", self.system)?;
        writeln!(out, "    x-axis \"pods\" [{}]", join(&|step| step.pods.to_string()))?;
        writeln!(out, "    y-axis \"{unit}\" 0 --> {:.0}", (top * 1.25).ceil())?;
        writeln!(out, "    line [{}]\n```\n", join(&|step| format!("{:.2}", value(step))))
    }
}

impl Display for Growth {
    fn fmt(&self, out: &mut Formatter<'_>) -> Formatted {
        writeln!(
            out,
            "\n| pods there | pod up, p50 | ExecSync, p50 | ListContainerStats, p50 | agent, RSS | agent left alone, of a core |"
        )?;
        writeln!(out, "|---|---|---|---|---|---|")?;
        for step in &self.steps {
            writeln!(
                out,
                "| {} | {:.1} ms | {:.2} ms | {:.2} ms | {:.1} MiB | {:.2} % |",
                step.pods,
                step.pod_up * 1e3,
                step.exec * 1e3,
                step.stats * 1e3,
                step.resident / 1024.0 / 1024.0,
                step.alone * 100.0
            )?;
        }
        writeln!(out)?;
        self.chart(out, "pod up, p50", "ms", |step| step.pod_up * 1e3)?;
        self.chart(out, "ExecSync, p50", "ms", |step| step.exec * 1e3)?;
        self.chart(out, "ListContainerStats of all, p50", "ms", |step| step.stats * 1e3)?;
        self.chart(out, "agent, RSS", "MiB", |step| step.resident / 1024.0 / 1024.0)
    }
}
