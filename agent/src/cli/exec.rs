//! `sampan exec`: runs a command in a running container and exits with its code.
//!
//! Goes through CRI's ExecSync: the output comes when the command has ended, and at most 16 MiB a stream of it.

use clap::Args;
use sampan_proto::cri::ExecSyncRequest;
use tonic::Code;

use super::{
    agent::Agent,
    failure::{Advice, Failure},
    output::Output,
};

const ADVICE: Advice = &[
    (Code::NotFound, "'sampan ps' lists running containers"),
    (Code::FailedPrecondition, "a command runs only in a running container; 'sampan ps -a' shows its state"),
    (Code::DeadlineExceeded, "it was killed; --timeout gives it longer"),
];

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Not there yet
    #[arg(short, long, hide = true)]
    interactive: bool,

    /// Not there yet
    #[arg(short, long, hide = true)]
    tty: bool,

    /// Kill the command after so many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,

    /// The container, then the command and its arguments
    #[arg(value_names = ["CONTAINER", "COMMAND"], num_args = 2.., required = true, trailing_var_arg = true)]
    words: Vec<String>,
}

pub(super) async fn execute(
    arguments: Arguments,
    agent: impl Future<Output = Result<Agent, Failure>>,
    out: &mut Output,
) -> Result<u8, Failure> {
    if arguments.interactive || arguments.tty {
        return Err(Failure::message(
            "interactive commands are not there yet; without -i and -t the command runs, and its output comes \
             when it has ended",
        ));
    }
    let agent = agent.await?;
    let mut words = arguments.words.into_iter();
    let container = words.next().unwrap_or_default();
    let request = ExecSyncRequest {
        container_id: agent.container_id(&container).await?,
        cmd: words.collect(),
        timeout: arguments.timeout.map_or(0, i64::from),
    };
    let answer = agent.cri().exec_sync(request).await;
    let answer = answer.map_err(|status| Failure::answered(&status, ADVICE))?.into_inner();
    out.bytes(&answer.stdout)?;
    out.flush()?;
    out.error_bytes(&answer.stderr)?;
    Ok(answer.exit_code as u8)
}
