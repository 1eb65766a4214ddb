//! `sampan store check`: whether everything in the store still is what its digest says.

use clap::{Args, Subcommand};
use sampan_proto::sampan::{CheckStoreRequest, StoreFault, check_store_response::Event};

use super::{
    agent::Agent,
    failure::Failure,
    human::{decimal_size, short_id},
    output::Output,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Compare every blob and every unpacked file with its digest
    Check(Check),
}

#[derive(Debug, Args)]
struct Check {
    /// Mend what is damaged: unpack layers again, and fetch blobs that are damaged themselves, with the credentials that
    /// the agent is configured with
    #[arg(long)]
    repair: bool,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let Verb::Check(arguments) = arguments.verb;
    let request = CheckStoreRequest { repair: arguments.repair };
    let mut events = agent.images().check_store(request).await.map_err(Failure::plain)?.into_inner();
    while let Some(message) = events.message().await.map_err(Failure::plain)? {
        match message.event {
            Some(Event::Fault(fault)) => {
                out.line(line(&fault))?;
                out.flush()?;
            }
            Some(Event::Summary(summary)) => {
                out.line(format_args!(
                    "{} blobs ({}) and {} layers ({} entries) checked: {} faults, {} repaired",
                    summary.blobs,
                    decimal_size(summary.bytes),
                    summary.layers,
                    summary.entries,
                    summary.faults,
                    summary.repaired
                ))?;
                return match summary.faults - summary.repaired {
                    0 => Ok(()),
                    _ if arguments.repair => Err(Failure::message("not everything could be repaired")),
                    _ => {
                        Err(Failure::message("the store is damaged; 'sampan store check --repair' mends it"))
                    }
                };
            }
            None => {}
        }
    }
    Err(Failure::message("the agent ended the check without saying how it went; check again"))
}

fn line(fault: &StoreFault) -> String {
    let StoreFault { object, digest, path, problem, repaired } = fault;
    let path = if path.is_empty() { String::new() } else { format!(" /{path}") };
    let mended = if *repaired { " (repaired)" } else { "" };
    format!("{object} {}{path}: {problem}{mended}", short_id(digest))
}
