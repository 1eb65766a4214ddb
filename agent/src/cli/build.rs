//! `sampan build`: builds an image from a Dockerfile and a folder, a tar or a URL.
//!
//! The agent never reads a file of ours. The folder is looked through once, `.dockerignore` applied; the agent is told
//! what there is and asks for the content that it lacks (`context`), and tells how it goes (`progress`). What a build
//! is made of is in `source`, where its result goes in `target`, and the conversation with the agent in `session`.

mod check;
mod context;
mod progress;
mod session;
mod source;
mod target;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, io::IsTerminal, path::PathBuf};

use clap::{Args, Parser, ValueEnum};
use sampan_proto::sampan::{BuildStart, InspectImageRequest, build_start};

use self::{source::Source, target::Target};
use super::{agent::Agent, failure::Failure, options, output::Output, push, run};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Show nothing but the image's id
    #[arg(short, long)]
    quiet: bool,

    /// Name the image: NAME[:TAG]
    #[arg(short, long, value_name = "NAME")]
    tag: Vec<String>,

    /// The Dockerfile; - reads it from standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Build this stage, by name or number
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,

    /// Set an ARG: NAME=VALUE, or NAME for the value it has here
    #[arg(long, value_name = "VARIABLE")]
    build_arg: Vec<String>,

    /// Give steps a secret: id=ID[,src=FILE] or id=ID,env=VARIABLE
    #[arg(long, value_name = "SECRET")]
    secret: Vec<String>,

    /// Put a label on the image: KEY=VALUE
    #[arg(long, value_name = "LABEL", value_parser = options::label)]
    label: Vec<(String, String)>,

    /// Build for this platform: OS/ARCH[/VARIANT]
    #[arg(long, default_value = "", hide_default_value = true, value_name = "PLATFORM")]
    platform: String,

    /// Run every step, whatever was built before
    #[arg(long)]
    no_cache: bool,

    /// Look for newer base images
    #[arg(long)]
    pull: bool,

    /// The network of RUN
    #[arg(long, value_enum, value_name = "NETWORK", default_value = "default")]
    network: Network,

    /// Add a line to /etc/hosts of RUN: HOST:ADDRESS
    #[arg(long, value_name = "HOST")]
    add_host: Vec<String>,

    /// Limit the memory of each RUN: 64m, 1.5g
    #[arg(short, long, value_name = "SIZE", value_parser = options::memory)]
    memory: Option<i64>,

    /// Where the result goes: image, FOLDER, - (a tar), or type=image|oci|docker|local|tar,dest=PATH
    #[arg(short, long, value_name = "OUTPUT", value_parser = target::parse)]
    output: Option<Target>,

    /// Send the image to the registry of each of its names
    #[arg(long)]
    push: bool,

    /// Write the image's id to a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,

    /// How to show what goes on
    #[arg(long, value_enum, value_name = "HOW", default_value = "auto")]
    progress: How,

    /// Say of each step that runs why it was not cached
    #[arg(long)]
    explain: bool,

    /// Open a shell where a step has failed
    #[arg(long)]
    debug: bool,

    /// Only check the Dockerfile
    #[arg(long)]
    check: bool,

    /// A folder, a URL of a tar or a Dockerfile, or - for one of these on standard input
    #[arg(value_name = "PATH | URL | -")]
    context: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Network {
    Default,
    None,
    Host,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum How {
    Auto,
    Plain,
    Json,
}

pub(super) async fn execute(
    arguments: Arguments,
    agent: Result<Agent, Failure>,
    out: &mut Output,
) -> Result<u8, Failure> {
    let source = Source::find(&arguments.context, arguments.file.as_deref())?;
    if arguments.check {
        return check::execute(source, &arguments, out).await;
    }
    let agent = agent?;
    let target = arguments.output.clone().unwrap_or_default();
    target.refuse_terminal(out)?;
    if arguments.push && arguments.tag.is_empty() {
        return Err(Failure::message("--push needs a name to push to: -t NAME"));
    }
    if target.is_files() && (!arguments.tag.is_empty() || arguments.iidfile.is_some() || arguments.push) {
        return Err(Failure::message(
            "-t, --push and --iidfile are about an image, and this output makes none",
        ));
    }
    let to_standard_output = target.is_standard_output();
    let start = start(&arguments, &source, &target)?;
    let view = progress::View::new(arguments.quiet, arguments.progress, out);
    let built = match session::build(&agent, start, source, target, view, out).await? {
        session::Outcome::Built(built) => built,
        session::Outcome::Failed { message, debug_image } => {
            out.complain(&Failure::message(message));
            return match debug_image {
                Some(image) if arguments.debug => debug(image, agent, out).await,
                _ => Err(Failure::Reported),
            };
        }
    };
    if let Some(path) = &arguments.iidfile {
        std::fs::write(path, &built.image_id)
            .map_err(|error| Failure::message(format!("cannot write {}: {error}", path.display())))?;
    }
    if arguments.quiet && !built.image_id.is_empty() && !to_standard_output {
        out.line(&built.image_id)?;
    }
    if arguments.push {
        for name in &arguments.tag {
            push::push(name, arguments.quiet, &agent, out).await?;
        }
    }
    Ok(0)
}

/// What the agent is told first.
fn start(arguments: &Arguments, source: &Source, target: &Target) -> Result<BuildStart, Failure> {
    let mut start = BuildStart {
        tags: arguments.tag.clone(),
        target: arguments.target.clone().unwrap_or_default(),
        build_args: build_args(&arguments.build_arg),
        labels: arguments.label.iter().cloned().collect(),
        platform: arguments.platform.clone(),
        secrets: source::secrets(&arguments.secret)?,
        no_cache: arguments.no_cache,
        pull: arguments.pull,
        network: match arguments.network {
            Network::Default => build_start::Network::Default,
            Network::None => build_start::Network::None,
            Network::Host => build_start::Network::Host,
        }
        .into(),
        output: target.asked().into(),
        explain: arguments.explain,
        debug: arguments.debug,
        memory_bytes: arguments.memory.unwrap_or_default(),
        add_hosts: arguments.add_host.clone(),
        ..BuildStart::default()
    };
    source.describe(&mut start);
    Ok(start)
}

/// `NAME=VALUE`; a bare name has the value of this process's own variable, if there is one. The time that makes a build
/// reproducible is taken from the environment unasked, as other tools do.
fn build_args(given: &[String]) -> HashMap<String, String> {
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => Some((text.clone(), std::env::var(text).ok()?)),
    };
    let epoch = "SOURCE_DATE_EPOCH".to_owned();
    [epoch].iter().chain(given).filter_map(pair).collect()
}

