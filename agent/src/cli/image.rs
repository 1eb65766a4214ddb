//! `sampan image`: the verbs about images together, under the names that docker gave them there.

use clap::{Args, Subcommand};

use super::{
    Failure, Output, agent::Agent, history, images, inspect, load, prune, pull, push, rmi, save, tag,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List images
    #[command(alias = "list")]
    Ls(images::Arguments),
    /// Fetch an image from its registry
    Pull(pull::Arguments),
    /// Send an image to its registry
    Push(push::Arguments),
    /// Give an image one more name
    Tag(tag::Arguments),
    /// Show the steps in which an image was made
    History(history::Arguments),
    /// Show all that is known of images, as JSON
    Inspect(inspect::Arguments),
    /// Write images to a tar
    Save(save::Arguments),
    /// Read images from a tar
    Load(load::Arguments),
    /// Remove images
    #[command(alias = "remove")]
    Rm(rmi::Arguments),
    /// Remove images that nobody uses
    Prune(prune::Arguments),
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    match arguments.verb {
        Verb::Ls(arguments) => images::execute(arguments, agent, out).await,
        Verb::Pull(arguments) => pull::execute(arguments, agent, out).await,
        Verb::Push(arguments) => push::execute(arguments, agent, out).await,
        Verb::Tag(arguments) => tag::execute(arguments, agent).await,
        Verb::History(arguments) => history::execute(arguments, agent, out).await,
        Verb::Inspect(arguments) => inspect::execute(arguments, agent, out).await,
        Verb::Save(arguments) => save::execute(arguments, agent, out).await,
        Verb::Load(arguments) => load::execute(arguments, agent, out).await,
        Verb::Rm(arguments) => rmi::execute(arguments, agent, out).await,
        Verb::Prune(arguments) => prune::execute(arguments, prune::Scope::Images, agent, out).await,
    }
}
