//! `state`, `list` and `ps`: what there is.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Serialize;

use super::arguments::{self, Format};
use super::record::{self, Folder, Record, Status};
use super::{Context, Error, OCI_VERSION, Result, write_json, write_out};

pub(super) fn state(context: &Context, id: &str) -> Result<()> {
    let record = Folder::open(context, id)?.read()?;
    write_json(&describe(context, &record))
}

/// The members in runc's order, which some read by.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Description {
    oci_version: &'static str,
    id: String,
    pid: i32,
    status: &'static str,
    bundle: PathBuf,
    rootfs: PathBuf,
    created: String,
    annotations: HashMap<String, String>,
    owner: String,
}

fn describe(context: &Context, record: &Record) -> Description {
    let uid = std::fs::metadata(context.root.join(&record.id)).map_or(0, |folder| folder.uid());
    let owner = std::fs::read_to_string("/etc/passwd").ok().and_then(|text| name_of(&text, uid));
    let owner = owner.unwrap_or_else(|| format!("#{uid}"));
    let status = record.status();
    let pid = if status == Status::Stopped { 0 } else { record.pid };
    let Record { id, bundle, rootfs, created, annotations, .. } = record.clone();
    let status = status.name();
    Description { oci_version: OCI_VERSION, id, pid, status, bundle, rootfs, created, annotations, owner }
}

pub(super) fn list(context: &Context, arguments: &arguments::List) -> Result<()> {
    let records = record::all(context)?;
    if arguments.quiet {
        return write_out(
            records.iter().map(|record| format!("{}\n", record.id)).collect::<String>().as_bytes(),
        );
    }
    let states: Vec<Description> = records.iter().map(|record| describe(context, record)).collect();
    match arguments.format {
        Format::Json => write_line(&states),
        Format::Table => {
            let heading = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"];
            let mut rows = vec![heading.map(str::to_owned).to_vec()];
            rows.extend(states.into_iter().map(|state| {
                let bundle = state.bundle.display().to_string();
                vec![
                    state.id,
                    state.pid.to_string(),
                    state.status.to_owned(),
                    bundle,
                    state.created,
                    state.owner,
                ]
            }));
            write_out(table(&rows).as_bytes())
        }
    }
}

/// JSON on one line.
fn write_line(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|error| Error::io("write JSON", error.into()))?;
    write_out(format!("{text}\n").as_bytes())
}

/// Of the user with a number, in the form of passwd(5).
fn name_of(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let longest = rows.iter().map(|row| row[column].chars().count()).max();
        longest.unwrap_or(0).max(9) + 3
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}"));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

pub(super) fn ps(context: &Context, arguments: &arguments::Ps) -> Result<()> {
    let record = Folder::open(context, &arguments.id)?.read()?;
    let pids = record.cgroup()?.pids().map_err(Error::cgroup(&record.cgroup))?;
    if arguments.format == Format::Json {
        return write_line(&pids);
    }
    let mut command = Command::new("ps");
    if arguments.options.is_empty() {
        command.arg("-ef");
    }
    let output = command.args(&arguments.options).output().map_err(|source| Error::io("run ps", source))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        return Err(Error::refused(format!("ps: {}: {}", output.status, told.trim())));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    write_out(of_processes(&text, &pids)?.as_bytes())
}

/// The lines of a listing that are of certain processes, with its heading.
fn of_processes(listing: &str, pids: &[i32]) -> Result<String> {
    let mut lines = listing.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading.split_whitespace().position(|title| title == "PID");
    let column = column.ok_or_else(|| Error::refused("couldn't find PID field in ps output"))?;
    let wanted = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid: i32| pids.contains(&pid))
    };
    Ok(std::iter::once(heading).chain(lines.filter(wanted)).map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_have_names() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\ngames:x:5:60::/:\n";
        assert_eq!(name_of(passwd, 5).as_deref(), Some("games"));
        assert_eq!(name_of(passwd, 6), None);
    }

    #[test]
    fn listings_are_cut_down_to_the_containers_processes() {
        let listing = "UID   PID  CMD\nroot  1    init\nroot  12   sleep\n";
        assert_eq!(of_processes(listing, &[12]).unwrap(), "UID   PID  CMD\nroot  12   sleep\n");
        assert!(of_processes("no heading\n", &[1]).is_err());
    }
}
