//! The command line `sampan`: verbs and flags as docker taught them.
//!
//! A client of the agent's socket only: it never touches the store. One file a verb; what several verbs need
//! is in `agent` (the connection), `failure`, `output`, `table`, `human`, `json` and `options`.
//! Exit codes: 0, 1 for an error, 125 for an error of `run` itself, else what the container's process gave.

mod agent;
mod attach;
mod build;
mod builder;
mod commit;
mod diff;
mod events;
mod exec;
mod failure;
mod history;
mod human;
mod image;
mod images;
mod info;
mod inspect;
mod json;
mod load;
mod logs;
mod options;
mod output;
mod port_forward;
mod progress;
mod prune;
mod ps;
mod pull;
mod push;
mod remove;
mod rmi;
mod run;
mod save;
mod session;
mod start;
mod stats;
mod stop;
mod store;
mod system;
mod table;
mod tag;
mod version;
mod wait;

#[cfg(test)]
mod tests;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use self::{agent::Agent, failure::Failure, output::Output};

/// Where an agent listens that was not told otherwise.
const DEFAULT_SOCKET: &str = "/run/sampan/sampan.sock";

/// Runs and watches containers through the node's agent, sampand
#[derive(Debug, Parser)]
#[command(name = "sampan", version, arg_required_else_help = true)]
struct Arguments {
    /// The agent's socket
    #[arg(
        long,
        global = true,
        display_order = 1000,
        env = "SAMPAN_SOCKET",
        default_value = DEFAULT_SOCKET,
        value_name = "PATH",
        value_parser = options::socket
    )]
    socket: PathBuf,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a command in a new container
    Run(Box<run::Arguments>),
    /// Run a command in a running container
    Exec(exec::Arguments),
    /// Make a new container without starting it
    Create(Box<run::Arguments>),
    /// Start containers that were created
    Start(start::Arguments),
    /// Join the streams of a running container
    Attach(attach::Arguments),
    /// Lead local ports to ports of a container
    PortForward(port_forward::Arguments),
    /// List containers
    Ps(ps::Arguments),
    /// Show what a container wrote
    Logs(logs::Arguments),
    /// Show what containers use, again and again
    Stats(stats::Arguments),
    /// Show what happens to pods, containers and images
    Events(events::Arguments),
    /// Stop running containers
    Stop(stop::Arguments),
    /// Wait until containers end, then print their exit codes
    Wait(wait::Arguments),
    /// Remove containers
    Rm(remove::Arguments),
    /// Show all that is known of containers or images, as JSON
    Inspect(inspect::Arguments),
    /// Fetch an image from its registry
    Pull(pull::Arguments),
    /// Send an image to its registry
    Push(push::Arguments),
    /// List images
    Images(images::Arguments),
    /// All that can be done with images
    Image(image::Arguments),
    /// Remove images
    Rmi(rmi::Arguments),
    /// Build an image from a Dockerfile
    Build(Box<build::Arguments>),
    /// Show and remove what builds keep, and show their logs
    Builder(builder::Arguments),
    /// Make an image of a container
    Commit(commit::Arguments),
    /// Show what a container has changed of its image's files
    Diff(diff::Arguments),
    /// Give an image one more name
    Tag(tag::Arguments),
    /// Show the steps in which an image was made
    History(history::Arguments),
    /// Write images to a tar
    Save(save::Arguments),
    /// Read images from a tar
    Load(load::Arguments),
    /// Remove containers that do not run, images that nobody uses, and what builds keep
    Prune(prune::Arguments),
    /// Show what is on the agent's disk, and make room
    System(system::Arguments),
    /// Check the agent's store
    Store(store::Arguments),
    /// Show the versions of this command and of the agent
    Version(version::Arguments),
    /// Show how the agent is set up and what it holds
    Info(info::Arguments),
}

/// The whole program: reads the arguments, carries out the verb, and says how to exit.
pub fn main() -> ExitCode {
    let mut out = Output::standard();
    // One thread: a client that waits for one answer has no use for a pool, and starts faster without.
    let code = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(execute(std::env::args_os(), &mut out)),
        Err(error) => {
            out.complain(&Failure::message(format!("cannot start: {error}")));
            1
        }
    };
    ExitCode::from(code)
}

