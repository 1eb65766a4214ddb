//! Device rules: what the specification says, made exact, and the same for both versions.
//!
//! Everything is denied first, then the specification's rules follow in their order, then those that the OCI
//! specification has every runtime allow. For each kind of access the last rule that names the device decides.
//! How a rule is enforced (text files, a BPF program) is left to the versions.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::Error;

/// Kinds of access, as the kernel numbers them for BPF programs.
pub(super) const MKNOD: u8 = 1;
pub(super) const READ: u8 = 2;
pub(super) const WRITE: u8 = 4;
pub(super) const ALL: u8 = MKNOD | READ | WRITE;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Block,
    Char,
}

/// A set of devices; None is every number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Devices {
    pub(super) kind: Kind,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
}

impl Devices {
    fn covers(&self, other: &Devices) -> bool {
        let number = |own: Option<u32>, other| own.is_none() || own == other;
        self.kind == other.kind && number(self.major, other.major) && number(self.minor, other.minor)
    }

    fn meets(&self, other: &Devices) -> bool {
        let number = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind && number(self.major, other.major) && number(self.minor, other.minor)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) allow: bool,
    pub(super) devices: Devices,
    /// Bits of [`ALL`].
    pub(super) access: u8,
}

const fn default(major: Option<u32>, minor: Option<u32>, kind: Kind, access: u8) -> Rule {
    Rule { allow: true, devices: Devices { kind, major, minor }, access }
}

/// Allowed to every container: mknod of anything, the default devices, terminals.
const DEFAULT: [Rule; 11] = [
    default(None, None, Kind::Char, MKNOD),
    default(None, None, Kind::Block, MKNOD),
    default(Some(1), Some(3), Kind::Char, ALL),
    default(Some(1), Some(5), Kind::Char, ALL),
    default(Some(1), Some(7), Kind::Char, ALL),
    default(Some(1), Some(8), Kind::Char, ALL),
    default(Some(1), Some(9), Kind::Char, ALL),
    default(Some(5), Some(0), Kind::Char, ALL),
    default(Some(5), Some(1), Kind::Char, ALL),
    default(Some(5), Some(2), Kind::Char, ALL),
    default(Some(136), None, Kind::Char, ALL),
];

/// The rules in force, in order, after an implied "deny all".
pub(super) fn rules(specified: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, Error> {
    let mut rules = Vec::with_capacity(specified.len() + DEFAULT.len() + 2);
    for rule in specified {
        let access = access(rule.access().as_deref().unwrap_or("rwm"))?;
        let (major, minor) = (number(rule.major())?, number(rule.minor())?);
        let kinds: &[Kind] = match rule.typ() {
            None | Some(LinuxDeviceType::A) => &[Kind::Block, Kind::Char],
            Some(LinuxDeviceType::B) => &[Kind::Block],
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => &[Kind::Char],
            Some(LinuxDeviceType::P) => {
                return Err(invalid("a FIFO is no device: no cgroup rule applies to one"));
            }
        };
        let rule = |&kind| Rule { allow: rule.allow(), devices: Devices { kind, major, minor }, access };
        rules.extend(kinds.iter().map(rule));
    }
    rules.extend(DEFAULT);
    Ok(rules)
}

fn number(value: Option<i64>) -> Result<Option<u32>, Error> {
    match value {
        // Files written for other runtimes say -1 for every number.
        None | Some(-1) => Ok(None),
        Some(value) => match u32::try_from(value) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(invalid(&format!("{value} is no device number"))),
        },
    }
}

fn access(text: &str) -> Result<u8, Error> {
    let bit = |letter| match letter {
        'r' => Ok(READ),
        'w' => Ok(WRITE),
        'm' => Ok(MKNOD),
        _ => Err(invalid(&format!("access {text:?} has letters other than r, w and m"))),
    };
    match text {
        "" => Ok(ALL),
        text => text.chars().try_fold(0, |bits, letter| Ok(bits | bit(letter)?)),
    }
}

