//! `sampan system`: `df` shows what images and containers take on the disk, `prune` makes room.

use clap::{Args, Subcommand};
use sampan_proto::sampan::{Amount, DiskUsageRequest, DiskUsageResponse, ImageDiskUsage};
use serde::Serialize;

use super::{
    agent::Agent,
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
    /// Show what images and containers take on the disk
    Df(Df),
    /// Remove containers that do not run, and images that nobody uses
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
    if arguments.listing.is_json() {
        out.json(&Report::from(&usage))
    } else if arguments.verbose {
        details(&usage, out)
    } else {
        out.text(summary(&usage))
    }
}

fn summary(usage: &DiskUsageResponse) -> Table<6> {
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

impl From<&DiskUsageResponse> for Report {
    fn from(usage: &DiskUsageResponse) -> Self {
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
