//! `sampan rm`: removes containers, with all that was made for them.

use clap::Args;
use sampan_proto::sampan::RemoveRequest;
use tonic::Code;

use super::{
    agent::Agent,
    failure::{Advice, Failure, Failures},
    output::Output,
};

pub(super) const ADVICE: Advice = &[
    (Code::NotFound, "'sampan ps -a' lists all containers"),
    (Code::FailedPrecondition, "stop it first, or remove it with 'sampan rm -f'"),
];

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Kill those that run
    #[arg(short, long)]
    force: bool,

    /// Names, ids or beginnings of ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let mut failures = Failures::default();
    for container in arguments.containers {
        let request = RemoveRequest { container: container.clone(), force: arguments.force };
        let answer = agent.containers().remove(request).await;
        if failures.note(answer.map_err(|status| Failure::answered(&status, ADVICE)), out)?.is_some() {
            out.line(container)?;
        }
    }
    failures.into_result()
}