/// A shell in what a failed step has left.
async fn debug(image: String, agent: Agent, out: &mut Output) -> Result<u8, Failure> {
    let remove = format!("'sampan rmi {image}' removes it");
    if !std::io::stdin().is_terminal() {
        out.note(format_args!("what the step left is the image {image}; {remove}"));
        return Err(Failure::Reported);
    }
    out.note(format_args!("a shell in what the step left, the image {image}; {remove}"));
    let shell = shell_of(&image, &agent).await?;
    let words = ["sampan-run", "--rm", "-it", "--entrypoint", &shell, &image];
    let shell = Shell::try_parse_from(words).map_err(|error| Failure::message(error.to_string()))?;
    run::execute(shell.arguments, std::future::ready(Ok(agent)), out).await?;
    Err(Failure::Reported)
}

/// The program of an image's SHELL.
async fn shell_of(image: &str, agent: &Agent) -> Result<String, Failure> {
    let request = InspectImageRequest { image: image.to_owned() };
    let shown = agent.images().inspect_image(request).await.map_err(Failure::plain)?.into_inner();
    let shown: serde_json::Value = serde_json::from_str(&shown.json).unwrap_or_default();
    Ok(shown["Config"]["Shell"][0].as_str().unwrap_or("/bin/sh").to_owned())
}

/// `sampan run`, as it is called from here.
#[derive(Debug, Parser)]
struct Shell {
    #[command(flatten)]
    arguments: run::Arguments,
}
