//! Limits in systemd's words (systemd.resource-control(5)).
//!
//! Best effort by design: what systemd has no word for, or only in a later version, is written to the cgroup all the
//! same, after systemd has had its say. Quotas are rounded up, because systemd counts them in percent.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxResources};

use super::wire::Value;
use crate::cgroup::devices::{Kind, MKNOD, READ, Rule, Sum, WRITE, rules, sum};
use crate::cgroup::v1::pids;
use crate::cgroup::{Error, Layout, v2};

pub(super) type Properties = Vec<(&'static str, Value)>;

/// First versions of systemd with something.
const QUOTA_PERIOD: u32 = 242;
const DEVICE_MAJORS: u32 = 240;
const CPU_SETS: u32 = 244;
const IDLE: u32 = 252;

const INFINITY: u64 = u64::MAX;

/// `create`: devices are restricted even when the resources don't name any.
pub(super) fn of(
    resources: &LinuxResources,
    layout: Layout,
    version: u32,
    create: bool,
) -> Result<Properties, Error> {
    let unified = layout == Layout::V2;
    let mut found = Vec::new();
    let named = resources.devices().as_deref().filter(|rules| create || !rules.is_empty());
    if create || named.is_some() {
        devices(&mut found, named.unwrap_or_default(), unified, version)?;
    }
    if let Some(memory) = resources.memory() {
        self::memory(&mut found, memory, unified)?;
    }
    if let Some(cpu) = resources.cpu() {
        self::cpu(&mut found, cpu, unified, version)?;
    }
    if let Some(pids) = resources.pids() {
        found.push(("TasksMax", Value::Number(self::pids::limit(pids).unwrap_or(INFINITY))));
    }
    if let Some(io) = resources.block_io() {
        weight(&mut found, io, unified);
    }
    if let Some(files) = resources.unified().as_ref().filter(|_| unified) {
        self::unified(&mut found, files, version)?;
    }
    Ok(found)
}

fn devices(
    found: &mut Properties,
    specified: &[LinuxDeviceCgroup],
    unified: bool,
    version: u32,
) -> Result<(), Error> {
    let sum = sum(&rules(specified)?);
    let entries = match &sum {
        Sum::Only(list) => list.iter().map(|rule| entry(rule, version)).collect::<Option<Vec<_>>>(),
        Sum::Everything | Sum::Ordered => None,
    };
    let policy = match &entries {
        Some(_) => "strict",
        // What systemd can't say must not be refused by it on version 2, where our own filter stands beside. On version
        // 1 there is one list for both: better it refuses too much, until our own list is written, than too little.
        None if sum == Sum::Everything || unified => "auto",
        None => "strict",
    };
    found.push(("DevicePolicy", Value::Text(policy.to_owned())));
    // An empty list clears the old one; entries are added to what is there.
    found.push(("DeviceAllow", Value::DeviceRules(Vec::new())));
    if let Some(entries) = entries.filter(|entries| !entries.is_empty()) {
        found.push(("DeviceAllow", Value::DeviceRules(entries)));
    }
    Ok(())
}

/// None for rules that systemd has no words for.
fn entry(rule: &Rule, version: u32) -> Option<(String, String)> {
    let kind = match rule.devices.kind {
        Kind::Block => "block",
        Kind::Char => "char",
    };
    let name = match (rule.devices.major, rule.devices.minor) {
        (None, None) => format!("{kind}-*"),
        (Some(major), None) if version >= DEVICE_MAJORS => format!("{kind}-{major}"),
        (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
        _ => return None,
    };
    let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
    let access = letters.iter().filter(|(bit, _)| rule.access & bit != 0).map(|(_, letter)| letter).collect();
    Some((name, access))
}

fn bytes(value: i64) -> Value {
    Value::Number(u64::try_from(value).unwrap_or(INFINITY))
}

fn memory(found: &mut Properties, memory: &LinuxMemory, unified: bool) -> Result<(), Error> {
    let limit = memory.limit().filter(|limit| *limit != 0);
    if let Some(limit) = limit {
        found.push((if unified { "MemoryMax" } else { "MemoryLimit" }, bytes(limit)));
    }
    if !unified {
        return Ok(());
    }
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        found.push(("MemoryLow", bytes(reservation)));
    }
    if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
        let alone = v2::memory::swap_alone(limit, swap)?;
        found.push(("MemorySwapMax", Value::Number(alone.parse().unwrap_or(INFINITY))));
    }
    Ok(())
}

