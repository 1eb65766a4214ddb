//! `sampan system`: `df` shows what images and containers take on the disk, `prune` makes room.

use clap::{Args, Subcommand};
use sampan_proto::sampan::{Amount, BuildCacheEntry, DiskUsageRequest, DiskUsageResponse, ImageDiskUsage};
use serde::Serialize;

use super::{
    agent::Agent,
    builder,
    failure::Failure,
    human::{ago, decimal_size, now, short_id},
    images::names,
    options::Listing,
    output::Output,
    prune,
    table::Table,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what images, containers and builds take on the disk
    Df(Df),
    /// Remove containers that do not run, images that nobody uses, and what builds keep
    Prune(prune::Arguments),
}

#[derive(Debug, Args)]
struct Df {
    /// Show each image and container
    #[arg(short, long, conflicts_with = "output")]
    verbose: bool,

    #[command(flatten)]
    listing: Listing,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let arguments = match arguments.verb {
        Verb::Df(arguments) => arguments,
        Verb::Prune(arguments) => {
            return prune::execute(arguments, prune::Scope::Everything, agent, out).await;
        }
    };
    let usage = agent.images().disk_usage(DiskUsageRequest {}).await.map_err(Failure::plain)?.into_inner();
    let cache = builder::cache(agent).await?;
    if arguments.listing.is_json() {
        out.json(&Report::of(&usage, &cache))
    } else if arguments.verbose {
        details(&usage, out)?;
        out.line(format_args!(
            "\nBuild cache usage: {}, listed by 'sampan builder ls'",
            decimal_size(bytes(&cache))
        ))
    } else {
        out.text(summary(&usage, &cache))
    }
}

fn bytes(cache: &[BuildCacheEntry]) -> u64 {
    cache.iter().map(|entry| entry.size).sum()
}

fn summary(usage: &DiskUsageResponse, cache: &[BuildCacheEntry]) -> Table<6> {
    let mut table = Table::new(["TYPE", "TOTAL", "ACTIVE", "SIZE", "INODES", "RECLAIMABLE"]);
    let mut row = |name: &str, total: usize, active: usize, size: Amount, free: Amount| {
        let share = (free.bytes * 100).checked_div(size.bytes).unwrap_or(0);
        let free = format!("{} ({share}%)", decimal_size(free.bytes));
        table.row([
            name.to_owned(),
            total.to_string(),
            active.to_string(),
            decimal_size(size.bytes),
            size.inodes.to_string(),
            free,
        ]);
    };
    let used = usage.images.iter().filter(|image| image.containers > 0).count();
    let (total, free) = (usage.image_total.unwrap_or_default(), usage.image_reclaimable.unwrap_or_default());
    row("Images", usage.images.len(), used, total, free);
    let running = usage.containers.iter().filter(|container| container.running).count();
    row("Containers", usage.containers.len(), running, written(usage, true), written(usage, false));
    let (active, idle): (Vec<_>, Vec<_>) = cache.iter().cloned().partition(|entry| entry.in_use);
    let amount = |cache: &[BuildCacheEntry]| Amount { bytes: bytes(cache), inodes: 0 };
    row("Build Cache", cache.len(), active.len(), amount(cache), amount(&idle));
    table
}

/// What containers have written: all of them, or only those that do not run.
fn written(usage: &DiskUsageResponse, all: bool) -> Amount {
    let counted = usage.containers.iter().filter(|container| all || !container.running);
    counted.filter_map(|container| container.written).fold(Amount::default(), |sum, written| Amount {
        bytes: sum.bytes + written.bytes,
        inodes: sum.inodes + written.inodes,
    })
}

fn details(usage: &DiskUsageResponse, out: &mut Output) -> Result<(), Failure> {
    let now = now();
    out.line("Images space usage:\n")?;
    let heading =
        ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "SHARED SIZE", "UNIQUE SIZE", "CONTAINERS"];
    let mut table = Table::new(heading);
    for usage in &usage.images {
        let Some(image) = &usage.image else { continue };
        let (shared, unique) = (usage.shared.unwrap_or_default(), usage.unique.unwrap_or_default());
        for (repository, tag) in names(image) {
            table.row([
                repository,
                tag,
                short_id(&image.id).to_owned(),
                ago(image.created_at, now),
                decimal_size(shared.bytes + unique.bytes),
                decimal_size(shared.bytes),
                decimal_size(unique.bytes),
                usage.containers.to_string(),
            ]);
        }
    }
    out.text(table)?;
    out.line("\nContainers space usage:\n")?;
    let mut table = Table::new(["CONTAINER ID", "IMAGE", "SIZE", "INODES", "CREATED", "STATUS", "NAMES"]);
    for container in &usage.containers {
        let written = container.written.unwrap_or_default();
        table.row([
            short_id(&container.id).to_owned(),
            container.image.clone(),
            decimal_size(written.bytes),
            written.inodes.to_string(),
            ago(container.created_at, now),
            if container.running { "running" } else { "not running" }.to_owned(),
            container.name.clone(),
        ]);
    }
    out.text(table)
}

/// `--output json`.
#[derive(Debug, Serialize)]
struct Report {
    images: Vec<Image>,
    images_total: Size,
    images_reclaimable: Size,
    containers: Vec<Container>,
    build_cache: Cache,
}

#[derive(Debug, Serialize)]
struct Cache {
    entries: usize,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Size {
    bytes: u64,
    inodes: u64,
}

#[derive(Debug, Serialize)]
struct Image {
    id: String,
    repo_tags: Vec<String>,
    shared: Size,
    unique: Size,
    containers: u32,
}

#[derive(Debug, Serialize)]
struct Container {
    id: String,
    name: String,
    running: bool,
    written: Size,
}

impl From<Option<Amount>> for Size {
    fn from(amount: Option<Amount>) -> Self {
        let Amount { bytes, inodes } = amount.unwrap_or_default();
        Self { bytes, inodes }
    }
}

impl Report {
    fn of(usage: &DiskUsageResponse, cache: &[BuildCacheEntry]) -> Self {
        let image = |usage: &ImageDiskUsage| {
            let image = usage.image.clone().unwrap_or_default();
            Image {
                id: image.id,
                repo_tags: image.repo_tags,
                shared: usage.shared.into(),
                unique: usage.unique.into(),
                containers: usage.containers,
            }
        };
        Self {
            images: usage.images.iter().map(image).collect(),
            images_total: usage.image_total.into(),
            images_reclaimable: usage.image_reclaimable.into(),
            build_cache: Cache { entries: cache.len(), bytes: bytes(cache) },
            containers: usage
                .containers
                .iter()
                .map(|container| Container {
                    id: container.id.clone(),
                    name: container.name.clone(),
                    running: container.running,
                    written: container.written.into(),
                })
                .collect(),
        }
    }
}
