//! Pressure stall information: the share of time in which tasks waited for a resource.

use crate::cgroup::Error;
use crate::cgroup::directory::{ControlFile, Directory, number};

/// The three resources; None where the kernel was built or started without.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Waiting for a processor.
    pub cpu: Option<Stalls>,
    /// Waiting for memory to be found.
    pub memory: Option<Stalls>,
    /// Waiting for block devices.
    pub io: Option<Stalls>,
}

/// Waits for one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stalls {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks waited at once.
    pub full: Stall,
}

/// Averages in percent of the time, and the sum.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Over the last 10 seconds.
    pub avg10: f64,
    /// Over the last minute.
    pub avg60: f64,
    /// Over the last five minutes.
    pub avg300: f64,
    /// Since the cgroup was made, in microseconds.
    pub total_us: u64,
}

/// The three files, open.
pub(in crate::cgroup) struct Reader {
    files: [Option<ControlFile>; 3],
}

impl Reader {
    pub(in crate::cgroup) fn open(directory: &Directory) -> Result<Reader, Error> {
        let open = |name| directory.open_optional(name);
        Ok(Reader { files: [open("cpu.pressure")?, open("memory.pressure")?, open("io.pressure")?] })
    }

    pub(in crate::cgroup) fn read(&self, buffer: &mut Vec<u8>) -> Result<Pressure, Error> {
        let mut of = |file: &Option<ControlFile>| match file.as_ref().map(|file| file.read(buffer)) {
            Some(Ok(text)) => Ok(Some(parse(&String::from_utf8_lossy(text)))),
            // Switched off at boot: the file is there and can't be read.
            Some(Err(Error::Io { source, .. })) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Ok(None)
            }
            Some(Err(error)) => Err(error),
            None => Ok(None),
        };
        let [cpu, memory, io] = &self.files;
        Ok(Pressure { cpu: of(cpu)?, memory: of(memory)?, io: of(io)? })
    }
}

pub(in crate::cgroup) fn read(directory: &Directory) -> Result<Pressure, Error> {
    Reader::open(directory)?.read(&mut Vec::new())
}

/// `some avg10=0.22 avg60=0.17 avg300=1.11 total=58761459`
fn parse(text: &str) -> Stalls {
    let mut stalls = Stalls::default();
    for line in text.lines() {
        let mut words = line.split(' ');
        let stall = match words.next() {
            Some("some") => &mut stalls.some,
            Some("full") => &mut stalls.full,
            _ => continue,
        };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let average = || value.parse().unwrap_or(0.0);
            match name {
                "avg10" => stall.avg10 = average(),
                "avg60" => stall.avg60 = average(),
                "avg300" => stall.avg300 = average(),
                "total" => stall.total_us = number(value.as_bytes()).unwrap_or(0),
                _ => {}
            }
        }
    }
    stalls
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;

    #[test]
    fn both_lines_are_read() {
        let fake = Fake::with(&[(
            "cpu.pressure",
            "some avg10=0.22 avg60=0.17 avg300=1.11 total=58761459\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=7\n",
        )]);
        let pressure = read(&fake.directory()).unwrap();
        let cpu = pressure.cpu.unwrap();
        assert_eq!(cpu.some, Stall { avg10: 0.22, avg60: 0.17, avg300: 1.11, total_us: 58_761_459 });
        assert_eq!((cpu.full.avg10, cpu.full.total_us), (1.0, 7));
        assert_eq!(pressure.memory, None);
    }
}
