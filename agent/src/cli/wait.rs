//! `sampan wait`: waits until containers have ended and prints their exit codes, a line each.

use clap::Args;
use futures_util::{StreamExt as _, stream::FuturesOrdered};
use sampan_proto::sampan::WaitRequest;

use super::{
    agent::Agent,
    failure::{Failure, Failures},
    output::Output,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Names, ids or beginnings of ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    // All at once, so that one that is removed while another is waited for is not missed.
    let mut waiting: FuturesOrdered<_> = arguments
        .containers
        .into_iter()
        .map(|container| async move {
            let answer = agent.containers().wait(WaitRequest { container }).await;
            answer.map(|answer| answer.into_inner().exit_code).map_err(Failure::of_container)
        })
        .collect();
    let mut failures = Failures::default();
    while let Some(result) = waiting.next().await {
        if let Some(code) = failures.note(result, out)? {
            out.line(code)?;
            out.flush()?;
        }
    }
    failures.into_result()
}
