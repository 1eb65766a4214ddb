//! `pause`, `resume` and `update`: what may change while a container runs.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use super::record::{Folder, Status};
use super::{Context, Error, Result, arguments, configuration};

/// A cgroup freezes in milliseconds unless a process hangs in the kernel.
const DEADLINE: Duration = Duration::from_secs(10);

pub(super) fn freeze(context: &Context, id: &str, frozen: bool) -> Result<()> {
    let record = Folder::open(context, id)?.read()?;
    match (record.status(), frozen) {
        (Status::Running | Status::Created, true) | (Status::Paused, false) => {}
        (Status::Paused, true) => return Err(Error::refused("container not running: it is paused already")),
        (_, false) => return Err(Error::refused("container not paused")),
        (status, true) => return Err(Error::NotRunning { id: record.id, status: status.name() }),
    }
    let cgroup = record.cgroup()?;
    cgroup.freeze(frozen).map_err(Error::cgroup(&record.cgroup))?;
    let paths = cgroup.paths();
    let since = Instant::now();
    loop {
        let settled = match (paths.get("freezer"), paths.get("unified")) {
            (Some(path), _) => {
                let wanted = if frozen { "FROZEN" } else { "THAWED" };
                std::fs::read_to_string(path.join("freezer.state")).is_ok_and(|state| state.trim() == wanted)
            }
            (None, Some(path)) => {
                let wanted = format!("frozen {}", u8::from(frozen));
                std::fs::read_to_string(path.join("cgroup.events"))
                    .is_ok_and(|events| events.lines().any(|line| line == wanted))
            }
            (None, None) => true,
        };
        if settled {
            return Ok(());
        }
        if since.elapsed() > DEADLINE {
            // Half frozen is worse than running.
            let _ = cgroup.freeze(false);
            return Err(Error::refused(format!("container {id:?} doesn't freeze")));
        }
        // The kernel leaves a process out that moved meanwhile, until it is told again.
        std::thread::sleep(Duration::from_millis(1));
        cgroup.freeze(frozen).map_err(Error::cgroup(&record.cgroup))?;
    }
}

pub(super) fn update(context: &Context, arguments: &arguments::Update) -> Result<()> {
    let folder = Folder::open(context, &arguments.id)?;
    folder.lock()?;
    let record = folder.read()?;
    if record.status() == Status::Stopped {
        return Err(Error::NotRunning { id: record.id, status: Status::Stopped.name() });
    }
    let of_rdt = [&arguments.l3_cache_schema, &arguments.mem_bw_schema];
    if of_rdt.into_iter().flatten().any(|schema| !schema.is_empty()) {
        return Err(Error::refused("--l3-cache-schema and --mem-bw-schema: intelRdt is not supported"));
    }
    let mut resources = match &arguments.resources {
        Some(path) => read(path)?,
        None => of_options(arguments),
    };
    // Device rules stay as they are, as with runc: an update is of limits.
    resources["devices"] = Value::Null;
    if resources["memory"]["limit"] == json!(-1) && resources["memory"]["swap"].is_null() {
        resources["memory"]["swap"] = json!(-1);
    }
    let resources: LinuxResources = serde_json::from_value(without_zeros(resources))
        .map_err(|source| Error::Json { path: "the resources".to_owned(), source })?;
    let cgroup = record.cgroup()?;
    let changed = cgroup.require_huge_pages(&resources).and_then(|()| cgroup.update(&resources));
    changed.map_err(Error::cgroup(&record.cgroup))
}

fn read(path: &Path) -> Result<Value> {
    let mut text = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut text).map(drop)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut text)).map(drop)
    };
    read.map_err(|source| Error::io(format!("read {}", path.display()), source))?;
    let value: Value = serde_json::from_slice(&text)
        .map_err(|source| Error::Json { path: path.display().to_string(), source })?;
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(Error::refused(format!("{} is no object", path.display()))),
    }
}

/// Callers write 0, or an empty text, for what they don't want to change. Of processes 0 is a limit.
fn without_zeros(mut resources: Value) -> Value {
    for (section, fields) in [
        ("memory", &["limit", "reservation", "swap", "kernel", "kernelTCP"][..]),
        ("cpu", &["shares", "quota", "period", "realtimeRuntime", "realtimePeriod", "cpus", "mems"]),
        ("blockIO", &["weight", "leafWeight"]),
    ] {
        let Some(section) = resources.get_mut(section).and_then(Value::as_object_mut) else { continue };
        section.retain(|name, value| {
            !fields.contains(&name.as_str()) || !(value.as_i64() == Some(0) || value.as_str() == Some(""))
        });
    }
    configuration::drop_unset_pids(&mut resources);
    resources
}

fn of_options(arguments: &arguments::Update) -> Value {
    let mut resources = json!({
        "memory": {
            "limit": arguments.memory,
            "reservation": arguments.memory_reservation,
            "swap": arguments.memory_swap,
        },
        "cpu": {
            "shares": arguments.cpu_share,
            "quota": arguments.cpu_quota,
            "period": arguments.cpu_period,
            "burst": arguments.cpu_burst,
            "realtimeRuntime": arguments.cpu_rt_runtime,
            "realtimePeriod": arguments.cpu_rt_period,
            "idle": arguments.cpu_idle,
            "cpus": arguments.cpuset_cpus,
            "mems": arguments.cpuset_mems,
        },
        "blockIO": { "weight": arguments.blkio_weight },
    });
    if let Some(limit) = arguments.pids_limit {
        resources["pids"] = json!({ "limit": limit });
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_change_nothing() {
        let resources = json!({
            "memory": { "limit": 0, "swap": 5 }, "cpu": { "cpus": "", "idle": 0 }, "pids": { "limit": 0 }
        });
        let kept = without_zeros(resources);
        assert_eq!(kept["memory"], json!({ "swap": 5 }));
        assert_eq!(kept["cpu"], json!({ "idle": 0 }));
        assert_eq!(kept["pids"], json!({ "limit": 0 }), "this is a limit");
        assert!(without_zeros(json!({ "pids": {} }))["pids"].is_null());
    }
}
