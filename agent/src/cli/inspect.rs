//! `sampan inspect`: all that is known of containers or images, as one JSON array. A container goes before an
//! image of the same name.

use clap::Args;
use sampan_proto::sampan::{InspectImageRequest, InspectRequest};
use tonic::Code;

use super::{
    agent::Agent,
    failure::{Failure, Failures},
    json,
    output::Output,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Names, ids or beginnings of ids
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let mut failures = Failures::default();
    let mut found = Vec::new();
    for name in &arguments.names {
        found.extend(failures.note(inspect(name, agent).await, out)?);
    }
    // Like docker, an array even when nothing was found: the reader is a program.
    out.line(json::indent(&format!("[{}]", found.join(","))))?;
    failures.into_result()
}

async fn inspect(name: &str, agent: &Agent) -> Result<String, Failure> {
    let container = agent.containers().inspect(InspectRequest { container: name.to_owned() }).await;
    let json = match container {
        Ok(answer) => answer.into_inner().json,
        // A name that cannot be a container's may still be an image's.
        Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => {
            let image = agent.images().inspect_image(InspectImageRequest { image: name.to_owned() }).await;
            image.map_err(|status| neither(name, &status))?.into_inner().json
        }
        Err(status) => return Err(Failure::plain(status)),
    };
    match serde_json::from_str::<serde::de::IgnoredAny>(&json) {
        Ok(_) => Ok(json),
        Err(error) => Err(Failure::message(format!("the agent describes {name} in broken JSON: {error}"))),
    }
}

fn neither(name: &str, status: &tonic::Status) -> Failure {
    match status.code() {
        Code::NotFound | Code::InvalidArgument => Failure::message(format!(
            "there is no container and no image {name:?}; 'sampan ps -a' and 'sampan images' list them"
        )),
        _ => Failure::answered(status, &[]),
    }
}
