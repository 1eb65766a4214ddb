//! `sampan diff`: what a container has changed of its image's files.

use clap::Args;
use sampan_proto::sampan::{Change, ChangesRequest, change::Kind};
use serde::Serialize;

use super::{agent::Agent, failure::Failure, options::Listing, output::Output};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A name, an id or the beginning of one
    #[arg(value_name = "CONTAINER")]
    container: String,

    #[command(flatten)]
    listing: Listing,
}

/// A change in `--output json`.
#[derive(Debug, Serialize)]
struct Row<'a> {
    kind: &'static str,
    path: &'a str,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let request = ChangesRequest { container: arguments.container };
    let changes = agent.images().changes(request).await.map_err(Failure::of_container)?.into_inner().changes;
    let word = |change: &Change| match change.kind() {
        Kind::Added => "added",
        Kind::Changed | Kind::Unspecified => "changed",
        Kind::Deleted => "deleted",
    };
    if arguments.listing.is_json() {
        let rows: Vec<Row<'_>> =
            changes.iter().map(|change| Row { kind: word(change), path: &change.path }).collect();
        return out.json(&rows);
    }
    changes.iter().try_for_each(|change| {
        let letter = word(change)[..1].to_ascii_uppercase();
        out.line(format_args!("{letter} {}", change.path))
    })
}
