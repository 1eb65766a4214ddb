//! The table, as Markdown.

use std::fmt::{Display, Formatter, Result as Formatted};
use std::fs;

use anyhow::Result;
use k8s_cri::v1::VersionRequest;

use crate::system::System;

/// What a number means.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unit {
    /// Seconds; less is better.
    Time,
    /// More is better.
    PerSecond,
    /// Less is better.
    Bytes,
}

/// Rows of figures, a column for each system.
#[derive(Debug)]
pub(crate) struct Report {
    machine: String,
    systems: Vec<String>,
    rows: Vec<(String, Unit, Vec<f64>)>,
}

impl Report {
    pub(crate) async fn new(systems: &[System]) -> Result<Report> {
        let mut names = Vec::new();
        for system in systems {
            let request = VersionRequest { version: "0.1.0".into() };
            let version = system.cri.runtime.clone().version(request).await?.into_inner().runtime_version;
            names.push(format!("{} {version}", system.name));
        }
        Ok(Report { machine: machine(), systems: names, rows: Vec::new() })
    }

    pub(crate) fn row(&mut self, what: &str, unit: Unit, values: impl Iterator<Item = f64>) {
        self.rows.push((what.to_owned(), unit, values.collect()));
    }
}

impl Display for Report {
    fn fmt(&self, out: &mut Formatter<'_>) -> Formatted {
        writeln!(out, "{}\n", self.machine)?;
        let both = self.systems.len() == 2;
        let last = if both { " times better |" } else { "" };
        writeln!(out, "| work | {} |{last}", self.systems.join(" | "))?;
        writeln!(out, "|---|{}", "---|".repeat(self.systems.len() + usize::from(both)))?;
        for (what, unit, values) in &self.rows {
            let cells: Vec<String> = values.iter().map(|value| unit.show(*value)).collect();
            write!(out, "| {what} | {} |", cells.join(" | "))?;
            if let [ours, theirs] = values[..] {
                let ratio = if matches!(unit, Unit::PerSecond) { ours / theirs } else { theirs / ours };
                write!(out, " {ratio:.1} |")?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::Time if value < 0.01 => format!("{:.2} ms", value * 1e3),
            Unit::Time if value < 1.0 => format!("{:.1} ms", value * 1e3),
            Unit::Time => format!("{value:.2} s"),
            Unit::PerSecond => format!("{value:.1}"),
            Unit::Bytes if value < 1e6 => format!("{:.0} KiB", value / 1024.0),
            Unit::Bytes => format!("{:.1} MiB", value / 1024.0 / 1024.0),
        }
    }
}

fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total: u64 = memory.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0);
    let cgroups = if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false) { "v2" } else { "v1" };
    format!("{cores} cores, {} GiB, Linux {}, cgroup {cgroups}", total >> 20, kernel.trim())
}
