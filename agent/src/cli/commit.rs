//! `sampan commit`: an image of a container.

use clap::{ArgAction, Args};
use sampan_proto::sampan::CommitRequest;

use super::{agent::Agent, failure::Failure, output::Output};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Who made it: "Ann <ann@example.org>"
    #[arg(short, long, default_value = "", hide_default_value = true, value_name = "AUTHOR")]
    author: String,

    /// A note for the history
    #[arg(short, long, default_value = "", hide_default_value = true, value_name = "MESSAGE")]
    message: String,

    /// A Dockerfile instruction for the configuration: 'ENV A=b', 'CMD ["nginx"]'
    #[arg(short, long, value_name = "CHANGE")]
    change: Vec<String>,

    /// Whether the container stands still meanwhile
    #[arg(
        short,
        long,
        action = ArgAction::Set,
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        value_name = "BOOL"
    )]
    pause: bool,

    /// A name, an id or the beginning of one
    #[arg(value_name = "CONTAINER")]
    container: String,

    /// NAME or NAME:TAG; without it the image has no name
    #[arg(value_name = "NAME", default_value = "", hide_default_value = true)]
    name: String,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let request = CommitRequest {
        container: arguments.container,
        name: arguments.name,
        author: arguments.author,
        message: arguments.message,
        changes: arguments.change,
        no_pause: !arguments.pause,
    };
    let made = agent.images().commit(request).await.map_err(Failure::of_container)?.into_inner();
    out.line(made.image_id)
}
