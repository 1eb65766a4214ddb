//! `sampan tag`: one more name for an image.

use clap::Args;
use sampan_proto::sampan::TagImageRequest;

use super::{agent::Agent, failure::Failure};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A name, an id or the beginning of one
    #[arg(value_name = "SOURCE")]
    source: String,

    /// NAME or NAME:TAG
    #[arg(value_name = "TARGET")]
    target: String,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent) -> Result<(), Failure> {
    let request = TagImageRequest { image: arguments.source, target: arguments.target };
    agent.images().tag_image(request).await.map_err(Failure::of_image)?;
    Ok(())
}
