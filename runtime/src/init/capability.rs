//! Capability sets of a container's process.
//!
//! Asked for is what the configuration lists; given is what of it this process has itself. The
//! bounding set loses everything else. Inheritable and ambient capabilities exist only when asked.

use std::collections::BTreeSet;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::sys::{self, credential};

/// The sets to be given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sets {
    bounding: u64,
    permitted: u64,
    effective: u64,
    inheritable: u64,
    ambient: u64,
}

impl Sets {
    /// None asked means none given.
    pub(super) fn of(asked: Option<&LinuxCapabilities>) -> sys::Result<Sets> {
        let Some(asked) = asked else { return Ok(Sets::default()) };
        let own = credential::capget()?;
        let sets = Sets::within(asked, own.permitted.bits());
        // The kernel would say so when the program is about to be executed.
        if sets.inheritable & !(sets.bounding | own.inheritable.bits()) != 0 {
            let call = "capset() of an inheritable capability that is not in the bounding set";
            return Err(sys::Error::new(call, Errno::PERM));
        }
        Ok(sets)
    }

    fn within(asked: &LinuxCapabilities, own: u64) -> Sets {
        let bits =
            |set: &Option<Capabilities>| set.iter().flatten().fold(0, |bits, &cap| bits | bit(cap)) & own;
        let permitted = bits(asked.permitted());
        let inheritable = bits(asked.inheritable());
        Sets {
            bounding: bits(asked.bounding()),
            permitted,
            effective: bits(asked.effective()) & permitted,
            inheritable,
            // The kernel gives no ambient capability that isn't both.
            ambient: bits(asked.ambient()) & permitted & inheritable,
        }
    }

    /// While the process still may: takes everything else out of the bounding set.
    pub(super) fn bound(&self) -> sys::Result<()> {
        for number in 0..u64::BITS {
            if self.bounding & 1 << number == 0 && !credential::drop_bounding(number)? {
                break;
            }
        }
        Ok(())
    }

    /// The other sets, after the change of user.
    pub(super) fn assume(&self) -> sys::Result<()> {
        credential::capset(CapabilitySets {
            effective: CapabilitySet::from_bits_retain(self.effective),
            permitted: CapabilitySet::from_bits_retain(self.permitted),
            inheritable: CapabilitySet::from_bits_retain(self.inheritable),
        })?;
        credential::clear_ambient()?;
        for number in (0..u64::BITS).filter(|number| self.ambient & 1 << number != 0) {
            credential::raise_ambient(number)?;
        }
        Ok(())
    }
}

/// Leaves the calling process no capability, nor a way to one.
pub(crate) fn give_up() -> sys::Result<()> {
    let none = Sets::default();
    none.bound()?;
    none.assume()
}

/// Names of capabilities that a configuration asks for in vain.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Withheld {
    /// This process has none to give.
    pub(crate) lacking: BTreeSet<String>,
    /// The kernel makes none ambient that isn't permitted and inheritable.
    pub(crate) ambient: BTreeSet<String>,
}

/// What of `asked` won't be given.
pub(crate) fn withheld(asked: &LinuxCapabilities) -> sys::Result<Withheld> {
    Ok(withheld_by(asked, credential::capget()?.permitted.bits()))
}

fn withheld_by(asked: &LinuxCapabilities, own: u64) -> Withheld {
    let sets = Sets::within(asked, u64::MAX);
    let all = [asked.bounding(), asked.permitted(), asked.effective(), asked.inheritable(), asked.ambient()];
    let without = |set: u64| {
        move |capability: &Capability| (set & bit(*capability) == 0).then(|| format!("CAP_{capability}"))
    };
    Withheld {
        lacking: all.into_iter().flatten().flatten().filter_map(without(own)).collect(),
        ambient: asked.ambient().iter().flatten().filter_map(without(sets.ambient)).collect(),
    }
}