fn cpu(found: &mut Properties, cpu: &LinuxCpu, unified: bool, version: u32) -> Result<(), Error> {
    let idle = unified && version >= IDLE && cpu.idle() == Some(1);
    if idle {
        // This is how systemd is told of `cpu.idle`.
        found.push(("CPUWeight", Value::Number(0)));
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0 && !idle) {
        found.push(match unified {
            true => ("CPUWeight", Value::Number(v2::cpu::weight(shares))),
            false => ("CPUShares", Value::Number(shares)),
        });
    }
    quota(found, cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0), version);
    if unified && version >= CPU_SETS {
        for (name, set) in [("AllowedCPUs", cpu.cpus()), ("AllowedMemoryNodes", cpu.mems())] {
            if let Some(set) = set.as_ref().filter(|set| !set.is_empty()) {
                found.push((name, Value::Bytes(bits(set)?)));
            }
        }
    }
    Ok(())
}

/// `quota` in microseconds a period; 0 is unset, less is no limit.
fn quota(found: &mut Properties, quota: i64, period: u64, version: u32) {
    /// What the kernel has before anybody sets a period.
    const PERIOD: u64 = 100_000;
    /// systemd counts in percent of a second.
    const STEP: u64 = 10_000;
    if period != 0 && version >= QUOTA_PERIOD {
        found.push(("CPUQuotaPeriodUSec", Value::Number(period)));
    }
    let per_second = match u64::try_from(quota) {
        Ok(0) => return,
        Ok(quota) => {
            let period = if period == 0 { PERIOD } else { period };
            let exact = u128::from(quota) * 1_000_000 / u128::from(period);
            u64::try_from(exact).unwrap_or(INFINITY - STEP).next_multiple_of(STEP)
        }
        Err(_) => INFINITY,
    };
    found.push(("CPUQuotaPerSecUSec", Value::Number(per_second)));
}

fn weight(found: &mut Properties, io: &LinuxBlockIo, unified: bool) {
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        found.push(match unified {
            true => ("IOWeight", Value::Number(v2::io::scaled(weight))),
            false => ("BlockIOWeight", Value::Number(weight.into())),
        });
    }
}

fn unified(found: &mut Properties, files: &HashMap<String, String>, version: u32) -> Result<(), Error> {
    for (file, value) in files {
        let value = value.trim();
        let number = || match value {
            "max" => Ok(INFINITY),
            digits => digits.parse().map_err(|_| {
                let reason = format!("{file}: {digits:?} is not a number");
                Error::Invalid { limit: "unified", reason }
            }),
        };
        let name = match file.as_str() {
            "cpu.weight" => "CPUWeight",
            "memory.min" => "MemoryMin",
            "memory.low" => "MemoryLow",
            "memory.high" => "MemoryHigh",
            "memory.max" => "MemoryMax",
            "memory.swap.max" => "MemorySwapMax",
            "pids.max" => "TasksMax",
            "cpu.max" => {
                let mut words = value.split_whitespace();
                let quota =
                    words.next().and_then(|word| if word == "max" { Some(-1) } else { word.parse().ok() });
                let period = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
                self::quota(found, quota.unwrap_or(0), period, version);
                continue;
            }
            "cpuset.cpus" | "cpuset.mems" if version >= CPU_SETS && !value.is_empty() => {
                let name = if file == "cpuset.cpus" { "AllowedCPUs" } else { "AllowedMemoryNodes" };
                found.push((name, Value::Bytes(bits(value)?)));
                continue;
            }
            _ => continue,
        };
        // systemd takes no 0 tasks; the file gets what was asked for.
        let number = number()?;
        found.push((name, Value::Number(if name == "TasksMax" { number.max(1) } else { number })));
    }
    Ok(())
}

