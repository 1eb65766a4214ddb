//! What processes cost, as the kernel counts it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Resident bytes of a process.
pub(crate) fn resident(pid: u32) -> u64 {
    field(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// Time that a process's living threads spent on processors.
pub(crate) fn processor_time(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let spent = |text: String| text.split_whitespace().next()?.parse::<u64>().ok();
    let times = threads.filter_map(|thread| spent(fs::read_to_string(thread.path().join("schedstat")).ok()?));
    Duration::from_nanos(times.sum())
}

/// Proportional bytes of all processes that hold up a pod and are no container of it: monitors, pause processes.
///
/// They name the pod in their command line, or live in a cgroup that does.
pub(crate) fn monitors(pod: &str, container: &str) -> u64 {
    processes()
        .filter(|process| {
            let read = |name: &str| {
                fs::read(process.join(name))
                    .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                    .unwrap_or_default()
            };
            let (line, cgroup) = (read("cmdline"), read("cgroup"));
            (line.contains(pod) || cgroup.contains(pod)) && !cgroup.contains(container)
        })
        .map(|process| field(&process.join("smaps_rollup").display().to_string(), "Pss:"))
        .sum()
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .map(|entry| entry.path())
}

/// A line such as `Pss:   17 kB`, in bytes.
fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}