/// Carries out one command line; the answer is the exit code.
async fn execute(arguments: impl IntoIterator<Item = OsString>, out: &mut Output) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    match Arguments::try_parse_from(&arguments) {
        Ok(arguments) => {
            let own_error =
                if matches!(arguments.verb, Verb::Run(_) | Verb::Create(_)) { run::OWN_ERROR } else { 1 };
            let result = carry_out(arguments, out).await;
            finish(result, own_error, out)
        }
        Err(error) if !error.use_stderr() => finish(out.text(error.render()).map(|()| 0), 1, out),
        Err(error) => {
            let usage = error.render().to_string();
            match usage.strip_prefix("error: ") {
                Some(usage) => out.complain(&Failure::message(usage.trim_end())),
                // The help, for a command line without a verb.
                None => out.note(usage.trim_end()),
            }
            // The arguments could not be read, so this is a guess; a wrong one costs a 125 for a 1.
            if arguments.iter().any(|argument| argument == "run") { run::OWN_ERROR } else { 1 }
        }
    }
}

/// Tells of a failure, and makes sure that what was printed is out.
fn finish(result: Result<u8, Failure>, own_error: u8, out: &mut Output) -> u8 {
    match result.and_then(|code| out.flush().map(|()| code)) {
        Ok(code) => code,
        Err(Failure::BrokenPipe) => failure::BROKEN_PIPE,
        Err(failure) => {
            // What was printed before comes first; when it cannot be, the failure at hand says more.
            let _ = out.flush();
            out.complain(&failure);
            if let Failure::Program(_, code) = failure { code } else { own_error }
        }
    }
}

async fn carry_out(arguments: Arguments, out: &mut Output) -> Result<u8, Failure> {
    let socket = arguments.socket;
    let agent = Agent::connect(&socket);
    match arguments.verb {
        Verb::Run(arguments) => return run::execute(*arguments, agent, out).await,
        Verb::Exec(arguments) => return exec::execute(arguments, agent, out).await,
        Verb::Create(arguments) => return run::create(*arguments, agent, out).await,
        Verb::Start(arguments) => return start::execute(arguments, &agent.await?, out).await,
        Verb::Attach(arguments) => return attach::execute(arguments, &agent.await?, out).await,
        Verb::PortForward(arguments) => port_forward::execute(arguments, &agent.await?, out).await,
        Verb::Ps(arguments) => ps::execute(arguments, &agent.await?, out).await,
        Verb::Logs(arguments) => logs::execute(arguments, &agent.await?, out).await,
        Verb::Stats(arguments) => stats::execute(arguments, &agent.await?, out).await,
        Verb::Events(arguments) => events::execute(arguments, &agent.await?, out).await,
        Verb::Stop(arguments) => stop::execute(arguments, &agent.await?, out).await,
        Verb::Wait(arguments) => wait::execute(arguments, &agent.await?, out).await,
        Verb::Rm(arguments) => remove::execute(arguments, &agent.await?, out).await,
        Verb::Inspect(arguments) => inspect::execute(arguments, &agent.await?, out).await,
        Verb::Pull(arguments) => pull::execute(arguments, &agent.await?, out).await,
        Verb::Images(arguments) => images::execute(arguments, &agent.await?, out).await,
        Verb::Rmi(arguments) => rmi::execute(arguments, &agent.await?, out).await,
        Verb::Build(arguments) => return build::execute(*arguments, agent.await, out).await,
        Verb::Builder(arguments) => builder::execute(arguments, &agent.await?, out).await,
        Verb::Commit(arguments) => commit::execute(arguments, &agent.await?, out).await,
        Verb::Diff(arguments) => diff::execute(arguments, &agent.await?, out).await,
        Verb::Push(arguments) => push::execute(arguments, &agent.await?, out).await,
        Verb::Image(arguments) => image::execute(arguments, &agent.await?, out).await,
        Verb::Prune(arguments) => {
            prune::execute(arguments, prune::Scope::Everything, &agent.await?, out).await
        }
        Verb::Store(arguments) => store::execute(arguments, &agent.await?, out).await,
        Verb::Tag(arguments) => tag::execute(arguments, &agent.await?).await,
        Verb::History(arguments) => history::execute(arguments, &agent.await?, out).await,
        Verb::Save(arguments) => save::execute(arguments, &agent.await?, out).await,
        Verb::Load(arguments) => load::execute(arguments, &agent.await?, out).await,
        Verb::System(arguments) => system::execute(arguments, &agent.await?, out).await,
        Verb::Version(arguments) => version::execute(arguments, agent, out).await,
        Verb::Info(arguments) => info::execute(arguments, &agent.await?, out).await,
    }
    .map(|()| 0)
}
