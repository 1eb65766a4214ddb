//! cgroup version 1: each controller, or a few together, in a hierarchy of its own.
//!
//! A controller that the host lacks is passed over until a limit asks for it.

pub(super) mod blkio;
pub(super) mod cpu;
pub(super) mod cpuacct;
pub(super) mod cpuset;
pub(super) mod devices;
pub(super) mod freezer;
pub(super) mod hugetlb;
pub(super) mod memory;
pub(super) mod network;
pub(super) mod pids;
pub(super) mod rdma;

use std::time::Duration;

use oci_spec::runtime::LinuxResources;

use super::devices::Rule;
use super::directory::Directory;
use super::hierarchy::Hierarchies;
use super::journal::Journal;
use super::{Error, Stats};

/// A cgroup's path in the hierarchies of version 1.
pub(super) struct Place<'a> {
    pub(super) hierarchies: &'a Hierarchies,
    /// Without a leading slash.
    pub(super) path: &'a str,
}

impl Place<'_> {
    pub(super) fn find(&self, controller: &str) -> Result<Option<Directory>, Error> {
        match self.hierarchies.with(controller) {
            Some(hierarchy) => Directory::open(&hierarchy.root.join(self.path)).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn need(&self, controller: &'static str, limit: &'static str) -> Result<Directory, Error> {
        self.find(controller)?.ok_or(Error::Unavailable { controller, limit })
    }

    /// Sets the limits that `resources` names and leaves the others as they are.
    pub(super) fn apply(&self, resources: &LinuxResources, journal: Option<&Journal>) -> Result<(), Error> {
        if resources.unified().as_ref().is_some_and(|unified| !unified.is_empty()) {
            let reason = "invalid configuration: this host has cgroups of version 1".to_owned();
            return Err(Error::Invalid { limit: "unified", reason });
        }
        let need = |controller, limit| Ok(self.need(controller, limit)?.noting(journal));
        if let Some(cpu) = resources.cpu() {
            if cpu::concerned(cpu) {
                cpu::apply(&need("cpu", "cpu")?, cpu)?;
            }
            if cpu.cpus().is_some() || cpu.mems().is_some() {
                cpuset::apply(&need("cpuset", "cpu.cpus")?, cpu)?;
            }
        }
        if let Some(memory) = resources.memory()
            && memory::concerned(memory)
        {
            memory::apply(&need("memory", "memory")?, memory)?;
        }
        if let Some(pids) = resources.pids() {
            pids::apply(&need("pids", "pids")?, pids)?;
        }
        if let Some(io) = resources.block_io()
            && blkio::concerned(io)
        {
            blkio::apply(&need("blkio", "blockIO")?, io)?;
        }
        if let (Some(limits), Some(directory)) = (resources.hugepage_limits(), self.find("hugetlb")?) {
            hugetlb::apply(&directory.noting(journal), limits)?;
        }
        if let Some(network) = resources.network() {
            if network::has_class(network) {
                network::set_class(&need("net_cls", "network.classID")?, network)?;
            }
            if network::has_priorities(network) {
                network::set_priorities(&need("net_prio", "network.priorities")?, network)?;
            }
        }
        if let Some(adapters) = resources.rdma().as_ref().filter(|adapters| !adapters.is_empty()) {
            rdma::apply(&need("rdma", "rdma")?, adapters)?;
        }
        Ok(())
    }

    pub(super) fn apply_devices(&self, rules: &[Rule]) -> Result<(), Error> {
        devices::apply(&self.need("devices", "devices")?, rules)
    }

    pub(super) fn readers(&self) -> Result<Readers, Error> {
        Ok(Readers {
            cpu: self.find("cpu")?.map(|directory| cpu::Reader::open(&directory)).transpose()?,
            cpuacct: self.find("cpuacct")?.map(|directory| cpuacct::Reader::open(&directory)).transpose()?,
            memory: self.find("memory")?.map(|directory| memory::Reader::open(&directory)).transpose()?,
            pids: self.find("pids")?.map(|directory| pids::Reader::open(&directory)).transpose()?,
            io: self.find("blkio")?.map(|directory| blkio::Reader::open(&directory)).transpose()?,
        })
    }

    pub(super) fn oom_kills(&self) -> Result<u64, Error> {
        match self.find("memory")? {
            Some(directory) => memory::oom_kills(&directory),
            None => Ok(0),
        }
    }

    pub(super) fn freeze(&self, frozen: bool) -> Result<(), Error> {
        freezer::set(&self.need("freezer", "freeze")?, frozen)
    }

    pub(super) fn freeze_within(&self, frozen: bool, deadline: Duration) -> Result<(), Error> {
        freezer::set_within(&self.need("freezer", "freeze")?, frozen, deadline)
    }

    pub(super) fn is_frozen(&self) -> Result<bool, Error> {
        match self.find("freezer")? {
            Some(directory) => freezer::is_frozen(&directory),
            None => Ok(false),
        }
    }
}

/// The statistics files of the controllers that are there.
pub(super) struct Readers {
    cpu: Option<cpu::Reader>,
    cpuacct: Option<cpuacct::Reader>,
    memory: Option<memory::Reader>,
    pids: Option<pids::Reader>,
    io: Option<blkio::Reader>,
}

impl Readers {
    pub(super) fn read(&self, buffer: &mut Vec<u8>, stats: &mut Stats) -> Result<(), Error> {
        if let Some(reader) = &self.cpu {
            reader.read(buffer, &mut stats.cpu)?;
        }
        if let Some(reader) = &self.cpuacct {
            reader.read(buffer, &mut stats.cpu)?;
        }
        if let Some(reader) = &self.memory {
            reader.read(buffer, &mut stats.memory)?;
        }
        if let Some(reader) = &self.pids {
            reader.read(buffer, &mut stats.pids)?;
        }
        if let Some(reader) = &self.io {
            reader.read(buffer, &mut stats.io)?;
        }
        Ok(())
    }
}
