//! `sampan logs`: what a container wrote, each stream to the stream of the same name.

use clap::Args;
use sampan_proto::sampan::{LogEntry, LogStream, LogsRequest};

use super::{agent::Agent, failure::Failure, human, options, output::Output};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,

    /// Show only the last lines
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", value_parser = tail)]
    tail: i64,

    /// Put the time in front of each line
    #[arg(short, long)]
    timestamps: bool,

    /// Show only what was written since then: 2026-07-01T12:00:00Z, 10m (ago), or seconds since 1970
    #[arg(long, value_name = "TIME", value_parser = options::moment)]
    since: Option<i64>,

    /// Name, id or beginning of an id
    container: String,
}

fn tail(text: &str) -> Result<i64, String> {
    match text.parse::<u32>() {
        _ if text == "all" => Ok(-1),
        Ok(lines) => Ok(lines.into()),
        Err(_) => Err("expected a number of lines, or all".to_owned()),
    }
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let request = LogsRequest {
        container: arguments.container,
        follow: arguments.follow,
        tail: arguments.tail,
        since: arguments.since.unwrap_or(0),
    };
    let mut messages = agent.containers().logs(request).await.map_err(Failure::of_container)?.into_inner();
    let mut writer = Writer::new(arguments.timestamps);
    while let Some(message) = messages.message().await.map_err(Failure::of_container)? {
        writer.write(&message.entries, out)?;
    }
    Ok(())
}

/// Writes entries as they come. A long line comes in parts, so the beginning of a line is kept track of.
#[derive(Debug)]
pub(super) struct Writer {
    timestamps: bool,
    stdout_mid_line: bool,
    stderr_mid_line: bool,
}

impl Writer {
    pub(super) fn new(timestamps: bool) -> Self {
        Self { timestamps, stdout_mid_line: false, stderr_mid_line: false }
    }

    pub(super) fn write(&mut self, entries: &[LogEntry], out: &mut Output) -> Result<(), Failure> {
        for entry in entries {
            let to_stderr = entry.stream() == LogStream::Stderr;
            let mid_line = if to_stderr { &mut self.stderr_mid_line } else { &mut self.stdout_mid_line };
            let mut line = Vec::new();
            if self.timestamps && !*mid_line {
                line.extend_from_slice(human::timestamp(entry.timestamp).as_bytes());
                line.push(b' ');
            }
            *mid_line = !entry.data.ends_with(b"\n");
            line.extend_from_slice(&entry.data);
            if to_stderr {
                // Keeps the order of the two streams where both go to one terminal.
                out.flush()?;
                out.error_bytes(&line)?;
            } else {
                out.bytes(&line)?;
            }
        }
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_a_number_or_all() {
        assert_eq!(tail("all"), Ok(-1));
        assert_eq!(tail("0"), Ok(0));
        assert!(tail("-1").is_err() && tail("some").is_err());
    }
}