fn invalid(reason: &str) -> Error {
    Error::Invalid { limit: "devices", reason: reason.to_owned() }
}

/// What ordered rules come to when it can be said without an order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sum {
    /// Nothing is refused.
    Everything,
    /// These and nothing else; all of them allow, and no two name the same devices.
    Only(Vec<Rule>),
    /// An exception is cut out of something larger: order matters.
    Ordered,
}

pub(super) fn sum(rules: &[Rule]) -> Sum {
    let mut allowed: Vec<Rule> = Vec::new();
    for rule in rules {
        if rule.allow {
            match allowed.iter_mut().find(|known| known.devices == rule.devices) {
                Some(known) => known.access |= rule.access,
                None => allowed.push(*rule),
            }
            continue;
        }
        for known in allowed.iter_mut().filter(|known| known.access & rule.access != 0) {
            if rule.devices.covers(&known.devices) {
                known.access &= !rule.access;
            } else if rule.devices.meets(&known.devices) {
                return Sum::Ordered;
            }
        }
        allowed.retain(|known| known.access != 0);
    }
    let every = |kind| {
        let all = Devices { kind, major: None, minor: None };
        allowed.iter().any(|rule| rule.devices == all && rule.access == ALL)
    };
    if every(Kind::Block) && every(Kind::Char) { Sum::Everything } else { Sum::Only(allowed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    pub(crate) fn specified(
        allow: bool,
        typ: LinuxDeviceType,
        major: Option<i64>,
        minor: Option<i64>,
        access: &str,
    ) -> LinuxDeviceCgroup {
        let mut rule = LinuxDeviceCgroupBuilder::default().allow(allow).typ(typ).access(access);
        if let Some(major) = major {
            rule = rule.major(major);
        }
        if let Some(minor) = minor {
            rule = rule.minor(minor);
        }
        rule.build().unwrap()
    }

    fn sum_of(specified: &[LinuxDeviceCgroup]) -> Sum {
        sum(&rules(specified).unwrap())
    }

    #[test]
    fn without_rules_only_the_defaults_are_allowed() {
        assert_eq!(sum_of(&[]), Sum::Only(DEFAULT.to_vec()));
    }

    #[test]
    fn all_devices_with_all_access_are_everything() {
        let all = |allow| specified(allow, LinuxDeviceType::A, None, None, "rwm");
        assert_eq!(sum_of(&[all(false), all(true)]), Sum::Everything);
        assert_eq!(sum_of(&[all(true), all(false)]), Sum::Only(DEFAULT.to_vec()));
        let part = specified(true, LinuxDeviceType::A, Some(-1), Some(-1), "r");
        assert!(matches!(sum_of(&[part]), Sum::Only(_)), "reading everything is not everything");
    }

    #[test]
    fn a_later_denial_takes_back_what_it_covers() {
        let allow = specified(true, LinuxDeviceType::C, Some(10), Some(200), "rw");
        let deny = specified(false, LinuxDeviceType::C, Some(10), None, "w");
        let Sum::Only(left) = sum_of(&[allow, deny]) else { panic!("expressible") };
        let tun = left.iter().find(|rule| rule.devices.minor == Some(200)).unwrap();
        assert_eq!(tun.access, READ);
    }

    #[test]
    fn a_hole_in_a_larger_permission_needs_order() {
        let allow = specified(true, LinuxDeviceType::C, Some(10), None, "rw");
        let deny = specified(false, LinuxDeviceType::C, Some(10), Some(200), "r");
        assert_eq!(sum_of(&[allow, deny]), Sum::Ordered);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            specified(true, LinuxDeviceType::C, Some(1), Some(3), "rx"),
            specified(true, LinuxDeviceType::C, Some(-2), None, "r"),
            specified(true, LinuxDeviceType::C, Some(1 << 32), None, "r"),
            specified(true, LinuxDeviceType::P, None, None, "r"),
        ] {
            assert!(rules(&[bad]).unwrap_err().is_invalid_argument());
        }
    }
}
