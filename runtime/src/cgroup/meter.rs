//! The few files behind the figures that are asked for all the time, open for reading again and again.
//!
//! Opening a control file costs the kernel many times what reading it does, so whoever watches many cgroups keeps a
//! meter of each: four descriptors on version 1, at most nine on version 2. A meter keeps nothing alive: once the
//! cgroup is gone, reading fails with an error that `is_not_found`, even if another cgroup has its path by then.

use super::details::{Pressure, PressureReader};
use super::directory::{ControlFile, Directory};
use super::v1::{self, Place};
use super::{CpuStats, Error, MemoryStats, v2};

/// The open files of one cgroup.
pub struct Meter {
    cpu: Option<Cpu>,
    memory: Option<Memory>,
    tasks: Option<ControlFile>,
    pressure: Option<PressureReader>,
}

/// What a meter shows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reading {
    /// Processor time so far, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory; kills are not counted here and stay 0.
    pub memory: MemoryStats,
    /// How long tasks waited. Version 2 only.
    pub pressure: Option<Pressure>,
}

enum Cpu {
    V1(ControlFile),
    V2(v2::cpu::Reader),
}

enum Memory {
    V1(v1::memory::Reader),
    V2(v2::memory::Reader),
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meter").finish_non_exhaustive()
    }
}

impl Meter {
    /// Descriptors that one meter holds at most.
    pub const DESCRIPTORS: usize = 9;

    pub(super) fn v1(place: &Place<'_>) -> Result<Meter, Error> {
        let cpu = place.find("cpuacct")?.map(|directory| v1::cpuacct::open_usage(&directory)).transpose()?;
        let memory =
            place.find("memory")?.map(|directory| v1::memory::Reader::open_usage(&directory)).transpose()?;
        let tasks = match place.find("pids")? {
            Some(directory) => directory.open_optional("pids.current")?,
            None => None,
        };
        Ok(Meter { cpu: cpu.map(Cpu::V1), memory: memory.map(Memory::V1), tasks, pressure: None })
    }

    pub(super) fn v2(directory: &Directory) -> Result<Meter, Error> {
        let memory = match directory.has("memory.stat") {
            true => Some(Memory::V2(v2::memory::Reader::open_usage(directory)?)),
            false => None,
        };
        Ok(Meter {
            cpu: Some(Cpu::V2(v2::cpu::Reader::open(directory)?)),
            memory,
            tasks: directory.open_optional("pids.current")?,
            pressure: Some(PressureReader::open(directory)?),
        })
    }

    /// Processor time, memory and pressure. `buffer` can be used for any number of readings.
    pub fn read(&self, buffer: &mut Vec<u8>) -> Result<Reading, Error> {
        let mut reading = Reading { cpu_ns: self.cpu_ns(buffer)?, ..Reading::default() };
        match &self.memory {
            Some(Memory::V1(reader)) => reader.read(buffer, &mut reading.memory)?,
            Some(Memory::V2(reader)) => reader.read(buffer, &mut reading.memory)?,
            None => {}
        }
        reading.pressure = self.pressure.as_ref().map(|reader| reader.read(buffer)).transpose()?;
        Ok(reading)
    }

    /// Processor time alone, in nanoseconds; 0 on hosts that do not account for it.
    pub fn cpu_ns(&self, buffer: &mut Vec<u8>) -> Result<u64, Error> {
        match &self.cpu {
            Some(Cpu::V1(file)) => Ok(file.number(buffer)?.unwrap_or(0)),
            Some(Cpu::V2(reader)) => {
                let mut stats = CpuStats::default();
                reader.read(buffer, &mut stats)?;
                Ok(stats.usage_ns)
            }
            None => Ok(0),
        }
    }

    /// Processes and threads; 0 on hosts that do not count them.
    pub fn tasks(&self, buffer: &mut Vec<u8>) -> Result<u64, Error> {
        Ok(self.tasks.as_ref().map(|file| file.number(buffer)).transpose()?.flatten().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;

    #[test]
    fn version_two_is_read_with_its_pressure() {
        let fake = Fake::with(&[
            ("cpu.stat", "usage_usec 9\nuser_usec 5\n"),
            ("memory.current", "1000\n"),
            ("memory.max", "4096\n"),
            ("memory.stat", "anon 300\ninactive_file 400\n"),
            ("pids.current", "3\n"),
            ("io.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\n"),
        ]);
        let meter = Meter::v2(&fake.directory()).unwrap();
        let mut buffer = Vec::new();
        let reading = meter.read(&mut buffer).unwrap();
        assert_eq!((reading.cpu_ns, reading.memory.working_set_bytes), (9000, 600));
        assert_eq!(reading.memory.limit_bytes, Some(4096));
        let pressure = reading.pressure.unwrap();
        assert_eq!(pressure.io.map(|stalls| stalls.some.total_us), Some(7));
        assert_eq!((pressure.cpu, meter.tasks(&mut buffer).unwrap()), (None, 3));
    }
}
