//! `sampan ps`: containers, newest first.

use std::collections::BTreeMap;

use clap::Args;
use sampan_proto::sampan::{ContainerSummary, ListRequest, PublishedPort, State};
use serde::Serialize;

use super::{
    agent::Agent,
    failure::Failure,
    human::{age, ago, familiar, now, short_id, timestamp_if_any},
    options::{Listing, publication},
    output::Output,
    table::Table,
};

/// Characters of a command that are shown, quotes included.
const COMMAND_WIDTH: usize = 22;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Show those that have ended too
    #[arg(short, long)]
    all: bool,

    /// Show ids only
    #[arg(short, long, conflicts_with = "output")]
    quiet: bool,

    /// Show ids and commands in full
    #[arg(long)]
    no_trunc: bool,

    #[command(flatten)]
    listing: Listing,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let request = ListRequest { all: arguments.all };
    let containers = agent.containers().list(request).await.map_err(Failure::plain)?.into_inner().containers;
    if arguments.listing.is_json() {
        return out.json(&containers.iter().map(Row::from).collect::<Vec<_>>());
    }
    let id = |container: &ContainerSummary| match arguments.no_trunc {
        true => container.id.clone(),
        false => short_id(&container.id).to_owned(),
    };
    if arguments.quiet {
        return containers.iter().try_for_each(|container| out.line(id(container)));
    }
    let now = now();
    let mut table = Table::new(["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]);
    for container in &containers {
        table.row([
            id(container),
            image(&container.image, arguments.no_trunc),
            command(&container.command, arguments.no_trunc),
            ago(container.created_at, now),
            status(container, now),
            container.ports.iter().map(publication).collect::<Vec<_>>().join(", "),
            container.name.clone(),
        ]);
    }
    out.text(table)
}

fn image(name: &str, whole: bool) -> String {
    if whole {
        return name.to_owned();
    }
    if name.starts_with("sha256:") { short_id(name).to_owned() } else { familiar(name).to_owned() }
}

fn command(words: &[String], whole: bool) -> String {
    let quoted = format!("\"{}\"", words.join(" "));
    if whole || quoted.chars().count() <= COMMAND_WIDTH {
        return quoted;
    }
    let kept: String = quoted.chars().take(COMMAND_WIDTH - 2).collect();
    format!("{kept}…\"")
}

fn status(container: &ContainerSummary, now: i64) -> String {
    match container.state() {
        State::Created => "Created".to_owned(),
        State::Running => format!("Up {}", age(container.started_at, now)),
        State::Exited => format!("Exited ({}) {}", container.exit_code, ago(container.finished_at, now))
            .trim_end()
            .to_owned(),
        State::Unknown | State::Unspecified => "Unknown".to_owned(),
    }
}

/// A container in `--output json`.
#[derive(Debug, Serialize)]
struct Row<'a> {
    id: &'a str,
    pod_sandbox_id: &'a str,
    name: &'a str,
    image: &'a str,
    command: &'a [String],
    state: &'static str,
    exit_code: Option<i32>,
    created_at: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
    ports: Vec<Port<'a>>,
    addresses: &'a [String],
    labels: BTreeMap<&'a str, &'a str>,
}

#[derive(Debug, Serialize)]
struct Port<'a> {
    host_ip: &'a str,
    host_port: u32,
    container_port: u32,
    protocol: &'a str,
}

impl<'a> From<&'a ContainerSummary> for Row<'a> {
    fn from(container: &'a ContainerSummary) -> Self {
        let state = container.state();
        Self {
            id: &container.id,
            pod_sandbox_id: &container.pod_sandbox_id,
            name: &container.name,
            image: &container.image,
            command: &container.command,
            state: match state {
                State::Created => "created",
                State::Running => "running",
                State::Exited => "exited",
                State::Unknown | State::Unspecified => "unknown",
            },
            exit_code: (state == State::Exited).then_some(container.exit_code),
            created_at: timestamp_if_any(container.created_at),
            started_at: timestamp_if_any(container.started_at),
            finished_at: timestamp_if_any(container.finished_at),
            ports: container.ports.iter().map(Port::from).collect(),
            addresses: &container.addresses,
            labels: container.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
        }
    }
}

impl<'a> From<&'a PublishedPort> for Port<'a> {
    fn from(port: &'a PublishedPort) -> Self {
        let protocol = if port.protocol.is_empty() { "tcp" } else { &port.protocol };
        Self {
            host_ip: &port.host_ip,
            host_port: port.host_port,
            container_port: port.container_port,
            protocol,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_command_is_cut_inside_its_quotes() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(command(&words("sleep 100"), false), "\"sleep 100\"");
        let long = words("/docker-entrypoint.sh nginx -g daemon");
        assert_eq!(command(&long, false), "\"/docker-entrypoint.…\"");
        assert_eq!(command(&long, true), "\"/docker-entrypoint.sh nginx -g daemon\"");
    }

    #[test]
    fn a_status_tells_how_and_when_it_ended() {
        let mut container =
            ContainerSummary { state: State::Exited.into(), exit_code: 137, ..Default::default() };
        assert_eq!(status(&container, 0), "Exited (137)");
        container.finished_at = 1_000_000_000;
        assert_eq!(status(&container, 181_000_000_000), "Exited (137) 3 minutes ago");
        container.state = State::Running.into();
        container.started_at = 1_000_000_000;
        assert_eq!(status(&container, 6_000_000_000), "Up 5 seconds");
    }
}
