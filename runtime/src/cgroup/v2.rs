//! cgroup version 2: one hierarchy, controllers handed down level by level.
//!
//! A controller works in a cgroup when the parent's `cgroup.subtree_control` names it. Device rules need a BPF
//! program in this version; they are not applied yet.

pub(super) mod cpu;
pub(super) mod cpuset;
pub(super) mod freezer;
pub(super) mod hugetlb;
pub(super) mod io;
pub(super) mod memory;
pub(super) mod unified;

use std::path::Path;

use oci_spec::runtime::LinuxResources;

use super::directory::Directory;
use super::v1::pids;
use super::{Error, Stats};

const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// Hands down to the children of `parent` what it has itself.
pub(super) fn delegate(parent: &Path) -> Result<(), Error> {
    let directory = Directory::open(parent)?;
    let available = directory.read("cgroup.controllers")?;
    let enabled = directory.read("cgroup.subtree_control")?;
    let missing: String = CONTROLLERS
        .iter()
        .filter(|name| available.split(' ').any(|word| word == **name))
        .filter(|name| !enabled.split(' ').any(|word| word == **name))
        .flat_map(|name| ["+", name, " "])
        .collect();
    match missing.trim_end() {
        "" => Ok(()),
        missing => directory.write("cgroup.subtree_control", missing),
    }
}

/// Sets the limits that `resources` names and leaves the others as they are.
pub(super) fn apply(directory: &Directory, resources: &LinuxResources) -> Result<(), Error> {
    let need = |controller, file: &str, limit| match directory.has(file) {
        true => Ok(()),
        false => Err(Error::Unavailable { controller, limit }),
    };
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
        && super::v1::blkio::concerned(limits)
    {
        io::apply(directory, limits)?;
    }
    if let Some(limits) = resources.hugepage_limits() {
        hugetlb::apply(directory, limits)?;
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
        assert!(fake.text("cgroup.subtree_control").starts_with("+cpuset +io +pids"));
    }
}
