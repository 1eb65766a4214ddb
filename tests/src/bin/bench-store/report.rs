//! The table, as Markdown.

use std::fmt::{Display, Formatter, Result as Formatted};
use std::time::Duration;

use crate::floor::Layer;

/// What one pull cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    /// Until it answered.
    pub(crate) pulled: Duration,
    /// Until all was on the disk.
    pub(crate) synced: Duration,
    /// Bytes in memory at most.
    pub(crate) peak: u64,
}

/// All pulls, by who did them, in the order of their first.
#[derive(Debug)]
pub(crate) struct Report {
    heading: String,
    systems: Vec<(&'static str, Vec<Figures>)>,
    again: Vec<Duration>,
    listed: Option<(usize, Duration)>,
}

impl Report {
    pub(crate) fn new(layers: &[Layer]) -> Report {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let bytes: u64 = layers.iter().map(|layer| layer.bytes).sum();
        let heading = format!(
            "{cores} cores, Linux {}; {} layers of {:.0} MB together",
            kernel.trim(),
            layers.len(),
            bytes as f64 / 1e6
        );
        Report { heading, systems: Vec::new(), again: Vec::new(), listed: None }
    }

    pub(crate) fn add(&mut self, system: &'static str, figures: Figures) {
        eprintln!(
            "  {system}: {:.2} s, {:.2} s with sync, {:.0} MiB",
            figures.pulled.as_secs_f64(),
            figures.synced.as_secs_f64(),
            mebibytes(figures.peak)
        );
        match self.systems.iter_mut().find(|(name, _)| *name == system) {
            Some((_, all)) => all.push(figures),
            None => self.systems.push((system, vec![figures])),
        }
    }

    /// A pull of what is there.
    pub(crate) fn again(&mut self, took: Duration) {
        self.again.push(took);
    }

    /// Lists of so many images.
    pub(crate) fn list(&mut self, images: usize, times: &[Duration]) {
        self.listed = Some((images, median(times.iter().copied())));
    }
}

impl Display for Report {
    fn fmt(&self, out: &mut Formatter<'_>) -> Formatted {
        writeln!(out, "{}\n", self.heading)?;
        writeln!(out, "| | pull, p50 | best | until synced, p50 | peak RSS | ours is times faster |")?;
        writeln!(out, "|---|---|---|---|---|---|")?;
        let p50 = |all: &[Figures]| median(all.iter().map(|one| one.pulled));
        let ours = self.systems.first().map_or(Duration::ZERO, |(_, all)| p50(all)).as_secs_f64();
        for (name, all) in &self.systems {
            let best = all.iter().map(|one| one.pulled).min().unwrap_or_default();
            let synced = median(all.iter().map(|one| one.synced));
            let peak = match all.iter().map(|one| one.peak).max().unwrap_or_default() {
                0 => "–".to_owned(),
                peak => format!("{:.0} MiB", mebibytes(peak)),
            };
            writeln!(
                out,
                "| {name} | {:.2} s | {:.2} s | {:.2} s | {peak} | {:.2} |",
                p50(all).as_secs_f64(),
                best.as_secs_f64(),
                synced.as_secs_f64(),
                p50(all).as_secs_f64() / ours
            )?;
        }
        writeln!(out, "\nThe same pull again: {:.1} ms.", milliseconds(median(self.again.iter().copied())))?;
        if let Some((images, time)) = self.listed {
            writeln!(out, "ListImages of {images} images: {:.2} ms.", milliseconds(time))?;
        }
        Ok(())
    }
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}
