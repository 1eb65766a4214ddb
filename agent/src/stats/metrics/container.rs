//! The metrics of a container, from its cgroup, its processes and its writable layer.

use sampan_runtime::cgroup::{DeviceIo, Pressure, Stalls};

use super::{Kind, Metric, Sink, Source, Value};
use crate::stats::ContainerFigures;

type Read = fn(&ContainerFigures, &mut Sink<'_>);

const fn counter(name: &'static str, help: &'static str, read: Read) -> Metric {
    Metric { name, help, kind: Kind::Counter, labels: &[], source: Source::Container(read) }
}

const fn gauge(name: &'static str, help: &'static str, read: Read) -> Metric {
    Metric { name, help, kind: Kind::Gauge, labels: &[], source: Source::Container(read) }
}

const fn with(labels: &'static [&'static str], metric: Metric) -> Metric {
    Metric { labels, ..metric }
}

fn number(sink: &mut Sink<'_>, value: u64) {
    sink(&[], Value::Number(value));
}

fn time(sink: &mut Sink<'_>, nanoseconds: u64) {
    sink(&[], Value::Nanoseconds(nanoseconds));
}

/// A field of `memory.stat`, which the versions of cgroups name differently.
fn memory(figures: &ContainerFigures, v1: &str, v2: &str) -> u64 {
    let stat = &figures.details.memory;
    stat.get(v1).or_else(|| stat.get(v2)).copied().unwrap_or(0)
}

fn layer(figures: &ContainerFigures, sink: &mut Sink<'_>, value: u64) {
    sink(&[&figures.capacity.device], Value::Number(value));
}

/// Traffic of each block device; before there is any, none on the device that the layer is on.
fn devices(figures: &ContainerFigures, sink: &mut Sink<'_>, of: fn(&DeviceIo) -> Option<&u64>) {
    if figures.details.io.is_empty() {
        return layer(figures, sink, 0);
    }
    for device in &figures.details.io {
        let name = figures.devices.get(&(device.major, device.minor)).map_or("", String::as_str);
        sink(&[name], Value::Number(of(device).copied().unwrap_or(0)));
    }
}

fn pressure(
    figures: &ContainerFigures,
    sink: &mut Sink<'_>,
    of: fn(&Pressure) -> Option<Stalls>,
    total_us: fn(&Stalls) -> u64,
) {
    if let Some(stalls) = figures.sample.reading.pressure.as_ref().and_then(of) {
        time(sink, total_us(&stalls).saturating_mul(1000));
    }
}

/// What the kernel gives to a container that asks for nothing.
const DEFAULT_PERIOD: u64 = 100_000;
const DEFAULT_SHARES: u64 = 1024;

