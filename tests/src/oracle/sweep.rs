//! The broom: takes everything of one agent from the machine, also after a test that failed half way.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::process::of_agent;
use super::{Scope, mountinfo};
use crate::{eventually_sync, hierarchies};

/// Kills, unmounts and removes; goes on past whatever fails, for the machine's sake.
pub(crate) fn sweep(scope: &Scope) {
    let scope = Scope { pid: 0, ..scope.clone() };
    eventually_sync(Duration::from_secs(5), || {
        let left = of_agent(&scope);
        for pid in left.iter().filter_map(|pid| Pid::from_raw(*pid as i32)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        left.is_empty()
    });
    for line in mountinfo().iter().rev() {
        let point = line.split(' ').nth(4).unwrap_or_default().replace("\\040", " ");
        if scope.covers(Path::new(&point)) && Path::new(&point) != scope.root {
            let _ = unmount(Path::new(&point), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
    for hierarchy in hierarchies() {
        remove_cgroup(&hierarchy.join(scope.cgroup.trim_start_matches('/')));
    }
    drop(Command::new("ip").args(["link", "delete", &scope.bridge]).output());
    for line in super::printed("nft", &["list", "tables"]).lines() {
        if line.contains(&scope.bridge) {
            let words = line.split_whitespace().skip(1);
            drop(Command::new("nft").args(["delete", "table"]).args(words).output());
        }
    }
}

fn remove_cgroup(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    eventually_sync(Duration::from_secs(1), || !path.exists() || fs::remove_dir(path).is_ok());
}
