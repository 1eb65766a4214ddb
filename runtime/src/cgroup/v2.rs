//! cgroup version 2: one hierarchy, controllers handed down level by level.
//!
//! A controller works in a cgroup when the parent's `cgroup.subtree_control` names it. Freezing, killing and device
//! rules (a BPF program) need none.

pub(super) mod cpu;
pub(super) mod cpuset;
pub(super) mod devices;
pub(super) mod freezer;
pub(super) mod hugetlb;
pub(super) mod io;
pub(super) mod memory;
pub(super) mod unified;

use std::path::Path;

use oci_spec::runtime::LinuxResources;

use super::directory::Directory;
use super::journal::Journal;
use super::v1::{blkio, network, pids, rdma};
use super::{Error, Stats};

const CONTROLLERS: [&str; 8] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc"];

/// Hands down to the children of `parent` what it has itself.
pub(super) fn delegate(parent: &Path) -> Result<(), Error> {
    let directory = Directory::open(parent)?;
    let available = directory.read("cgroup.controllers")?;
    let enabled = directory.read("cgroup.subtree_control")?;
    let missing: Vec<String> = CONTROLLERS
        .iter()
        .filter(|name| available.split(' ').any(|word| word == **name))
        .filter(|name| !enabled.split(' ').any(|word| word == **name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let all = directory.write("cgroup.subtree_control", &missing.join(" "));
    // The kernel takes all or none, and one may have a reason of its own, such as `cpu` while a process here runs in
    // real time. Only a limit that needs the missing one fails, and says so. With processes in it, which is what busy
    // means, the parent can hand down nothing at all.
    if all.as_ref().is_err_and(|error| !error.is_busy()) && missing.len() > 1 {
        for name in &missing {
            let _ = directory.write("cgroup.subtree_control", name);
        }
        return Ok(());
    }
    all
}

/// Sets the limits that `resources` names and leaves the others as they are.
pub(super) fn apply(path: &Path, resources: &LinuxResources, journal: Option<&Journal>) -> Result<(), Error> {
    let directory = &Directory::open(path)?.noting(journal);
    let need = |controller, file: &str, limit| match directory.has(file) {
        true => Ok(()),
        false => Err(Error::Unavailable { controller, limit }),
    };
    if resources.network().as_ref().is_some_and(network::concerned) {
        return Err(Error::Unavailable { controller: "net_cls and net_prio", limit: "network" });
    }
    if let Some(cpu) = resources.cpu() {
        if cpu::concerned(cpu) {
            need("cpu", "cpu.max", "cpu")?;
            cpu::apply(directory, cpu)?;
        }
        if cpu.cpus().is_some() || cpu.mems().is_some() {
            need("cpuset", "cpuset.cpus", "cpu.cpus")?;
            cpuset::apply(directory, cpu)?;
        }
    }
    if let Some(memory) = resources.memory()
        && memory::concerned(memory)
    {
        need("memory", "memory.max", "memory")?;
        memory::apply(directory, memory)?;
    }
    if let Some(limit) = resources.pids() {
        need("pids", "pids.max", "pids")?;
        pids::apply(directory, limit)?;
    }
    if let Some(limits) = resources.block_io()
        && blkio::concerned(limits)
    {
        io::apply(directory, limits)?;
    }
    if let Some(limits) = resources.hugepage_limits() {
        hugetlb::apply(directory, limits)?;
    }
    if let Some(adapters) = resources.rdma().as_ref().filter(|adapters| !adapters.is_empty()) {
        need("rdma", "rdma.max", "rdma")?;
        rdma::apply(directory, adapters)?;
    }
    if let Some(files) = resources.unified() {
        unified::apply(directory, files)?;
    }
    Ok(())
}

/// The statistics files of the controllers that are enabled here.
pub(super) struct Readers {
    cpu: cpu::Reader,
    memory: Option<memory::Reader>,
    pids: Option<pids::Reader>,
    io: Option<io::Reader>,
}

impl Readers {
    pub(super) fn open(directory: &Directory) -> Result<Readers, Error> {
        let when = |file| directory.has(file).then_some(());
        Ok(Readers {
            cpu: cpu::Reader::open(directory)?,
            memory: when("memory.stat").map(|()| memory::Reader::open(directory)).transpose()?,
            pids: when("pids.current").map(|()| pids::Reader::open(directory)).transpose()?,
            io: when("io.stat").map(|()| io::Reader::open(directory)).transpose()?,
        })
    }

    pub(super) fn read(&self, buffer: &mut Vec<u8>, stats: &mut Stats) -> Result<(), Error> {
        self.cpu.read(buffer, &mut stats.cpu)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;

    #[test]
    fn delegation_adds_only_what_is_missing_and_known() {
        let fake = Fake::with(&[
            ("cgroup.controllers", "cpuset cpu io memory pids rdma misc\n"),
            ("cgroup.subtree_control", "cpu memory\n"),
        ]);
        delegate(fake.path()).unwrap();
        assert!(fake.text("cgroup.subtree_control").starts_with("+cpuset +io +pids +rdma +misc"));
    }
}
