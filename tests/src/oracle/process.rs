//! Processes of one agent, their network namespaces, and the agent's own descriptors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::Scope;

/// A process that belongs to an agent: in its cgroups, naming its directories, or a child of such a one.
pub(super) fn of_agent(scope: &Scope) -> Vec<u32> {
    let mut parents = BTreeMap::new();
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() || pid == scope.pid {
            continue;
        }
        let read = |name: &str| {
            fs::read(entry.path().join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        let Ok(stat) = read("stat") else { continue };
        parents.insert(pid, parent(&stat));
        let in_cgroup = read("cgroup").is_ok_and(|text| text.contains(&scope.cgroup));
        let named = read("cmdline").is_ok_and(|text| scope.named_in(&text));
        let inside = ["cwd", "root"].iter().any(|link| {
            fs::read_link(entry.path().join(link)).is_ok_and(|path| scope.covers(Path::new(&path)))
        });
        // The command line of a test speaks to the agent and is none of its processes.
        let client = read("comm").is_ok_and(|name| name.trim() == "sampan" || name.trim() == "strace");
        if !client && (in_cgroup || named || inside) {
            found.insert(pid);
        }
    }
    loop {
        let children: Vec<u32> = parents
            .iter()
            .filter(|(pid, parent)| {
                !found.contains(pid) && (found.contains(parent) || (**parent == scope.pid && scope.pid != 0))
            })
            .map(|(pid, _)| *pid)
            .collect();
        if children.is_empty() {
            return found.into_iter().collect();
        }
        found.extend(children);
    }
}

pub(super) fn processes(scope: &Scope, things: &mut BTreeSet<String>) {
    let host = fs::read_link("/proc/self/ns/net").unwrap_or_default();
    for pid in of_agent(scope) {
        let process = Path::new("/proc").join(pid.to_string());
        let comm = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        things.insert(format!("process {pid}: {} ({})", line.trim(), comm.trim()));
        if let Ok(namespace) = fs::read_link(process.join("ns/net"))
            && namespace != host
        {
            things.insert(format!("network namespace: {}", namespace.display()));
        }
    }
}

fn parent(stat: &str) -> u32 {
    // PID (COMM) STATE PPID …; the name may hold anything, so from its last parenthesis.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// Idle netlink sockets that an agent may keep for the next request.
const IDLE_NETLINK: usize = 8;

/// How many descriptors of each kind a process holds.
///
/// TCP connections are left out, since a registry client keeps idle ones, and so are a few netlink sockets of the
/// host's namespace.
pub(super) fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let tcp: BTreeSet<String> = ["tcp", "tcp6"].iter().flat_map(|table| inodes(pid, table)).collect();
    let netlink: BTreeSet<String> = inodes(pid, "netlink").collect();
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        let kind = match target.split_once(':') {
            Some(("socket", inode)) => match inode.trim_matches(['[', ']']) {
                inode if tcp.contains(inode) => continue,
                inode if netlink.contains(inode) => "netlink socket".to_owned(),
                _ => "socket".to_owned(),
            },
            Some((kind @ ("pipe" | "net" | "pid" | "mnt"), _)) => kind.to_owned(),
            // The source of randomness is opened once.
            _ if target == "/dev/urandom" => continue,
            _ => target,
        };
        *kinds.entry(kind).or_insert(0) += 1;
    }
    if let Some(count) = kinds.get_mut("netlink socket") {
        *count = (*count).max(IDLE_NETLINK + 2);
    }
    kinds
}

/// Inodes of the sockets in one of the tables of /proc/PID/net; each has it in its tenth field.
fn inodes(pid: u32, table: &str) -> impl Iterator<Item = String> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
    let inodes: Vec<String> =
        text.lines().filter_map(|line| line.split_whitespace().nth(9).map(str::to_owned)).collect();
    inodes.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_parent() {
        assert_eq!(parent("12 (a) b) S 7 12 12 0"), 7);
    }

    #[test]
    fn descriptors_are_counted_by_kind() {
        let before = descriptors(std::process::id());
        let pipe = std::io::pipe().unwrap();
        let after = descriptors(std::process::id());
        assert!(after["pipe"] >= before.get("pipe").copied().unwrap_or(0) + 2, "{before:?} {after:?}");
        drop(pipe);
    }
}
