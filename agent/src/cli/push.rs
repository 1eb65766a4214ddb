//! `sampan push`: sends an image to its registry, with progress on standard error.

use clap::Args;
use sampan_proto::sampan::{PushRequest, push_response::Event};
use tonic::Code;

use super::{
    agent::Agent,
    failure::{Advice, Failure},
    human::familiar,
    output::Output,
    progress::Progress,
};

const ADVICE: Advice = &[
    (Code::NotFound, "'sampan images' lists what is here; 'sampan tag' gives it the registry's name"),
    (Code::Unavailable, "check that the registry is up and that its name resolves, then push again"),
    (Code::Unauthenticated, "the registry wants credentials that may write there"),
];

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Show no progress, only the image's name
    #[arg(short, long)]
    quiet: bool,

    /// NAME[:TAG]: where to, and which image
    #[arg(value_name = "IMAGE")]
    image: String,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    push(&arguments.image, arguments.quiet, agent, out).await
}

/// Pushes one image; `build` does this too.
pub(super) async fn push(image: &str, quiet: bool, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let refused = |status| Failure::answered(&status, ADVICE);
    let request = PushRequest { image: image.to_owned(), auth: None };
    let mut events = agent.images().push(request).await.map_err(refused)?.into_inner();
    let mut progress = Progress::new(quiet, out);
    while let Some(message) = events.message().await.map_err(refused)? {
        match message.event {
            Some(Event::Blob(blob)) => progress.show(&blob, out),
            Some(Event::Image(image)) => {
                drop(progress);
                out.line(familiar(&image.reference))?;
                if !quiet {
                    out.line(format_args!("Digest: {} Size: {}", image.digest, image.size))?;
                }
                return Ok(());
            }
            None => {}
        }
    }
    Err(Failure::message(format!(
        "the agent ended the push of {image} without saying how it went; push again"
    )))
}
