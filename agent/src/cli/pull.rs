//! `sampan pull`: fetches an image, with progress on standard error and the image's name on standard output.

use clap::Args;
use sampan_proto::sampan::{PullRequest, PulledImage, pull_response::Event};
use tonic::Code;

use super::{
    agent::Agent,
    failure::{Advice, Failure},
    output::Output,
    progress::Progress,
};

const ADVICE: Advice = &[
    (Code::NotFound, "check the spelling of the name and its tag"),
    (Code::Unavailable, "check that the registry is up and that its name resolves, then pull again"),
    (Code::Unauthenticated, "the registry wants credentials, or has no such image for those without"),
    (Code::ResourceExhausted, "'sampan rmi' makes room"),
    (Code::DataLoss, "pull again; if it happens twice, the registry's copy is damaged"),
];

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Show no progress, only the image's name
    #[arg(short, long)]
    quiet: bool,

    /// NAME[:TAG] or NAME@DIGEST
    #[arg(value_name = "IMAGE")]
    image: String,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let image = pull(&arguments.image, arguments.quiet, agent, out).await?;
    out.line(&image.reference)?;
    if !arguments.quiet {
        out.line(format_args!("Digest: {}", image.digest))?;
    }
    Ok(())
}

/// Pulls one image; `run` does this too.
pub(super) async fn pull(
    image: &str,
    quiet: bool,
    agent: &Agent,
    out: &mut Output,
) -> Result<PulledImage, Failure> {
    let refused = |status| Failure::answered(&status, ADVICE);
    let request = PullRequest { image: image.to_owned(), auth: None };
    let mut events = agent.images().pull(request).await.map_err(refused)?.into_inner();
    let mut progress = Progress::new(quiet, out);
    while let Some(message) = events.message().await.map_err(refused)? {
        match message.event {
            Some(Event::Layer(layer)) => progress.show(&layer, out),
            Some(Event::Image(image)) => return Ok(image),
            None => {}
        }
    }
    Err(Failure::message(format!(
        "the agent ended the pull of {image} without saying how it went; pull again"
    )))
}
