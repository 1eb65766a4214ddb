//! `sampan prune` and `sampan image prune`: away with what nobody uses.

use std::io::{self, BufRead, IsTerminal};

use clap::Args;
use sampan_proto::sampan::{ListRequest, PruneImagesRequest, RemoveRequest, State};
use tonic::Code;

use super::{
    agent::Agent,
    builder,
    failure::{Failure, Failures},
    human::decimal_size,
    output::Output,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Also images that have a tag; pinned ones stay
    #[arg(short, long)]
    all: bool,

    /// Do not ask first
    #[arg(short, long)]
    force: bool,
}

/// What is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Images,
    /// Containers that do not run, then images, then what builds keep.
    Everything,
}

pub(super) async fn execute(
    arguments: Arguments,
    scope: Scope,
    agent: &Agent,
    out: &mut Output,
) -> Result<(), Failure> {
    let images = match arguments.all {
        true => "all images that no container uses",
        false => "all images without a tag that no container uses",
    };
    let everything = match scope {
        Scope::Images => images.to_owned(),
        Scope::Everything => {
            let mounts = if arguments.all { ", cache mounts too" } else { "" };
            format!(
                "all containers that do not run, {images}, and all build cache that no build uses{mounts}"
            )
        }
    };
    if !arguments.force && !confirmed(&everything, out)? {
        return Ok(());
    }
    let mut failures = Failures::default();
    if scope == Scope::Everything {
        containers(agent, out, &mut failures).await?;
    }
    let request = PruneImagesRequest { all: arguments.all };
    let pruned = agent.images().prune_images(request).await.map_err(Failure::plain)?.into_inner();
    if !pruned.untagged.is_empty() || !pruned.deleted.is_empty() {
        out.line("Deleted Images:")?;
        pruned.untagged.iter().try_for_each(|name| out.line(format_args!("untagged: {name}")))?;
        pruned.deleted.iter().try_for_each(|id| out.line(format_args!("deleted: {id}")))?;
        out.line("")?;
    }
    let mut reclaimed = pruned.reclaimed.unwrap_or_default().bytes;
    if scope == Scope::Everything {
        // After the images: what they shared with it is counted once.
        let (removed, bytes) = builder::prune_cache(agent, arguments.all).await?;
        if !removed.is_empty() {
            out.line("Deleted build cache objects:")?;
            removed.iter().try_for_each(|id| out.line(id))?;
            out.line("")?;
        }
        reclaimed += bytes;
    }
    out.line(format_args!("Total reclaimed space: {}", decimal_size(reclaimed)))?;
    failures.into_result()
}

async fn containers(agent: &Agent, out: &mut Output, failures: &mut Failures) -> Result<(), Failure> {
    let list = agent.containers().list(ListRequest { all: true }).await.map_err(Failure::plain)?.into_inner();
    let mut told = false;
    for container in list.containers.into_iter().filter(|container| container.state() == State::Exited) {
        let request = RemoveRequest { container: container.id.clone(), force: false };
        match agent.containers().remove(request).await {
            // Somebody else was faster.
            Err(status) if status.code() == Code::NotFound => continue,
            answer => {
                if failures.note(answer.map_err(Failure::of_container), out)?.is_none() {
                    continue;
                }
            }
        }
        if !std::mem::replace(&mut told, true) {
            out.line("Deleted Containers:")?;
        }
        out.line(&container.id)?;
    }
    if told { out.line("") } else { Ok(()) }
}

/// Whether somebody says yes to what is going to be removed.
pub(super) fn confirmed(what: &str, out: &mut Output) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::message("this removes things and nobody can be asked; use '--force'"));
    }
    out.line(format_args!("WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N]"))?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
