//! `sampan builder`: what builds keep to be quicker the next time, and the logs of builds.

use clap::{Args, Subcommand, ValueEnum};
use sampan_proto::sampan::{
    BuildCacheEntry, BuildLogRequest, BuildSummary, ListBuildCacheRequest, ListBuildsRequest,
    PruneBuildCacheRequest, build_cache_entry::Kind,
};
use serde::Serialize;

use super::{
    agent::Agent,
    failure::{Advice, Failure},
    human::{ago, decimal_size, now, short_id, timestamp},
    options::{self, Listing},
    output::Output,
    prune::confirmed,
    table::Table,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List what builds keep: layers of steps, cache mounts, files of contexts
    #[command(visible_alias = "du")]
    Ls(Listing),
    /// Remove what builds keep and none of them uses
    Prune(Prune),
    /// List the builds whose logs are kept, the newest first
    History(Listing),
    /// Show the whole log of a build
    Logs(Logs),
}

#[derive(Debug, Args)]
struct Prune {
    /// Also cache mounts
    #[arg(short, long)]
    all: bool,

    /// Do not ask first
    #[arg(short, long)]
    force: bool,

    /// Only of this kind
    #[arg(long, value_enum, value_name = "KIND")]
    kind: Vec<Sort>,

    /// Only what was not used for this long: 24h, 30m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    unused_for: Option<i64>,

    /// Leave so much: what was used longest ago goes first
    #[arg(long, value_name = "SIZE", value_parser = options::memory)]
    keep_storage: Option<i64>,

    /// Only these, by id or the beginning of one
    #[arg(value_name = "ID")]
    ids: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sort {
    Step,
    Mount,
    Context,
}

#[derive(Debug, Args)]
struct Logs {
    /// Which one, by id or the beginning of one; the newest without it
    #[arg(value_name = "BUILD")]
    build: Option<String>,
}

const ADVICE: Advice =
    &[(tonic::Code::NotFound, "'sampan builder history' lists the builds whose logs are kept")];

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    match arguments.verb {
        Verb::Ls(listing) => list(&listing, agent, out).await,
        Verb::Prune(arguments) => prune(arguments, agent, out).await,
        Verb::History(listing) => history(&listing, agent, out).await,
        Verb::Logs(arguments) => logs(arguments, agent, out).await,
    }
}

/// All that is kept.
pub(super) async fn cache(agent: &Agent) -> Result<Vec<BuildCacheEntry>, Failure> {
    match agent.builds().list_build_cache(ListBuildCacheRequest {}).await {
        Ok(answer) => Ok(answer.into_inner().entries),
        // An agent that builds nothing keeps nothing.
        Err(status) if status.code() == tonic::Code::Unimplemented => Ok(Vec::new()),
        Err(status) => Err(Failure::plain(status)),
    }
}

/// Removes what no build uses, cache mounts only with `all`; gives the ids of what is gone, and the bytes.
pub(super) async fn prune_cache(agent: &Agent, all: bool) -> Result<(Vec<String>, u64), Failure> {
    remove(agent, PruneBuildCacheRequest { kinds: kinds(all, &[]), ..Default::default() }).await
}

async fn remove(agent: &Agent, request: PruneBuildCacheRequest) -> Result<(Vec<String>, u64), Failure> {
    let answer = agent.builds().prune_build_cache(request).await.map_err(Failure::plain)?.into_inner();
    Ok((answer.removed, answer.reclaimed_bytes))
}

fn kinds(all: bool, named: &[Sort]) -> Vec<i32> {
    let kind = |sort: &Sort| match sort {
        Sort::Step => Kind::Step as i32,
        Sort::Mount => Kind::Mount as i32,
        Sort::Context => Kind::Context as i32,
    };
    match (named, all) {
        ([], true) => Vec::new(),
        ([], false) => [Sort::Step, Sort::Context].iter().map(kind).collect(),
        (named, _) => named.iter().map(kind).collect(),
    }
}

async fn list(listing: &Listing, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let mut entries = cache(agent).await?;
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.used_at));
    if listing.is_json() {
        return out.json(&entries.iter().map(Entry::from).collect::<Vec<_>>());
    }
    let now = now();
    let mut table = Table::new(["ID", "KIND", "SIZE", "CREATED", "LAST USED", "IN USE", "DESCRIPTION"]);
    for entry in &entries {
        let moment = |at: i64| if at > 0 { ago(at, now) } else { String::new() };
        table.row([
            short_id(&entry.id).to_owned(),
            kind_name(entry).to_owned(),
            decimal_size(entry.size),
            moment(entry.created_at),
            moment(entry.used_at),
            if entry.in_use { "yes" } else { "no" }.to_owned(),
            entry.description.chars().take(60).collect(),
        ]);
    }
    out.text(table)?;
    out.line(format_args!("Total: {}", decimal_size(entries.iter().map(|entry| entry.size).sum())))
}

fn kind_name(entry: &BuildCacheEntry) -> &'static str {
    match entry.kind() {
        Kind::Step => "step",
        Kind::Mount => "mount",
        Kind::Context => "context",
        Kind::Unspecified => "other",
    }
}

