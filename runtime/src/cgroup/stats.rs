//! What a cgroup has used, in one shape for both versions.
//!
//! The control files are opened at the first reading and stay open with the `Cgroup`: a reading is then one
//! `pread` a file and parses in place.

use super::{Error, v1, v2};

/// A reading of a cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Memory and swap.
    pub memory: MemoryStats,
    /// Tasks.
    pub pids: PidsStats,
    /// Block devices.
    pub io: IoStats,
}

/// Processor time, cumulative.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuStats {
    /// All of it, in nanoseconds.
    pub usage_ns: u64,
    /// Spent in user mode.
    pub user_ns: u64,
    /// Spent in the kernel.
    pub system_ns: u64,
    /// Enforcement periods of the quota so far.
    pub periods: u64,
    /// Those in which the quota ran out.
    pub throttled_periods: u64,
    /// Time the tasks were held back.
    pub throttled_ns: u64,
}

/// Memory now, and faults and kills so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Charged memory, page cache included.
    pub usage_bytes: u64,
    /// Usage less the file pages that nobody touched lately, as kubelet counts it for eviction.
    pub working_set_bytes: u64,
    /// The limit; None when there is none.
    pub limit_bytes: Option<u64>,
    /// Anonymous memory.
    pub rss_bytes: u64,
    /// Memory in swap.
    pub swap_bytes: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that read from a disk.
    pub major_page_faults: u64,
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: u64,
}

/// Tasks (processes and threads).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PidsStats {
    /// Now.
    pub current: u64,
    /// At most; None when there is no limit.
    pub limit: Option<u64>,
}

/// Block device traffic, cumulative, summed over devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoStats {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub read_ops: u64,
    /// Writes.
    pub write_ops: u64,
}

/// The open control files of either version.
pub(super) enum Readers {
    V1(v1::Readers),
    V2(v2::Readers),
}

impl Readers {
    pub(super) fn read(&self) -> Result<Stats, Error> {
        let mut stats = Stats::default();
        let mut buffer = vec![0; 4096];
        match self {
            Readers::V1(readers) => readers.read(&mut buffer, &mut stats)?,
            Readers::V2(readers) => readers.read(&mut buffer, &mut stats)?,
        }
        Ok(stats)
    }
}
