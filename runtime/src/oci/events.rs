//! `events`: statistics of a container, once or again and again, and what befalls it.

use std::time::Duration;

use serde_json::{Value, json};

use super::record::{Folder, Record, Status};
use super::{Context, Error, Result, arguments, write_out};

/// How often it is looked whether something has happened.
const LOOK: Duration = Duration::from_millis(200);

pub(super) fn events(context: &Context, arguments: &arguments::Events) -> Result<()> {
    let record = Folder::open(context, &arguments.id)?.read()?;
    let status = record.status();
    if status == Status::Stopped {
        return Err(Error::NotRunning { id: record.id, status: status.name() });
    }
    if arguments.stats {
        return tell(&record, "stats", statistics(&record)?);
    }
    let cgroup = record.cgroup()?;
    let mut kills = cgroup.oom_kills().unwrap_or(0);
    let mut next = std::time::Instant::now() + arguments.interval;
    while record.status() != Status::Stopped {
        std::thread::sleep(LOOK.min(arguments.interval));
        // The cgroup may go at any moment.
        let now = cgroup.oom_kills().unwrap_or(kills);
        if now > kills {
            kills = now;
            tell(&record, "oom", Value::Null)?;
        }
        if std::time::Instant::now() >= next && record.status() != Status::Stopped {
            next += arguments.interval;
            match statistics(&record) {
                Ok(statistics) => tell(&record, "stats", statistics)?,
                Err(error) => context.log.warn(&super::error::text(&error)),
            }
        }
    }
    Ok(())
}

fn tell(record: &Record, kind: &str, data: Value) -> Result<()> {
    let mut event = json!({ "type": kind, "id": record.id });
    if !data.is_null() {
        event["data"] = data;
    }
    write_out(format!("{event}\n").as_bytes())
}

fn statistics(record: &Record) -> Result<Value> {
    let stats = record.cgroup()?.stats().map_err(Error::cgroup(&record.cgroup))?;
    let (cpu, memory, pids, io) = (stats.cpu, stats.memory, stats.pids, stats.io);
    let entries =
        |read: u64, write: u64| json!([{ "op": "Read", "value": read }, { "op": "Write", "value": write }]);
    Ok(json!({
        "cpu": {
            "usage": { "total": cpu.usage_ns, "kernel": cpu.system_ns, "user": cpu.user_ns },
            "throttling": {
                "periods": cpu.periods,
                "throttledPeriods": cpu.throttled_periods,
                "throttledTime": cpu.throttled_ns,
            },
        },
        "memory": {
            "usage": { "usage": memory.usage_bytes, "limit": memory.limit_bytes.unwrap_or(u64::MAX), "failcnt": 0 },
            "swap": { "usage": memory.swap_bytes, "limit": 0, "failcnt": 0 },
            "raw": {
                "rss": memory.rss_bytes,
                "pgfault": memory.page_faults,
                "pgmajfault": memory.major_page_faults,
                "oom_kill": memory.oom_kills,
                "working_set": memory.working_set_bytes,
            },
        },
        "pids": { "current": pids.current, "limit": pids.limit.unwrap_or(0) },
        "blkio": {
            "ioServiceBytesRecursive": entries(io.read_bytes, io.write_bytes),
            "ioServicedRecursive": entries(io.read_ops, io.write_ops),
        },
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": null,
    }))
}
