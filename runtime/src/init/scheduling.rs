//! How the kernel is to treat a process: personality, scheduler, processors, memory nodes, I/O priority.

use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, LinuxIOPriority, LinuxMemoryPolicy, LinuxPersonality,
    LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType,
    MemoryPolicyModeType, Scheduler,
};

use super::{Error, Result};
use crate::sys::scheduling::{self, Attributes};

fn failed(what: &'static str) -> impl FnOnce(crate::sys::Error) -> Error {
    move |source| Error::Scheduling { what, source }
}

fn refused(what: &str) -> Error {
    Error::Unsupported { what: what.to_owned() }
}

/// More than any kernel is built for.
const MAX_PROCESSORS: usize = 8192;

pub(super) fn set_personality(personality: &LinuxPersonality) -> Result<()> {
    if let Some(flag) = personality.flags().iter().flatten().next() {
        return Err(refused(&format!("the personality flag {flag:?}")));
    }
    /// From linux/personality.h.
    const PER_LINUX: libc::c_ulong = 0;
    const PER_LINUX32: libc::c_ulong = 8;
    let domain = match personality.domain() {
        LinuxPersonalityDomain::PerLinux => PER_LINUX,
        LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
    };
    scheduling::set_personality(domain).map_err(failed("the personality"))
}

pub(super) fn set_memory_policy(policy: &LinuxMemoryPolicy) -> Result<()> {
    let mode = match policy.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().fold(0u32, |flags, flag| {
        flags
            | match flag {
                MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
                MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
                MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
            }
    });
    let nodes = set_of("memory policy nodes", policy.nodes().as_deref().unwrap_or_default())?;
    if mode == 0 && !nodes.is_empty() {
        return Err(Error::NeedlessNodes(nodes.iter().map(|word| word.count_ones()).sum()));
    }
    scheduling::set_memory_policy(mode | flags, &nodes).map_err(failed("the memory policy"))
}

pub(super) fn set_scheduler(scheduler: &Scheduler) -> Result<()> {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flags = scheduler.flags().iter().flatten().fold(0u64, |flags, flag| {
        flags
            | match flag {
                LinuxSchedulerFlag::SchedResetOnFork => 0x01,
                LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
                LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
                LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
                LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
                LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
                LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
            }
    });
    let attributes = Attributes {
        size: 0,
        policy,
        flags,
        nice: scheduler.nice().unwrap_or(0),
        priority: u32::try_from(scheduler.priority().unwrap_or(0))
            .map_err(|_| refused("a negative scheduler priority"))?,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    };
    scheduling::set_scheduler(attributes).map_err(failed("the scheduler"))
}

pub(super) fn set_io_priority(priority: &LinuxIOPriority) -> Result<()> {
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u32::try_from(priority.priority()).ok().filter(|level| *level <= 7);
    let level = level.ok_or_else(|| refused("an I/O priority that isn't between 0 and 7"))?;
    scheduling::set_io_priority(class, level).map_err(failed("the I/O priority"))
}

/// Before an exec's process moves to its cgroup.
pub(crate) fn set_initial_affinity(affinity: Option<&ExecCPUAffinity>) -> Result<()> {
    set_affinity(affinity.and_then(|affinity| affinity.initial().as_deref()))
}

/// After that.
pub(crate) fn set_final_affinity(affinity: Option<&ExecCPUAffinity>) -> Result<()> {
    set_affinity(affinity.and_then(|affinity| affinity.cpu_affinity_final().as_deref()))
}

/// Every processor that its cgroup has, whatever its parent was bound to. The kernel leaves out those that there are not.
pub(crate) fn reset_affinity() {
    // A host that binds processes by other means than cgroups goes on doing so.
    let _ = scheduling::set_affinity(&[u64::MAX; MAX_PROCESSORS / 64]);
}

fn set_affinity(list: Option<&str>) -> Result<()> {
    match list.filter(|list| !list.is_empty()) {
        Some(list) => {
            scheduling::set_affinity(&set_of("CPU affinity", list)?).map_err(failed("the CPU affinity"))
        }
        None => Ok(()),
    }
}

/// The bits of a list such as `0-3,7`.
fn set_of(what: &'static str, list: &str) -> Result<Vec<u64>> {
    let wrong = || Error::List { what, list: list.to_owned(), limit: MAX_PROCESSORS };
    let mut bits = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|number| *number < MAX_PROCESSORS);
        let (first, last) = (number(first).ok_or_else(wrong)?, number(last).ok_or_else(wrong)?);
        if first > last {
            return Err(wrong());
        }
        if bits.len() <= last / 64 {
            bits.resize(last / 64 + 1, 0u64);
        }
        (first..=last).for_each(|bit| bits[bit / 64] |= 1 << (bit % 64));
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sets_of_bits() {
        assert_eq!(set_of("CPU affinity", "0-3,7").unwrap(), [0b1000_1111]);
        assert_eq!(set_of("CPU affinity", "64, 1").unwrap(), [2, 1]);
        assert!(set_of("CPU affinity", "").unwrap().is_empty());
        for wrong in ["3-1", "x", "-1", "9999999"] {
            assert!(set_of("CPU affinity", wrong).is_err(), "{wrong}");
        }
        let error = set_of("memory policy nodes", "0-9876543210").unwrap_err().to_string();
        assert_eq!(
            error,
            "invalid memory policy nodes \"0-9876543210\": a list such as 0-3,7 of numbers below 8192 is expected"
        );
    }

    #[test]
    fn a_default_memory_policy_takes_no_nodes() {
        let policy = serde_json::from_str(r#"{"mode":"MPOL_DEFAULT","nodes":"0-7"}"#).unwrap();
        let error = set_memory_policy(&policy).unwrap_err().to_string();
        assert_eq!(error, "invalid memory policy: the mode requires 0 nodes but got 8");
    }
}
