//! `sampan events`: what happens, as it happens.

use clap::Args;
use sampan_proto::sampan::{Event, StreamEventsRequest, stream_events_response::Item};
use serde_json::json;

use super::{agent::Agent, failure::Failure, human, json, options, output::Output};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Begin with the event of this number
    #[arg(long, value_name = "SEQUENCE", conflicts_with = "since")]
    from: Option<u64>,

    /// Begin with what happened at or after this moment: a time, or how long ago it is (10m)
    #[arg(long, value_name = "TIME", value_parser = options::moment)]
    since: Option<i64>,

    /// Show what is kept, and do not wait for more
    #[arg(long)]
    no_follow: bool,

    #[command(flatten)]
    listing: options::Listing,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let request = StreamEventsRequest {
        from_sequence: arguments.from.unwrap_or(0),
        since: arguments.since.unwrap_or(0),
        follow: !arguments.no_follow,
    };
    let answers = agent.events().stream_events(request).await.map_err(Failure::plain)?;
    let mut answers = answers.into_inner();
    while let Some(answer) = answers.message().await.map_err(Failure::plain)? {
        match (answer.item, arguments.listing.is_json()) {
            (Some(Item::Event(event)), false) => out.line(line(&event))?,
            (Some(Item::Event(event)), true) => out.line(json::compact(&object(&event)))?,
            (Some(Item::Gap(gap)), false) => {
                out.note(format_args!("events {} to {} are lost", gap.from_sequence, gap.to_sequence));
            }
            (Some(Item::Gap(gap)), true) => {
                let gap = json!({ "gap": { "from": gap.from_sequence, "to": gap.to_sequence } });
                out.line(json::compact(&gap))?;
            }
            (None, _) => {}
        }
        out.flush()?;
    }
    Ok(())
}

/// As docker writes it.
fn line(event: &Event) -> String {
    let mut attributes: Vec<String> =
        event.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    attributes.sort();
    let time = human::timestamp(event.at);
    format!("{time} {} {} {} ({})", event.object, event.action, event.id, attributes.join(", "))
}

fn object(event: &Event) -> serde_json::Value {
    let attributes: std::collections::BTreeMap<_, _> = event.attributes.iter().collect();
    json!({
        "sequence": event.sequence,
        "at": event.at,
        "object": event.object,
        "action": event.action,
        "id": event.id,
        "pod_sandbox_id": event.pod_sandbox_id,
        "attributes": attributes,
    })
}
