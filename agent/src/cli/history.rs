//! `sampan history`: the steps in which an image was made, the newest first.

use clap::Args;
use sampan_proto::sampan::{HistoryStep, ImageHistoryRequest};
use serde::Serialize;

use super::{
    agent::Agent,
    failure::Failure,
    human::{ago, decimal_size, now, short_id, timestamp_if_any},
    options::Listing,
    output::Output,
    table::Table,
};

/// Of a step whose image is not in the store.
const MISSING: &str = "<missing>";
/// As much of a command as docker shows.
const COMMAND: usize = 45;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Show ids only
    #[arg(short, long, conflicts_with = "output")]
    quiet: bool,

    /// Show ids and commands in full
    #[arg(long)]
    no_trunc: bool,

    /// A name, an id or the beginning of one
    #[arg(value_name = "IMAGE")]
    image: String,

    #[command(flatten)]
    listing: Listing,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let request = ImageHistoryRequest { image: arguments.image };
    let steps = agent.images().image_history(request).await.map_err(Failure::of_image)?.into_inner().steps;
    if arguments.listing.is_json() {
        return out.json(&steps.iter().map(Row::from).collect::<Vec<_>>());
    }
    let id = |step: &HistoryStep| match step.image_id.as_str() {
        "" => MISSING.to_owned(),
        id if arguments.no_trunc => id.to_owned(),
        id => short_id(id).to_owned(),
    };
    if arguments.quiet {
        return steps.iter().try_for_each(|step| out.line(id(step)));
    }
    let now = now();
    let mut table = Table::new(["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"]);
    for step in &steps {
        let created = if step.created_at == 0 { "N/A".to_owned() } else { ago(step.created_at, now) };
        let command = command(&step.created_by, arguments.no_trunc);
        table.row([id(step), created, command, decimal_size(step.size), step.comment.clone()]);
    }
    out.text(table)
}

fn command(created_by: &str, whole: bool) -> String {
    let command = created_by.replace('\t', " ");
    if whole || command.chars().count() <= COMMAND {
        return command;
    }
    command.chars().take(COMMAND - 1).chain(['…']).collect()
}

/// A step in `--output json`.
#[derive(Debug, Serialize)]
struct Row<'a> {
    id: Option<&'a str>,
    created_at: Option<String>,
    created_by: &'a str,
    size: u64,
    comment: &'a str,
    tags: &'a [String],
}

impl<'a> From<&'a HistoryStep> for Row<'a> {
    fn from(step: &'a HistoryStep) -> Self {
        Self {
            id: Some(step.image_id.as_str()).filter(|id| !id.is_empty()),
            created_at: timestamp_if_any(step.created_at),
            created_by: &step.created_by,
            size: step.size,
            comment: &step.comment,
            tags: &step.tags,
        }
    }
}
