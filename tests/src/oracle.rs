//! The leak oracle: everything of one agent that a machine can hold, seen through the kernel and not through the agent.
//!
//! What belongs to an agent is known by its temporary directory, its bridge, its nftables table and its cgroup
//! root, so that other agents on the machine do not matter. A snapshot is taken before and after; each thing that
//! is only in the second is a leak. Skeletons that an agent makes once (bridge, table with its chains, cgroup root)
//! are none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::hierarchies;

mod network;
mod process;
mod sweep;

pub use sweep::sweep;

/// By what the things of one agent are known.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The test's temporary directory.
    pub base: PathBuf,
    /// What survives a reboot.
    pub root: PathBuf,
    /// What does not.
    pub state: PathBuf,
    /// The bridge; the nftables table has its name.
    pub bridge: String,
    /// Below every hierarchy.
    pub cgroup: String,
    /// Of the agent.
    pub pid: u32,
}

/// What there is of an agent at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    things: BTreeSet<String>,
    descriptors: BTreeMap<String, usize>,
}

impl Snapshot {
    /// Looks at everything.
    pub fn take(scope: &Scope) -> Snapshot {
        let mut things = BTreeSet::new();
        mounts(scope, &mut things);
        cgroups(scope, &mut things);
        files(scope, &mut things);
        network::links(scope, &mut things);
        network::nftables(scope, &mut things);
        process::processes(scope, &mut things);
        Snapshot { things, descriptors: process::descriptors(scope.pid) }
    }

    /// What is in `after` and not here, a sentence each.
    pub fn differences(&self, after: &Snapshot) -> Vec<String> {
        let new = after.things.difference(&self.things).cloned();
        let more = after.descriptors.iter().filter_map(|(kind, count)| {
            let before = self.descriptors.get(kind).copied().unwrap_or(0);
            (*count > before).then(|| format!("descriptors of the agent: {count} of {kind}, {before} before"))
        });
        new.chain(more).collect()
    }
}

/// Mounts below or from the agent's directories, seen from the host's namespace.
fn mounts(scope: &Scope, things: &mut BTreeSet<String>) {
    for line in mountinfo() {
        let fields: Vec<&str> = line.split(' ').collect();
        let point = Path::new(fields.get(4).copied().unwrap_or_default());
        // The root itself may be a mount that the test made.
        if (scope.covers(point) && point != scope.root)
            || line.contains(&format!("dir={}/", scope.root.display()))
        {
            things.insert(format!("mount: {}", fields[3..].join(" ")));
        }
    }
}

fn mountinfo() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    text.lines().map(str::to_owned).collect()
}

fn cgroups(scope: &Scope, things: &mut BTreeSet<String>) {
    for hierarchy in hierarchies() {
        let top = hierarchy.join(scope.cgroup.trim_start_matches('/'));
        walk(&top, &mut |path, metadata| {
            // The parent of all monitors is made once, as the root is.
            if metadata.is_dir() && path != top.join("monitors") {
                things.insert(format!("cgroup: {}", path.display()));
            }
            metadata.is_dir()
        });
    }
}

/// Records of pods, active snapshots, half-made content, and whatever calls itself temporary.
fn files(scope: &Scope, things: &mut BTreeSet<String>) {
    let listed = [
        scope.root.join("pods"),
        scope.state.join("pods"),
        scope.root.join("snapshots/active"),
        scope.root.join("content/ingest"),
    ];
    for directory in &listed {
        // Of what is listed, the entries matter and not the tree below them.
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            // A download that broke off is kept for a day under its digest, to be gone on with.
            let name = entry.file_name();
            if directory.ends_with("ingest") && name.len() == 64 {
                continue;
            }
            things.insert(format!("file: {}", entry.path().display()));
        }
    }
    let committed = scope.root.join("snapshots/committed");
    let mut temporary = |path: &Path, metadata: &fs::Metadata| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let suspicious =
            ["tmp", "temp", "partial", "staging", "ingest"].iter().any(|word| name.contains(word));
        if suspicious && !listed.iter().any(|directory| directory == path) {
            things.insert(format!("temporary file: {}", path.display()));
        }
        // What an image holds is its own affair.
        metadata.is_dir() && path.parent() != Some(&committed)
    };
    walk(&scope.root, &mut temporary);
    walk(&scope.state, &mut temporary);
}

/// Calls `visit` for everything below `top`, following no symlink and leaving no filesystem; it says whether to go deeper.
fn walk(top: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata) -> bool) {
    let Ok(device) = fs::symlink_metadata(top).map(|metadata| metadata.dev()) else { return };
    let mut waiting = vec![top.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if visit(&path, &metadata) && metadata.is_dir() && metadata.dev() == device {
                waiting.push(path);
            }
        }
    }
}

impl Scope {
    /// Whether a path lies in one of the agent's directories.
    fn covers(&self, path: &Path) -> bool {
        [&self.base, &self.root, &self.state].into_iter().any(|directory| path.starts_with(directory))
    }

    /// Whether a text, such as a command line, names one of the agent's directories.
    fn named_in(&self, text: &str) -> bool {
        [&self.base, &self.root].into_iter().any(|directory| text.contains(&*directory.to_string_lossy()))
    }
}

/// What a program printed; empty when it failed.
fn printed(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
