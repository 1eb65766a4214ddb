//! `sampan stats`: what containers use. A table that renews itself on a terminal, one table a round elsewhere.

use std::collections::HashSet;

use clap::Args;
use sampan_proto::sampan::{InfoRequest, Sample, StreamMetricsRequest};
use serde::Serialize;

use super::{
    agent::Agent,
    failure::Failure,
    human::{binary_size, decimal_size, timestamp},
    json,
    options::Listing,
    output::{Output, Screen},
    table::Table,
};

const INTERVAL_MS: u32 = 1000;
/// One look only has to wait for the second round, since CPU use is measured between two.
const SHORT_INTERVAL_MS: u32 = 250;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Show one round and end
    #[arg(long)]
    no_stream: bool,

    #[command(flatten)]
    listing: Listing,

    /// Names, ids or beginnings of ids; none: every running container
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let wanted = wanted(&arguments.containers, agent).await?;
    let host_memory =
        agent.system().info(InfoRequest {}).await.map_err(Failure::plain)?.into_inner().memory_bytes;
    let request = StreamMetricsRequest {
        container: if let [container] = arguments.containers.as_slice() {
            container.clone()
        } else {
            String::new()
        },
        interval_ms: if arguments.no_stream { SHORT_INTERVAL_MS } else { INTERVAL_MS },
    };
    let mut rounds =
        agent.metrics().stream_metrics(request).await.map_err(Failure::of_container)?.into_inner();
    // The first round knows no CPU use yet, but is better than nothing for a container that ends before the second.
    let mut held: Option<Vec<Sample>> = None;
    let mut first = true;
    while let Some(round) = rounds.message().await.map_err(Failure::of_container)? {
        let mut samples = round.samples;
        samples.retain(|sample| wanted.is_empty() || wanted.contains(&sample.container_id));
        samples.sort_by(|a, b| (&a.name, &a.container_id).cmp(&(&b.name, &b.container_id)));
        if std::mem::take(&mut first) && !samples.is_empty() {
            held = Some(samples);
            continue;
        }
        held = None;
        let all_ended = !wanted.is_empty() && samples.is_empty();
        show(&samples, host_memory, &arguments, out)?;
        if arguments.no_stream || all_ended {
            return Ok(());
        }
    }
    held.map_or(Ok(()), |samples| show(&samples, host_memory, &arguments, out))
}

/// The ids of several containers named; the agent itself picks out a single one, and ends the stream with it.
async fn wanted(names: &[String], agent: &Agent) -> Result<HashSet<String>, Failure> {
    let mut ids = HashSet::new();
    if names.len() > 1 {
        for name in names {
            ids.insert(agent.container_id(name).await?);
        }
    }
    Ok(ids)
}

fn show(
    samples: &[Sample],
    host_memory: u64,
    arguments: &Arguments,
    out: &mut Output,
) -> Result<(), Failure> {
    if arguments.listing.is_json() {
        let rows: Vec<Row> = samples.iter().map(Row::from).collect();
        // A stream has a round a line, so that a reader knows where one ends.
        if arguments.no_stream {
            out.json(&rows)?
        } else {
            out.line(json::compact(&rows))?
        }
        return out.flush();
    }
    let text = table(samples, host_memory).to_string();
    match out.screen().filter(|_| !arguments.no_stream) {
        Some(screen) => out.text(frame(&text, screen))?,
        None => out.text(text)?,
    }
    out.flush()
}

/// The table from the upper left corner on, cut to the screen; what was there before is cleared line by line,
/// which flickers less than clearing it all.
fn frame(text: &str, screen: Screen) -> String {
    let mut frame = String::from("\x1b[H");
    for line in text.lines().take(screen.rows.saturating_sub(1)) {
        frame.extend(line.chars().take(screen.columns));
        frame.push_str("\x1b[K\n");
    }
    frame + "\x1b[J"
}

