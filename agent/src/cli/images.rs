//! `sampan images`: images in the store, newest first, a row for each name.

use clap::Args;
use sampan_proto::sampan::{ImageSummary, ListImagesRequest};
use serde::Serialize;

use super::{
    agent::Agent,
    failure::Failure,
    human::{ago, decimal_size, familiar, now, short_id, timestamp_if_any},
    options::Listing,
    output::Output,
    table::Table,
};

const NONE: &str = "<none>";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Show ids only
    #[arg(short, long, conflicts_with = "output")]
    quiet: bool,

    /// Show ids in full
    #[arg(long)]
    no_trunc: bool,

    #[command(flatten)]
    listing: Listing,
}

pub(super) async fn execute(arguments: Arguments, agent: &Agent, out: &mut Output) -> Result<(), Failure> {
    let images =
        agent.images().list_images(ListImagesRequest {}).await.map_err(Failure::plain)?.into_inner().images;
    if arguments.listing.is_json() {
        return out.json(&images.iter().map(Row::from).collect::<Vec<_>>());
    }
    let id = |image: &ImageSummary| match arguments.no_trunc {
        true => image.id.clone(),
        false => short_id(&image.id).to_owned(),
    };
    if arguments.quiet {
        return images.iter().try_for_each(|image| out.line(id(image)));
    }
    let now = now();
    let mut table = Table::new(["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);
    for image in &images {
        for (repository, tag) in names(image) {
            let created = ago(image.created_at, now);
            table.row([repository, tag, id(image), created, decimal_size(image.size)]);
        }
    }
    out.text(table)
}

/// Repository and tag of each name; an image without tags is shown once, by the repository it came from.
pub(super) fn names(image: &ImageSummary) -> Vec<(String, String)> {
    if image.repo_tags.is_empty() {
        let repository = image.repo_digests.first().and_then(|name| name.split_once('@'));
        let repository = repository.map_or(NONE, |(repository, _)| familiar(repository));
        return vec![(repository.to_owned(), NONE.to_owned())];
    }
    let split = |name: &String| {
        let name = familiar(name);
        // A colon before the last slash is a port's: localhost:5000/nginx.
        match name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
            Some((repository, tag)) => (repository.to_owned(), tag.to_owned()),
            None => (name.to_owned(), NONE.to_owned()),
        }
    };
    image.repo_tags.iter().map(split).collect()
}

/// An image in `--output json`.
#[derive(Debug, Serialize)]
struct Row<'a> {
    id: &'a str,
    repo_tags: &'a [String],
    repo_digests: &'a [String],
    created_at: Option<String>,
    size: u64,
}

impl<'a> From<&'a ImageSummary> for Row<'a> {
    fn from(image: &'a ImageSummary) -> Self {
        Self {
            id: &image.id,
            repo_tags: &image.repo_tags,
            repo_digests: &image.repo_digests,
            created_at: timestamp_if_any(image.created_at),
            size: image.size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_of(tags: &[&str], digests: &[&str]) -> Vec<(String, String)> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        names(&ImageSummary { repo_tags: owned(tags), repo_digests: owned(digests), ..Default::default() })
    }

    #[test]
    fn a_port_is_no_tag() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            names_of(&["docker.io/library/nginx:1.27", "localhost:5000/a/b"], &[]),
            [pair("nginx", "1.27"), pair("localhost:5000/a/b", "<none>")]
        );
        assert_eq!(names_of(&[], &["localhost:5000/x@sha256:00"]), [pair("localhost:5000/x", "<none>")]);
        assert_eq!(names_of(&[], &[]), [pair("<none>", "<none>")]);
    }
}