pub(super) static METRICS: &[Metric] = &[
    with(
        &["device", "major", "minor", "operation"],
        counter("container_blkio_device_usage_total", "Bytes moved to and from a block device", |c, sink| {
            for device in &c.details.io {
                let name = c.devices.get(&(device.major, device.minor)).map_or("", String::as_str);
                let (major, minor) = (device.major.to_string(), device.minor.to_string());
                for (operation, bytes) in &device.bytes {
                    sink(&[name, &major, &minor, operation], Value::Number(*bytes));
                }
            }
        }),
    ),
    counter(
        "container_cpu_cfs_periods_total",
        "Periods in which the processor quota was enforced",
        |c, sink| {
            number(sink, c.stats.cpu.periods);
        },
    ),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the processor quota ran out",
        |c, sink| number(sink, c.stats.cpu.throttled_periods),
    ),
    counter(
        "container_cpu_cfs_throttled_seconds_total",
        "Time for which the processor quota held tasks back, in seconds",
        |c, sink| time(sink, c.stats.cpu.throttled_ns),
    ),
    counter(
        "container_cpu_system_seconds_total",
        "Processor time spent in the kernel, in seconds",
        |c, sink| time(sink, c.stats.cpu.system_ns),
    ),
    with(
        &["cpu"],
        counter("container_cpu_usage_seconds_total", "Processor time spent, in seconds", |c, sink| {
            sink(&["total"], Value::Nanoseconds(c.stats.cpu.usage_ns));
        }),
    ),
    counter(
        "container_cpu_user_seconds_total",
        "Processor time spent outside of the kernel, in seconds",
        |c, sink| time(sink, c.stats.cpu.user_ns),
    ),
    gauge("container_file_descriptors", "Descriptors that the container's processes hold open", |c, sink| {
        number(sink, c.processes.descriptors);
    }),
    with(
        &["device"],
        gauge("container_fs_inodes_free", "Inodes that the file system has left", |c, sink| {
            layer(c, sink, c.capacity.inodes_free);
        }),
    ),
    with(
        &["device"],
        gauge("container_fs_inodes_total", "Inodes that the file system can have", |c, sink| {
            layer(c, sink, c.capacity.inodes);
        }),
    ),
    with(
        &["device"],
        gauge("container_fs_limit_bytes", "Bytes that the file system can hold", |c, sink| {
            layer(c, sink, c.capacity.bytes);
        }),
    ),
    with(
        &["device"],
        counter("container_fs_reads_bytes_total", "Bytes read from block devices", |c, sink| {
            devices(c, sink, |device| device.bytes.get("Read"));
        }),
    ),
    with(
        &["device"],
        counter("container_fs_reads_total", "Reads from block devices", |c, sink| {
            devices(c, sink, |device| device.operations.get("Read"));
        }),
    ),
    with(
        &["device"],
        gauge("container_fs_usage_bytes", "Bytes that the writable layer takes", |c, sink| {
            if let Some(size) = c.sample.layer {
                layer(c, sink, size.usage.bytes);
            }
        }),
    ),
    with(
        &["device"],
        counter("container_fs_writes_bytes_total", "Bytes written to block devices", |c, sink| {
            devices(c, sink, |device| device.bytes.get("Write"));
        }),
    ),
    with(
        &["device"],
        counter("container_fs_writes_total", "Writes to block devices", |c, sink| {
            devices(c, sink, |device| device.operations.get("Write"));
        }),
    ),
    with(
        &["pagesize"],
        gauge("container_hugetlb_max_usage_bytes", "Most bytes of huge pages in use so far", |c, sink| {
            for (size, pages) in &c.details.hugetlb {
                if let Some(peak) = pages.peak {
                    sink(&[size], Value::Number(peak));
                }
            }
        }),
    ),
    with(
        &["pagesize"],
        gauge("container_hugetlb_usage_bytes", "Bytes of huge pages in use", |c, sink| {
            for (size, pages) in &c.details.hugetlb {
                sink(&[size], Value::Number(pages.usage));
            }
        }),
    ),
    gauge("container_last_seen", "When the container was last seen, in seconds since 1970", |c, sink| {
        time(sink, c.sample.at.unsigned_abs());
    }),
    gauge("container_memory_cache", "Bytes of page cache", |c, sink| {
        number(sink, memory(c, "total_cache", "file"));
    }),
    counter("container_memory_failcnt", "How often the memory limit was in the way", |c, sink| {
        number(sink, c.details.memory_usage.failures);
    }),
    with(
        &["failure_type", "scope"],
        counter("container_memory_failures_total", "Page faults", |c, sink| {
            let faults = &c.stats.memory;
            let own = |name: &str| c.details.memory.get(name).copied().unwrap_or(0);
            sink(&["pgfault", "container"], Value::Number(own("pgfault")));
            sink(&["pgmajfault", "container"], Value::Number(own("pgmajfault")));
            sink(&["pgfault", "hierarchy"], Value::Number(faults.page_faults));
            sink(&["pgmajfault", "hierarchy"], Value::Number(faults.major_page_faults));
        }),
    ),
    gauge("container_memory_kernel_usage", "Bytes of kernel memory", |c, sink| {
        number(sink, c.details.kernel.usage);
    }),
    gauge("container_memory_mapped_file", "Bytes of files that are mapped", |c, sink| {
        number(sink, memory(c, "total_mapped_file", "file_mapped"));
    }),
    gauge("container_memory_max_usage_bytes", "Most bytes of memory in use so far", |c, sink| {
        // Version 2 tells it since Linux 5.19.
        number(sink, c.details.memory_usage.peak.unwrap_or(c.stats.memory.usage_bytes));
    }),
    gauge("container_memory_rss", "Bytes of anonymous memory", |c, sink| {
        number(sink, c.stats.memory.rss_bytes);
    }),
    gauge("container_memory_swap", "Bytes in swap", |c, sink| number(sink, c.stats.memory.swap_bytes)),
    gauge("container_memory_usage_bytes", "Bytes of memory in use, page cache included", |c, sink| {
        number(sink, c.stats.memory.usage_bytes);
    }),
    gauge(
        "container_memory_working_set_bytes",
        "Bytes of memory in use but for file pages that nobody touched of late",
        |c, sink| number(sink, c.stats.memory.working_set_bytes),
    ),
    counter("container_oom_events_total", "Processes that were killed for want of memory", |c, sink| {
        number(sink, c.stats.memory.oom_kills);
    }),
    counter(
        "container_pressure_cpu_stalled_seconds_total",
        "Time for which all tasks waited for a processor, in seconds",
        |c, sink| pressure(c, sink, |pressure| pressure.cpu, |stalls| stalls.full.total_us),
    ),
    counter(
        "container_pressure_cpu_waiting_seconds_total",
        "Time for which some task waited for a processor, in seconds",
        |c, sink| pressure(c, sink, |pressure| pressure.cpu, |stalls| stalls.some.total_us),
    ),
    counter(
        "container_pressure_io_stalled_seconds_total",
        "Time for which all tasks waited for input or output, in seconds",
        |c, sink| pressure(c, sink, |pressure| pressure.io, |stalls| stalls.full.total_us),
    ),
    counter(
        "container_pressure_io_waiting_seconds_total",
        "Time for which some task waited for input or output, in seconds",
        |c, sink| pressure(c, sink, |pressure| pressure.io, |stalls| stalls.some.total_us),
    ),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        "Time for which all tasks waited for memory, in seconds",
        |c, sink| pressure(c, sink, |pressure| pressure.memory, |stalls| stalls.full.total_us),
    ),
    counter(
        "container_pressure_memory_waiting_seconds_total",
        "Time for which some task waited for memory, in seconds",
        |c, sink| pressure(c, sink, |pressure| pressure.memory, |stalls| stalls.some.total_us),
    ),
    gauge("container_processes", "Processes", |c, sink| number(sink, c.processes.count)),
    gauge("container_sockets", "Sockets that the container's processes hold open", |c, sink| {
        number(sink, c.processes.sockets);
    }),
    gauge("container_spec_cpu_period", "Length of a quota's period, in microseconds", |c, sink| {
        let resources = &c.sample.found.container.config.resources;
        number(sink, resources.cpu_period.filter(|period| *period > 0).unwrap_or(DEFAULT_PERIOD));
    }),
    gauge("container_spec_cpu_quota", "Processor time in a period, in microseconds", |c, sink| {
        let quota = c.sample.found.container.config.resources.cpu_quota;
        if let Some(quota) = quota.and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0) {
            number(sink, quota);
        }
    }),
    gauge("container_spec_cpu_shares", "Weight among others that want a processor", |c, sink| {
        let resources = &c.sample.found.container.config.resources;
        number(sink, resources.cpu_shares.filter(|shares| *shares > 0).unwrap_or(DEFAULT_SHARES));
    }),
    gauge("container_spec_memory_limit_bytes", "Most bytes of memory; 0: no limit", |c, sink| {
        number(sink, c.details.memory_usage.limit.unwrap_or(0));
    }),
    gauge(
        "container_spec_memory_reservation_limit_bytes",
        "Bytes of memory that are kept for the container; 0: none",
        |c, sink| {
            let unified = &c.sample.found.container.config.resources.unified;
            number(sink, unified.get("memory.low").and_then(|low| low.parse().ok()).unwrap_or(0));
        },
    ),
    gauge("container_spec_memory_swap_limit_bytes", "Most bytes in swap; 0: no limit", |c, sink| {
        number(sink, c.details.swap.limit.unwrap_or(0));
    }),
    gauge("container_start_time_seconds", "When the container started, in seconds since 1970", |c, sink| {
        time(sink, c.sample.found.container.started_at.unsigned_abs());
    }),
    gauge("container_threads", "Threads of all processes", |c, sink| number(sink, c.stats.pids.current)),
    gauge("container_threads_max", "Most threads of all processes; 0: no limit", |c, sink| {
        number(sink, c.stats.pids.limit.unwrap_or(0));
    }),
    with(
        &["ulimit"],
        gauge("container_ulimits_soft", "Soft limits of the container's first process", |c, sink| {
            if let Some(limit) = c.processes.open_files_limit {
                sink(&["max_open_files"], Value::Number(limit));
            }
        }),
    ),
];
