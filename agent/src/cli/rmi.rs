//! `sampan rmi`: takes names away from images; an image goes with its last name.

use clap::Args;
use sampan_proto::sampan::RemoveImageRequest;
use tonic::Code;

use super::{
    agent::Agent,
    failure::{Advice, Failure, Failures},
    output::Output,
};

const ADVICE: Advice = &[
    (Code::NotFound, "'sampan images' lists what is here"),
    (Code::FailedPrecondition, "remove its containers first ('sampan ps -a'), or use 'sampan rmi -f'"),
];

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Remove it although containers use it
    #[arg(short, long)]
    force: bool,

    /// Names, ids or beginnings of ids
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let mut failures = Failures::default();
    for image in arguments.images {
        let request = RemoveImageRequest { image, force: arguments.force };
        let answer = agent.images().remove_image(request).await;
        let answer = answer.map_err(|status| Failure::answered(&status, ADVICE));
        if let Some(removed) = failures.note(answer, out)? {
            let removed = removed.into_inner();
            removed.untagged.iter().try_for_each(|name| out.line(format_args!("Untagged: {name}")))?;
            removed.deleted.iter().try_for_each(|id| out.line(format_args!("Deleted: {id}")))?;
        }
    }
    failures.into_result()
}
