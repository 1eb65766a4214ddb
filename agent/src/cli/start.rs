//! `sampan start`: starts containers that were created and not started.

use clap::Args;
use sampan_proto::sampan::StartRequest;

use super::{
    agent::Agent,
    attach,
    failure::{Failure, Failures},
    output::Output,
    session::End,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Stay with it: its output is ours, and its exit code
    #[arg(short, long)]
    attach: bool,

    /// Give it our standard input too
    #[arg(short, long)]
    interactive: bool,

    /// Names, ids or beginnings of ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<u8, Failure> {
    let start = async |container: &str| {
        let request = StartRequest { container: container.to_owned() };
        agent.containers().start(request).await.map(drop).map_err(Failure::of_container)
    };
    if arguments.attach || arguments.interactive {
        let [container] = arguments.containers.as_slice() else {
            return Err(Failure::message("only one container can be stayed with; leave out -a and -i"));
        };
        let joined = attach::join(container, arguments.interactive, agent).await;
        let session = joined.map_err(Failure::of_container)?;
        start(container).await?;
        return match session.stay(out).await? {
            End::Left => Ok(0),
            _ => attach::exit_code(container, agent).await,
        };
    }
    let mut failures = Failures::default();
    for container in &arguments.containers {
        let result = start(container).await.map(|()| container);
        if let Some(name) = failures.note(result, out)? {
            out.line(name)?;
        }
    }
    failures.into_result().map(|()| 0)
}
