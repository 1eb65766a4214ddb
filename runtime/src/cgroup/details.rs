//! All that the controllers tell beyond the usual statistics: by device, by page size, by adapter, and how long tasks
//! waited.
//!
//! Files are opened, read and closed: who asks this asks rarely. What a controller or kernel lacks is empty.

use std::collections::BTreeMap;

use super::Error;
use super::directory::{Directory, number, pairs};
use super::v1::Place;

mod pressure;

pub use pressure::{Pressure, Stall, Stalls};
pub(super) use pressure::{Reader as PressureReader, read as pressure};

/// A cgroup in detail.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Details {
    /// Processor time on each processor, in nanoseconds. Version 1 only.
    pub per_cpu_ns: Vec<u64>,
    /// `cpu.stat` as it is.
    pub cpu: BTreeMap<String, u64>,
    /// `memory.stat` as it is.
    pub memory: BTreeMap<String, u64>,
    /// Memory: usage, its highest value, the limit, how often it was hit.
    pub memory_usage: Counter,
    /// Swap on version 2; memory and swap together on version 1.
    pub swap: Counter,
    /// Kernel memory.
    pub kernel: Counter,
    /// Buffers of TCP connections. Version 1 only.
    pub kernel_tcp: Counter,
    /// `memory.events` as it is. Version 2 only.
    pub memory_events: BTreeMap<String, u64>,
    /// Traffic of block devices.
    pub io: Vec<DeviceIo>,
    /// Huge pages by their size (`2MB`), in bytes.
    pub hugetlb: BTreeMap<String, Counter>,
    /// RDMA resources by adapter.
    pub rdma: BTreeMap<String, RdmaStats>,
    /// Scalar resources by name. Version 2 only.
    pub misc: BTreeMap<String, Counter>,
    /// How long tasks waited. Version 2 only.
    pub pressure: Option<Pressure>,
}

/// A resource that is counted against a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counter {
    /// Now.
    pub usage: u64,
    /// The highest usage so far, where the kernel keeps it.
    pub peak: Option<u64>,
    /// At most; None when there is no limit.
    pub limit: Option<u64>,
    /// How often the limit was in the way.
    pub failures: u64,
}

/// What was done on one block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceIo {
    /// The device.
    pub major: u64,
    /// The device.
    pub minor: u64,
    /// Bytes by operation, named as the kernel does on version 1: `Read`, `Write`, `Discard`, …
    pub bytes: BTreeMap<String, u64>,
    /// Requests by operation.
    pub operations: BTreeMap<String, u64>,
}

/// What an adapter has given out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RdmaStats {
    /// Handles in use.
    pub handles: u64,
    /// Objects in use.
    pub objects: u64,
    /// Handles at most.
    pub handles_limit: Option<u64>,
    /// Objects at most.
    pub objects_limit: Option<u64>,
}

pub(super) fn v1(place: &Place<'_>) -> Result<Details, Error> {
    let mut details = Details::default();
    if let Some(directory) = place.find("cpuacct")? {
        let text = text(&directory, "cpuacct.usage_percpu")?;
        details.per_cpu_ns = text.split_whitespace().filter_map(|word| number(word.as_bytes())).collect();
    }
    if let Some(directory) = place.find("cpu")? {
        details.cpu = map(&directory, "cpu.stat")?;
    }
    if let Some(directory) = place.find("memory")? {
        details.memory = map(&directory, "memory.stat")?;
        for (counter, prefix) in [
            (&mut details.memory_usage, "memory"),
            (&mut details.swap, "memory.memsw"),
            (&mut details.kernel, "memory.kmem"),
            (&mut details.kernel_tcp, "memory.kmem.tcp"),
        ] {
            *counter = counter_v1(&directory, prefix)?;
        }
    }
    if let Some(directory) = place.find("blkio")? {
        details.io = io_v1(&directory)?;
    }
    if let Some(directory) = place.find("hugetlb")? {
        for size in sizes(&directory, ".usage_in_bytes")? {
            let counter = counter_v1(&directory, &format!("hugetlb.{size}"))?;
            details.hugetlb.insert(size, counter);
        }
    }
    if let Some(directory) = place.find("rdma")? {
        details.rdma = rdma(&directory)?;
    }
    Ok(details)
}

pub(super) fn v2(directory: &Directory) -> Result<Details, Error> {
    let mut details = Details {
        cpu: map(directory, "cpu.stat")?,
        memory: map(directory, "memory.stat")?,
        memory_events: map(directory, "memory.events")?,
        io: io_v2(&text(directory, "io.stat")?),
        rdma: rdma(directory)?,
        pressure: Some(pressure(directory)?),
        ..Details::default()
    };
    details.memory_usage = counter_v2(directory, "memory.current", "memory.max", "memory.peak")?;
    details.memory_usage.failures = details.memory_events.get("max").copied().unwrap_or(0);
    details.swap = counter_v2(directory, "memory.swap.current", "memory.swap.max", "memory.swap.peak")?;
    details.swap.failures = map(directory, "memory.swap.events")?.get("fail").copied().unwrap_or(0);
    details.kernel.usage = details.memory.get("kernel").copied().unwrap_or(0);
    for size in sizes(directory, ".current")? {
        let name = |file: &str| format!("hugetlb.{size}.{file}");
        let mut counter = counter_v2(directory, &name("current"), &name("max"), &name("peak"))?;
        counter.failures = map(directory, &name("events"))?.get("max").copied().unwrap_or(0);
        details.hugetlb.insert(size, counter);
    }
    let limits = map(directory, "misc.max")?;
    for (name, usage) in map(directory, "misc.current")? {
        let limit = limits.get(&name).copied();
        details.misc.insert(name, Counter { usage, limit, ..Counter::default() });
    }
    Ok(details)
}