/// As in linux/capability.h.
fn bit(capability: Capability) -> u64 {
    let set = match capability {
        Capability::AuditControl => CapabilitySet::AUDIT_CONTROL,
        Capability::AuditRead => CapabilitySet::AUDIT_READ,
        Capability::AuditWrite => CapabilitySet::AUDIT_WRITE,
        Capability::BlockSuspend => CapabilitySet::BLOCK_SUSPEND,
        Capability::Bpf => CapabilitySet::BPF,
        Capability::CheckpointRestore => CapabilitySet::CHECKPOINT_RESTORE,
        Capability::Chown => CapabilitySet::CHOWN,
        Capability::DacOverride => CapabilitySet::DAC_OVERRIDE,
        Capability::DacReadSearch => CapabilitySet::DAC_READ_SEARCH,
        Capability::Fowner => CapabilitySet::FOWNER,
        Capability::Fsetid => CapabilitySet::FSETID,
        Capability::IpcLock => CapabilitySet::IPC_LOCK,
        Capability::IpcOwner => CapabilitySet::IPC_OWNER,
        Capability::Kill => CapabilitySet::KILL,
        Capability::Lease => CapabilitySet::LEASE,
        Capability::LinuxImmutable => CapabilitySet::LINUX_IMMUTABLE,
        Capability::MacAdmin => CapabilitySet::MAC_ADMIN,
        Capability::MacOverride => CapabilitySet::MAC_OVERRIDE,
        Capability::Mknod => CapabilitySet::MKNOD,
        Capability::NetAdmin => CapabilitySet::NET_ADMIN,
        Capability::NetBindService => CapabilitySet::NET_BIND_SERVICE,
        Capability::NetBroadcast => CapabilitySet::NET_BROADCAST,
        Capability::NetRaw => CapabilitySet::NET_RAW,
        Capability::Perfmon => CapabilitySet::PERFMON,
        Capability::Setgid => CapabilitySet::SETGID,
        Capability::Setfcap => CapabilitySet::SETFCAP,
        Capability::Setpcap => CapabilitySet::SETPCAP,
        Capability::Setuid => CapabilitySet::SETUID,
        Capability::SysAdmin => CapabilitySet::SYS_ADMIN,
        Capability::SysBoot => CapabilitySet::SYS_BOOT,
        Capability::SysChroot => CapabilitySet::SYS_CHROOT,
        Capability::SysModule => CapabilitySet::SYS_MODULE,
        Capability::SysNice => CapabilitySet::SYS_NICE,
        Capability::SysPacct => CapabilitySet::SYS_PACCT,
        Capability::SysPtrace => CapabilitySet::SYS_PTRACE,
        Capability::SysRawio => CapabilitySet::SYS_RAWIO,
        Capability::SysResource => CapabilitySet::SYS_RESOURCE,
        Capability::SysTime => CapabilitySet::SYS_TIME,
        Capability::SysTtyConfig => CapabilitySet::SYS_TTY_CONFIG,
        Capability::Syslog => CapabilitySet::SYSLOG,
        Capability::WakeAlarm => CapabilitySet::WAKE_ALARM,
    };
    set.bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(names: &[Capability]) -> LinuxCapabilities {
        let set: Capabilities = names.iter().copied().collect();
        let mut asked = LinuxCapabilities::default();
        asked.set_bounding(Some(set.clone())).set_permitted(Some(set.clone())).set_effective(Some(set));
        asked.set_inheritable(None).set_ambient(None);
        asked
    }

    #[test]
    fn what_the_process_lacks_is_not_given() {
        let asked = asked(&[Capability::Chown, Capability::SysResource]);
        let sets = Sets::within(&asked, !bit(Capability::SysResource));
        assert_eq!((sets.bounding, sets.permitted, sets.effective), (1, 1, 1));
    }

    #[test]
    fn inheritable_and_ambient_are_empty_unless_asked() {
        let sets = Sets::within(&asked(&[Capability::Chown, Capability::Kill]), u64::MAX);
        assert_eq!((sets.inheritable, sets.ambient), (0, 0));
    }

    #[test]
    fn ambient_needs_permitted_and_inheritable() {
        let mut asked = asked(&[Capability::Chown]);
        let both: Capabilities = [Capability::Chown, Capability::Kill].into_iter().collect();
        asked.set_ambient(Some(both.clone()));
        assert_eq!(Sets::within(&asked, u64::MAX).ambient, 0);
        asked.set_inheritable(Some(both));
        assert_eq!(Sets::within(&asked, u64::MAX).ambient, bit(Capability::Chown));
    }

    #[test]
    fn what_is_asked_in_vain_is_told() {
        let mut asked = asked(&[Capability::Chown, Capability::SysResource]);
        asked.set_ambient(asked.bounding().clone());
        asked.set_inheritable(Some([Capability::SysResource].into()));
        let expected = Withheld {
            lacking: ["CAP_SYS_RESOURCE".to_owned()].into(),
            ambient: ["CAP_CHOWN".to_owned()].into(),
        };
        assert_eq!(withheld_by(&asked, bit(Capability::Chown)), expected);
    }

    #[test]
    fn none_asked_is_none_given() {
        assert_eq!(Sets::of(None).unwrap(), Sets::default());
    }
}