fn table(samples: &[Sample], host_memory: u64) -> Table<7> {
    let mut table =
        Table::new(["NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"]);
    for sample in samples {
        let (cpu, memory) = (sample.cpu.unwrap_or_default(), sample.memory.unwrap_or_default());
        let (io, pids) = (sample.io.unwrap_or_default(), sample.pids.unwrap_or_default());
        let limit = if memory.limit_bytes == 0 { host_memory } else { memory.limit_bytes };
        let pair = |a: u64, b: u64| format!("{} / {}", decimal_size(a), decimal_size(b));
        table.row([
            sample.name.clone(),
            format!("{:.2}%", cpu.usage_nano_cores as f64 / 1e7),
            format!("{} / {}", binary_size(memory.working_set_bytes), binary_size(limit)),
            format!("{:.2}%", memory.working_set_bytes as f64 * 100.0 / limit.max(1) as f64),
            sample.network.map_or_else(|| "-".to_owned(), |network| pair(network.rx_bytes, network.tx_bytes)),
            pair(io.read_bytes, io.write_bytes),
            pids.current.to_string(),
        ]);
    }
    table
}

/// A container's use in `--output json`: plain numbers, in the units of the agent's own stream.
#[derive(Debug, Serialize)]
struct Row<'a> {
    id: &'a str,
    name: &'a str,
    pod_sandbox_id: &'a str,
    timestamp: String,
    cpu_usage_ns: u64,
    cpu_nano_cores: u64,
    memory_usage_bytes: u64,
    memory_working_set_bytes: u64,
    memory_limit_bytes: Option<u64>,
    pids: u64,
    pids_limit: Option<u64>,
    io_read_bytes: u64,
    io_write_bytes: u64,
    network_rx_bytes: Option<u64>,
    network_tx_bytes: Option<u64>,
}

impl<'a> From<&'a Sample> for Row<'a> {
    fn from(sample: &'a Sample) -> Self {
        let (cpu, memory) = (sample.cpu.unwrap_or_default(), sample.memory.unwrap_or_default());
        let (io, pids) = (sample.io.unwrap_or_default(), sample.pids.unwrap_or_default());
        let limit = |value: u64| (value > 0).then_some(value);
        Self {
            id: &sample.container_id,
            name: &sample.name,
            pod_sandbox_id: &sample.pod_sandbox_id,
            timestamp: timestamp(sample.timestamp),
            cpu_usage_ns: cpu.usage_ns,
            cpu_nano_cores: cpu.usage_nano_cores,
            memory_usage_bytes: memory.usage_bytes,
            memory_working_set_bytes: memory.working_set_bytes,
            memory_limit_bytes: limit(memory.limit_bytes),
            pids: pids.current,
            pids_limit: limit(pids.limit),
            io_read_bytes: io.read_bytes,
            io_write_bytes: io.write_bytes,
            network_rx_bytes: sample.network.map(|network| network.rx_bytes),
            network_tx_bytes: sample.network.map(|network| network.tx_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use sampan_proto::sampan::{CpuSample, IoSample, MemorySample, NetworkSample, PidsSample};

    use super::*;

    #[test]
    fn a_row_has_percentages_of_a_core_and_of_the_limit() {
        let sample = Sample {
            name: "web".into(),
            cpu: Some(CpuSample { usage_ns: 1, usage_nano_cores: 255_000_000 }),
            memory: Some(MemorySample { usage_bytes: 0, working_set_bytes: 16 << 20, limit_bytes: 64 << 20 }),
            pids: Some(PidsSample { current: 3, limit: 0 }),
            io: Some(IoSample { read_bytes: 45_800_000, ..Default::default() }),
            network: Some(NetworkSample { rx_bytes: 1_050, tx_bytes: 0, ..Default::default() }),
            ..Default::default()
        };
        let unlimited = Sample { name: "db".into(), ..Default::default() };
        assert_eq!(
            table(&[sample, unlimited], 1 << 30).to_string(),
            "NAME   CPU %    MEM USAGE / LIMIT   MEM %    NET I/O       BLOCK I/O     PIDS\n\
             web    25.50%   16MiB / 64MiB       25.00%   1.05kB / 0B   45.8MB / 0B   3\n\
             db     0.00%    0B / 1GiB           0.00%    -             0B / 0B       0\n"
        );
    }

    #[test]
    fn a_frame_stays_inside_the_screen() {
        let frame = frame("NAME   CPU\none   1\ntwo   2\nthree   3\n", Screen { rows: 3, columns: 4 });
        assert_eq!(frame, "\x1b[HNAME\x1b[K\none \x1b[K\n\x1b[J");
    }
}