/// The whole file; nothing when it is missing.
fn text(directory: &Directory, name: &str) -> Result<String, Error> {
    match directory.open_optional(name)? {
        Some(file) => Ok(String::from_utf8_lossy(file.read(&mut Vec::new())?).into_owned()),
        None => Ok(String::new()),
    }
}

fn map(directory: &Directory, name: &str) -> Result<BTreeMap<String, u64>, Error> {
    let text = text(directory, name)?;
    Ok(pairs(text.as_bytes())
        .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value))
        .collect())
}

/// One number; None when the file is missing or says `max`.
fn value(directory: &Directory, name: &str) -> Result<Option<u64>, Error> {
    match directory.open_optional(name)? {
        Some(file) => match file.number(&mut Vec::new()) {
            // Kernels built without it have the file and don't support reading it.
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            result => result,
        },
        None => Ok(None),
    }
}

fn counter_v1(directory: &Directory, prefix: &str) -> Result<Counter, Error> {
    let of = |file: &str| value(directory, &format!("{prefix}.{file}"));
    Ok(Counter {
        usage: of("usage_in_bytes")?.unwrap_or(0),
        peak: of("max_usage_in_bytes")?,
        limit: of("limit_in_bytes")?.filter(|limit| *limit < super::v1::memory::UNLIMITED),
        failures: of("failcnt")?.unwrap_or(0),
    })
}

fn counter_v2(directory: &Directory, current: &str, max: &str, peak: &str) -> Result<Counter, Error> {
    Ok(Counter {
        usage: value(directory, current)?.unwrap_or(0),
        peak: value(directory, peak)?,
        limit: value(directory, max)?,
        failures: 0,
    })
}

/// The page sizes that have a file `hugetlb.SIZE` and `suffix`.
fn sizes(directory: &Directory, suffix: &str) -> Result<Vec<String>, Error> {
    let size = |name: &str| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?;
        (!size.contains('.')).then(|| size.to_owned())
    };
    Ok(directory.names()?.iter().filter_map(|name| size(name)).collect())
}

fn io_v1(directory: &Directory) -> Result<Vec<DeviceIo>, Error> {
    let mut devices = BTreeMap::new();
    for (kind, recursive, own) in [
        (false, "blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"),
        (true, "blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced"),
    ] {
        let name = if directory.has(recursive) { recursive } else { own };
        for line in text(directory, name)?.lines() {
            let mut words = line.split(' ');
            let (Some(device), Some(operation), Some(count)) = (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let (Some(device), Some(count)) = (device_number(device), number(count.as_bytes())) else {
                continue;
            };
            let entry = devices.entry(device).or_insert_with(|| empty(device));
            let of = if kind { &mut entry.operations } else { &mut entry.bytes };
            of.insert(operation.to_owned(), count);
        }
    }
    Ok(devices.into_values().collect())
}

fn empty((major, minor): (u64, u64)) -> DeviceIo {
    DeviceIo { major, minor, bytes: BTreeMap::new(), operations: BTreeMap::new() }
}

fn device_number(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((number(major.as_bytes())?, number(minor.as_bytes())?))
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`
fn io_v2(text: &str) -> Vec<DeviceIo> {
    let device = |line: &str| {
        let mut words = line.split(' ');
        let mut device = empty(device_number(words.next()?)?);
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let Some(value) = number(value.as_bytes()) else { continue };
            let (of, operation) = match name {
                "rbytes" => (&mut device.bytes, "Read"),
                "wbytes" => (&mut device.bytes, "Write"),
                "dbytes" => (&mut device.bytes, "Discard"),
                "rios" => (&mut device.operations, "Read"),
                "wios" => (&mut device.operations, "Write"),
                "dios" => (&mut device.operations, "Discard"),
                _ => continue,
            };
            of.insert(operation.to_owned(), value);
        }
        Some(device)
    };
    text.lines().filter_map(device).collect()
}

/// `mlx5_0 hca_handle=2 hca_object=2000`, in both versions.
fn rdma(directory: &Directory) -> Result<BTreeMap<String, RdmaStats>, Error> {
    let mut adapters: BTreeMap<String, RdmaStats> = BTreeMap::new();
    for (limits, name) in [(false, "rdma.current"), (true, "rdma.max")] {
        for line in text(directory, name)?.lines() {
            let Some((adapter, rest)) = line.split_once(' ') else { continue };
            let stats = adapters.entry(adapter.to_owned()).or_default();
            for (word, value) in rest.split(' ').filter_map(|word| word.split_once('=')) {
                let value = number(value.as_bytes());
                match (word, limits) {
                    ("hca_handle", false) => stats.handles = value.unwrap_or(0),
                    ("hca_object", false) => stats.objects = value.unwrap_or(0),
                    ("hca_handle", true) => stats.handles_limit = value,
                    ("hca_object", true) => stats.objects_limit = value,
                    _ => {}
                }
            }
        }
    }
    Ok(adapters)
}

#[cfg(test)]
mod tests;