/// `0-2,7` as a bit mask, the lowest byte first.
fn bits(set: &str) -> Result<Vec<u8>, Error> {
    /// More than any kernel has.
    const HIGHEST: usize = 65_535;
    let invalid = || {
        let reason = format!("{set:?} is not a list of numbers and ranges, such as 0-2,7");
        Error::Invalid { limit: "cpu.cpus", reason }
    };
    let number =
        |text: &str| text.trim().parse().ok().filter(|number| *number <= HIGHEST).ok_or_else(invalid);
    let mut mask = Vec::new();
    for part in set.split(',').filter(|part| !part.trim().is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (number(first)?, number(last)?);
        if first > last {
            return Err(invalid());
        }
        mask.resize(mask.len().max(last / 8 + 1), 0);
        (first..=last).for_each(|bit| mask[bit / 8] |= 1 << (bit % 8));
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{
        LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder, LinuxPidsBuilder,
    };

    fn number(properties: &Properties, wanted: &str) -> Option<u64> {
        properties.iter().find_map(|(name, value)| match value {
            Value::Number(number) if *name == wanted => Some(*number),
            _ => None,
        })
    }

    fn resources() -> LinuxResources {
        let mut resources = LinuxResources::default();
        resources
            .set_devices(None)
            .set_memory(Some(LinuxMemoryBuilder::default().limit(1000).swap(1500).build().unwrap()))
            .set_cpu(Some(
                LinuxCpuBuilder::default().shares(1024u64).quota(12_345i64).cpus("0-1,9").build().unwrap(),
            ))
            .set_pids(Some(LinuxPidsBuilder::default().limit(-1).build().unwrap()));
        resources
    }

    #[test]
    fn version_2_gets_the_words_of_version_2() {
        let found = of(&resources(), Layout::V2, 252, false).unwrap();
        assert_eq!(number(&found, "MemoryMax"), Some(1000));
        assert_eq!(number(&found, "MemorySwapMax"), Some(500));
        assert_eq!(number(&found, "CPUWeight"), Some(100));
        assert_eq!(number(&found, "TasksMax"), Some(INFINITY));
        assert!(found.contains(&("AllowedCPUs", Value::Bytes(vec![3, 2]))));
        assert!(!found.iter().any(|(name, _)| name.starts_with("Device")), "an update names no devices");
    }

    #[test]
    fn version_1_gets_the_words_of_version_1() {
        let found = of(&resources(), Layout::Hybrid, 252, false).unwrap();
        assert_eq!((number(&found, "MemoryLimit"), number(&found, "CPUShares")), (Some(1000), Some(1024)));
        assert_eq!(number(&found, "MemorySwapMax"), None);
    }

    #[test]
    fn no_tasks_are_told_as_one() {
        let mut resources = resources();
        resources.set_pids(Some(LinuxPidsBuilder::default().limit(0).build().unwrap()));
        assert_eq!(number(&of(&resources, Layout::V2, 252, false).unwrap(), "TasksMax"), Some(1));
    }

    #[test]
    fn quotas_are_rounded_up_to_a_percent() {
        for (asked, period, told) in [
            (12_345, 0, Some(130_000)),
            (50_000, 100_000, Some(500_000)),
            (-1, 0, Some(INFINITY)),
            (0, 20_000, None),
            (i64::MAX, 1, Some(INFINITY / STEP * STEP)),
        ] {
            let mut found = Vec::new();
            quota(&mut found, asked, period, 252);
            assert_eq!(number(&found, "CPUQuotaPerSecUSec"), told, "{asked} {period}");
        }
        const STEP: u64 = 10_000;
    }

    #[test]
    fn devices_are_restricted_unless_everything_is_allowed() {
        let strict = ("DevicePolicy", Value::Text("strict".into()));
        let found = of(&resources(), Layout::V2, 252, true).unwrap();
        assert!(found.contains(&strict));
        let listed = |name: &str| {
            found.iter().any(|(_, value)| {
                matches!(value, Value::DeviceRules(rules) if rules.iter().any(|(found, _)| found == name))
            })
        };
        assert!(listed("/dev/char/1:3") && listed("char-136") && listed("block-*"));
        let mut everything = LinuxResources::default();
        let all = LinuxDeviceCgroupBuilder::default().allow(true).access("rwm").build().unwrap();
        everything.set_devices(Some(vec![all]));
        assert!(!of(&everything, Layout::V2, 252, true).unwrap().contains(&strict));
    }

    #[test]
    fn a_rule_without_words_leaves_version_2_to_our_own_filter() {
        let rule = LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::C).minor(200);
        let mut resources = LinuxResources::default();
        resources.set_devices(Some(vec![rule.access("rw").build().unwrap()]));
        let policy = |layout| of(&resources, layout, 252, true).unwrap()[0].1.clone();
        assert_eq!(policy(Layout::V2), Value::Text("auto".into()));
        assert_eq!(policy(Layout::V1), Value::Text("strict".into()));
    }

    #[test]
    fn sets_become_masks() {
        assert_eq!(bits("0-2,7").unwrap(), [0b1000_0111]);
        assert_eq!(bits("9").unwrap(), [0, 2]);
        for bad in ["x", "3-1", "-1", "70000"] {
            assert!(bits(bad).unwrap_err().is_invalid_argument(), "{bad}");
        }
    }
}
