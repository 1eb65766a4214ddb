//! The cgroup hierarchies of this machine, as the kernel tells them.

use std::path::PathBuf;

/// Mount points of every cgroup hierarchy, v1 controllers and v2 alike, each once.
pub fn hierarchies() -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let kind = after.split(' ').next()?;
            let point = before.split(' ').nth(4)?;
            (kind == "cgroup" || kind == "cgroup2").then(|| point.into())
        })
        .collect();
    found.sort();
    found.dedup();
    found
}