async fn prune(arguments: Prune, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let what = match (arguments.all, arguments.ids.is_empty()) {
        (_, false) => "these entries of the build cache",
        (true, _) => "all of the build cache that no build uses, cache mounts too",
        (false, _) => "all of the build cache that no build uses, but for cache mounts",
    };
    if !arguments.force && !confirmed(what, out)? {
        return Ok(());
    }
    // Whoever names one means it, whatever kind it is of.
    let all = arguments.all || !arguments.ids.is_empty();
    let request = PruneBuildCacheRequest {
        kinds: kinds(all, &arguments.kind),
        ids: arguments.ids,
        unused_for: arguments.unused_for.unwrap_or_default(),
        keep_bytes: arguments.keep_storage.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or_default(),
    };
    let (removed, bytes) = remove(agent, request).await?;
    removed.iter().try_for_each(|id| out.line(id))?;
    out.line(format_args!("Total reclaimed space: {}", decimal_size(bytes)))
}

async fn builds(agent: &Agent) -> Result<Vec<BuildSummary>, Failure> {
    Ok(agent.builds().list_builds(ListBuildsRequest {}).await.map_err(Failure::plain)?.into_inner().builds)
}

async fn history(listing: &Listing, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let builds = builds(agent).await?;
    if listing.is_json() {
        return out.json(&builds.iter().map(Build::from).collect::<Vec<_>>());
    }
    let now = now();
    let mut table = Table::new(["BUILD ID", "NAME", "STATUS", "CREATED", "DURATION", "IMAGE"]);
    for build in &builds {
        let seconds = build.finished_at.saturating_sub(build.started_at) as f64 / 1e9;
        table.row([
            build.id.clone(),
            build.title.clone(),
            status(build).to_owned(),
            ago(build.started_at, now),
            if build.finished_at > 0 { format!("{seconds:.1}s") } else { String::new() },
            short_id(&build.image_id).to_owned(),
        ]);
    }
    out.text(table)
}

fn status(build: &BuildSummary) -> &'static str {
    match (build.finished_at, build.error.is_empty()) {
        (0, _) => "Running",
        (_, true) => "Completed",
        (_, false) => "Error",
    }
}

async fn logs(arguments: Logs, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let build_id = match arguments.build {
        Some(build) => build,
        None => {
            let newest = builds(agent).await?.into_iter().next();
            newest.ok_or_else(|| Failure::message("there is no log of a build"))?.id
        }
    };
    let refused = |status| Failure::answered(&status, ADVICE);
    let mut pieces =
        agent.builds().build_log(BuildLogRequest { build_id }).await.map_err(refused)?.into_inner();
    while let Some(piece) = pieces.message().await.map_err(refused)? {
        out.bytes(&piece.data)?;
    }
    Ok(())
}

/// `90s`, `30m`, `24h`, `7d`, in nanoseconds.
fn duration(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is no time: 90s, 30m, 24h, 7d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let number: i64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        _ => return Err(wrong()),
    };
    let nanoseconds = number.checked_mul(seconds).and_then(|seconds| seconds.checked_mul(1_000_000_000));
    nanoseconds.filter(|time| *time > 0).ok_or_else(wrong)
}

/// `--output json`.
#[derive(Debug, Serialize)]
struct Entry {
    id: String,
    kind: &'static str,
    description: String,
    size: u64,
    created: String,
    used: String,
    in_use: bool,
}

impl From<&BuildCacheEntry> for Entry {
    fn from(entry: &BuildCacheEntry) -> Self {
        Self {
            id: entry.id.clone(),
            kind: kind_name(entry),
            description: entry.description.clone(),
            size: entry.size,
            created: timestamp(entry.created_at),
            used: timestamp(entry.used_at),
            in_use: entry.in_use,
        }
    }
}

/// `--output json`.
#[derive(Debug, Serialize)]
struct Build {
    id: String,
    name: String,
    status: &'static str,
    started: String,
    finished: Option<String>,
    image: String,
    error: String,
}

impl From<&BuildSummary> for Build {
    fn from(build: &BuildSummary) -> Self {
        Self {
            id: build.id.clone(),
            name: build.title.clone(),
            status: status(build),
            started: timestamp(build.started_at),
            finished: (build.finished_at > 0).then(|| timestamp(build.finished_at)),
            image: build.image_id.clone(),
            error: build.error.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("24h", 86400), ("7d", 604_800)] {
            assert_eq!(duration(text), Ok(seconds * 1_000_000_000), "{text}");
        }
        for text in ["", "h", "1", "1y", "-1h", "0s", "9999999999999d", "1é"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cache_mounts_go_only_when_they_are_asked_for() {
        assert_eq!(kinds(false, &[]), [Kind::Step as i32, Kind::Context as i32]);
        assert_eq!(kinds(true, &[]), [0_i32; 0]);
        assert_eq!(kinds(false, &[Sort::Mount]), [Kind::Mount as i32]);
    }
}
