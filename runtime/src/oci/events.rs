//! `events`: statistics of a container, once or again and again, and what befalls it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::record::{Folder, Record, Status};
use super::{Context, Error, Result, arguments, write_out};
use crate::cgroup::{Counter, Details, DeviceIo, RdmaStats, Stall, Stalls};

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
    /// The members in runc's order, which some read by.
    #[derive(Serialize)]
    struct Event<'a> {
        r#type: &'a str,
        id: &'a str,
        #[serde(skip_serializing_if = "Value::is_null")]
        data: Value,
    }
    let text = serde_json::to_string(&Event { r#type: kind, id: &record.id, data });
    let text = text.map_err(|error| Error::io("write JSON", error.into()))?;
    write_out(format!("{text}\n").as_bytes())
}

/// In the form that runc prints, with what it has no place for under names of their own (`rdma`, `misc`).
fn statistics(record: &Record) -> Result<Value> {
    let cgroup = record.cgroup()?;
    let failed = || Error::cgroup(&record.cgroup);
    let stats = cgroup.stats().map_err(failed())?;
    let details = cgroup.details().map_err(failed())?;
    let (cpu, pids) = (stats.cpu, stats.pids);
    let pressure = details.pressure.unwrap_or_default();
    Ok(json!({
        "cpu": {
            "usage": {
                "total": cpu.usage_ns,
                "percpu": details.per_cpu_ns,
                "kernel": cpu.system_ns,
                "user": cpu.user_ns,
            },
            "throttling": {
                "periods": cpu.periods,
                "throttledPeriods": cpu.throttled_periods,
                "throttledTime": cpu.throttled_ns,
            },
            "psi": pressure.cpu.as_ref().map(stalls),
        },
        "memory": memory(&details, pressure.memory.as_ref()),
        "pids": { "current": pids.current, "limit": pids.limit.unwrap_or(0) },
        "blkio": {
            "ioServiceBytesRecursive": entries(&details.io, |device| &device.bytes),
            "ioServicedRecursive": entries(&details.io, |device| &device.operations),
            "psi": pressure.io.as_ref().map(stalls),
        },
        "hugetlb": huge_pages(&details),
        "rdma": rdma(&details),
        "misc": details.misc.iter().map(|(name, counter)| {
            (name.clone(), json!({ "usage": counter.usage, "max": counter.limit, "events": counter.failures }))
        }).collect::<serde_json::Map<_, _>>(),
        "intel_rdt": {},
        "network_interfaces": null,
    }))
}

fn memory(details: &Details, pressure: Option<&Stalls>) -> Value {
    let entry = |counter: &Counter| {
        json!({
            "limit": counter.limit.unwrap_or(u64::MAX),
            "usage": counter.usage,
            "max": counter.peak.unwrap_or(0),
            "failcnt": counter.failures,
        })
    };
    let raw = &details.memory;
    let cache = ["total_cache", "cache", "file"].iter().find_map(|name| raw.get(*name));
    json!({
        "cache": cache.copied().unwrap_or(0),
        "usage": entry(&details.memory_usage),
        "swap": entry(&details.swap),
        "kernel": entry(&details.kernel),
        "kernelTCP": entry(&details.kernel_tcp),
        "raw": raw,
        "psi": pressure.map(stalls),
    })
}

fn stalls(stalls: &Stalls) -> Value {
    let of = |stall: &Stall| json!({ "avg10": stall.avg10, "avg60": stall.avg60, "avg300": stall.avg300, "total": stall.total_us });
    json!({ "some": of(&stalls.some), "full": of(&stalls.full) })
}

fn entries(devices: &[DeviceIo], of: impl Fn(&DeviceIo) -> &BTreeMap<String, u64>) -> Value {
    let entry = |device: &DeviceIo, (operation, value): (&String, &u64)| json!({ "major": device.major, "minor": device.minor, "op": operation, "value": value });
    devices.iter().flat_map(|device| of(device).iter().map(|pair| entry(device, pair))).collect()
}

fn huge_pages(details: &Details) -> Value {
    let entry = |counter: &Counter| json!({ "usage": counter.usage, "max": counter.peak.unwrap_or(0), "failcnt": counter.failures });
    details
        .hugetlb
        .iter()
        .map(|(size, counter)| (size.clone(), entry(counter)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn rdma(details: &Details) -> Value {
    let entry = |stats: &RdmaStats| {
        json!({
            "hcaHandles": stats.handles,
            "hcaObjects": stats.objects,
            "hcaHandlesLimit": stats.handles_limit,
            "hcaObjectsLimit": stats.objects_limit,
        })
    };
    details
        .rdma
        .iter()
        .map(|(name, stats)| (name.clone(), entry(stats)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
