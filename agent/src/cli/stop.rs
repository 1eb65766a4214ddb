//! `sampan stop`: asks containers to end, and kills those that have not when the grace period is over.

use clap::Args;
use futures_util::{StreamExt as _, stream::FuturesOrdered};
use sampan_proto::sampan::StopRequest;

use super::{
    agent::Agent,
    failure::{Failure, Failures},
    output::Output,
};

/// What the agent takes for "the usual grace period".
pub(super) const USUAL_GRACE: i64 = -1;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Seconds until it is killed; 0: at once [default: 10]
    #[arg(short, long, value_name = "SECONDS")]
    time: Option<u32>,

    /// Names, ids or beginnings of ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let timeout_seconds = arguments.time.map_or(USUAL_GRACE, i64::from);
    // All at once: the grace periods shall not add up.
    let mut stopping: FuturesOrdered<_> = arguments
        .containers
        .into_iter()
        .map(|container| async move {
            let request = StopRequest { container: container.clone(), timeout_seconds };
            let answer = agent.containers().stop(request).await;
            answer.map(|_| container).map_err(Failure::of_container)
        })
        .collect();
    let mut failures = Failures::default();
    while let Some(result) = stopping.next().await {
        if let Some(name) = failures.note(result, out)? {
            out.line(name)?;
            out.flush()?;
        }
    }
    failures.into_result()
}
