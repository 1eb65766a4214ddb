//! `sampan exec`: runs a command in a running container, its streams being ours, and exits with its code.

use std::time::Duration;

use clap::Args;
use sampan_proto::sampan::{
    ExecRequest, ExecResponse, ExecStart, exec_request::Message as Request,
    exec_response::Message as Response,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Status};

use super::{
    agent::Agent,
    failure::{Advice, Failure},
    options,
    output::Output,
    session::{self, End, Person, Received, Sent},
};

const ADVICE: Advice = &[
    (Code::NotFound, "'sampan ps' lists running containers"),
    (Code::FailedPrecondition, "a command runs only in a running container; 'sampan ps -a' shows its state"),
];

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Give it our standard input
    #[arg(short, long)]
    interactive: bool,

    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,

    /// Set a variable: NAME=VALUE, or NAME for the value it has here
    #[arg(short, long, value_name = "VARIABLE")]
    env: Vec<String>,

    /// Start in this directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// Run as USER[:GROUP], names or numbers
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,

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
    let (stdin, tty, seconds) = (arguments.interactive, arguments.tty, arguments.timeout);
    session::check_terminal(stdin, tty)?;
    let mut words = arguments.words.into_iter();
    let start = ExecStart {
        container: words.next().unwrap_or_default(),
        command: words.collect(),
        stdin,
        tty,
        size: tty.then(session::size).flatten(),
        env: options::environment(&[], &arguments.env).map_err(Failure::Message)?,
        working_dir: arguments.workdir.unwrap_or_default(),
        user: arguments.user.unwrap_or_default(),
    };
    let agent = agent.await?;
    let running = run(start, &agent, out);
    let Some(seconds) = seconds else { return running.await };
    // The agent kills what its client has left.
    let limited = tokio::time::timeout(Duration::from_secs(seconds.into()), running).await;
    limited.unwrap_or_else(|_| {
        let text =
            format!("the command took longer than {seconds} s and was killed; --timeout gives it longer");
        Err(Failure::message(text))
    })
}

async fn run(start: ExecStart, agent: &Agent, out: &mut Output) -> Result<u8, Failure> {
    let (person, sent) = Person::sit_down(start.stdin, start.tty)?;
    let first = tokio_stream::once(Request::Start(start));
    let messages = first.chain(ReceiverStream::new(sent).map(|sent| match sent {
        Sent::Data(data) => Request::Stdin(data),
        Sent::Resize(size) => Request::Resize(size),
    }));
    let requests = messages.map(|message| ExecRequest { message: Some(message) });
    let answers = agent.containers().exec(requests).await.map_err(refused)?.into_inner();
    let received = |answer: ExecResponse| match answer.message {
        Some(Response::Stdout(data)) => Received::Output(data),
        Some(Response::Stderr(data)) => Received::Errors(data),
        Some(Response::ExitCode(code)) => Received::ExitCode(code),
        None => Received::Nothing,
    };
    match person.watch(answers, received, out).await.map_err(refused)? {
        End::ExitCode(code) => Ok(code as u8),
        End::Left => Err(Failure::Reported),
        End::Streams => Err(Failure::message("the agent did not tell the exit code")),
    }
}

fn refused(status: Status) -> Failure {
    Failure::of_program(&status, ADVICE)
}
