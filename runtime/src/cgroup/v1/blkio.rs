//! The `blkio` controller: weights, throttles and traffic of block devices.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice, LinuxWeightDevice};

use crate::cgroup::directory::{ControlFile, Directory, number};
use crate::cgroup::{Error, IoStats};

/// The throttles of a specification with the name that their file ends in.
type Throttles<'a> = [(&'static str, &'a Option<Vec<LinuxThrottleDevice>>); 4];

fn throttles(io: &LinuxBlockIo) -> Throttles<'_> {
    [
        ("blkio.throttle.read_bps_device", io.throttle_read_bps_device()),
        ("blkio.throttle.write_bps_device", io.throttle_write_bps_device()),
        ("blkio.throttle.read_iops_device", io.throttle_read_iops_device()),
        ("blkio.throttle.write_iops_device", io.throttle_write_iops_device()),
    ]
}

pub(in crate::cgroup) fn concerned(io: &LinuxBlockIo) -> bool {
    io.weight().is_some_and(|weight| weight != 0)
        || io.leaf_weight().is_some_and(|weight| weight != 0)
        || io.weight_device().as_ref().is_some_and(|devices| !devices.is_empty())
        || throttles(io)
            .iter()
            .any(|(_, devices)| devices.as_ref().is_some_and(|devices| !devices.is_empty()))
}

pub(super) fn apply(directory: &Directory, io: &LinuxBlockIo) -> Result<(), Error> {
    weights(directory, io)?;
    for (name, devices) in throttles(io) {
        if let Some(devices) = devices.as_ref().filter(|devices| !devices.is_empty()) {
            let line = |d: &LinuxThrottleDevice| format!("{}:{} {}", d.major(), d.minor(), d.rate());
            directory.write_keyed(name, &devices.iter().map(line).collect::<Vec<_>>(), "0")?;
        }
    }
    Ok(())
}

fn weights(directory: &Directory, io: &LinuxBlockIo) -> Result<(), Error> {
    let weight = io.weight().filter(|weight| *weight != 0);
    let devices = io.weight_device().as_deref().unwrap_or_default();
    if weight.is_some() || !devices.is_empty() {
        // Which of the two exists depends on the scheduler that the kernel was built with.
        let prefix =
            ["blkio", "blkio.bfq"].into_iter().find(|prefix| directory.has(&format!("{prefix}.weight")));
        let prefix =
            prefix.ok_or(Error::Unavailable { controller: "blkio.weight", limit: "blockIO.weight" })?;
        if let Some(weight) = weight {
            directory.write(&format!("{prefix}.weight"), &weight.to_string())?;
        }
        let lines = lines(devices, LinuxWeightDevice::weight);
        directory.write_keyed(&format!("{prefix}.weight_device"), &lines, "0")?;
    }
    // Leaf weights went with the CFQ scheduler, in Linux 5.0.
    let leaf = io.leaf_weight().filter(|weight| *weight != 0);
    let leaves = lines(devices, LinuxWeightDevice::leaf_weight);
    if leaf.is_some() || !leaves.is_empty() {
        if !directory.has("blkio.leaf_weight") {
            return Err(Error::Unavailable { controller: "blkio.leaf_weight", limit: "blockIO.leafWeight" });
        }
        if let Some(leaf) = leaf {
            directory.write("blkio.leaf_weight", &leaf.to_string())?;
        }
        directory.write_keyed("blkio.leaf_weight_device", &leaves, "0")?;
    }
    Ok(())
}

/// `8:0 500` for each device that has a weight of the kind.
fn lines(devices: &[LinuxWeightDevice], kind: fn(&LinuxWeightDevice) -> Option<u16>) -> Vec<String> {
    let line = |device: &LinuxWeightDevice| {
        let weight = kind(device).filter(|weight| *weight != 0)?;
        Some(format!("{}:{} {weight}", device.major(), device.minor()))
    };
    devices.iter().filter_map(line).collect()
}

pub(super) struct Reader {
    bytes: Option<ControlFile>,
    operations: Option<ControlFile>,
}

impl Reader {
    pub(super) fn open(directory: &Directory) -> Result<Reader, Error> {
        let open = |recursive, own| match directory.open_optional(recursive)? {
            Some(file) => Ok(Some(file)),
            None => directory.open_optional(own),
        };
        Ok(Reader {
            bytes: open("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes")?,
            operations: open("blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced")?,
        })
    }

    pub(super) fn read(&self, buffer: &mut Vec<u8>, stats: &mut IoStats) -> Result<(), Error> {
        if let Some(file) = &self.bytes {
            (stats.read_bytes, stats.write_bytes) = sums(file.read(buffer)?);
        }
        if let Some(file) = &self.operations {
            (stats.read_ops, stats.write_ops) = sums(file.read(buffer)?);
        }
        Ok(())
    }
}

/// `8:0 Read 4096` lines, several a device, and a `Total 4096` at the end.
fn sums(text: &[u8]) -> (u64, u64) {
    let mut sums = (0u64, 0u64);
    for line in text.split(|byte| *byte == b'\n') {
        let mut words = line.split(|byte| *byte == b' ').skip(1);
        let (Some(operation), Some(value)) = (words.next(), words.next().and_then(number)) else { continue };
        match operation {
            b"Read" => sums.0 = sums.0.saturating_add(value),
            b"Write" => sums.1 = sums.1.saturating_add(value),
            _ => {}
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;
    use oci_spec::runtime::{LinuxBlockIoBuilder, LinuxThrottleDeviceBuilder};

    #[test]
    fn throttle_lines_name_the_device() {
        let device = LinuxThrottleDeviceBuilder::default().major(8).minor(16).rate(1024u64).build().unwrap();
        let io = LinuxBlockIoBuilder::default().throttle_read_bps_device(vec![device]).build().unwrap();
        let fake = Fake::with(&[("blkio.throttle.read_bps_device", "")]);
        apply(&fake.directory(), &io).unwrap();
        assert_eq!(fake.text("blkio.throttle.read_bps_device"), "8:16 1024");
    }

    #[test]
    fn weight_without_the_file_is_unavailable() {
        let io = LinuxBlockIoBuilder::default().weight(500u16).build().unwrap();
        assert!(matches!(apply(&Fake::with(&[]).directory(), &io), Err(Error::Unavailable { .. })));
    }

    #[test]
    fn traffic_is_summed_over_devices() {
        let text =
            "8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n8:0 Total 30\n8:16 Read 1\n8:16 Write 2\nTotal 33\n";
        assert_eq!(sums(text.as_bytes()), (11, 22));
        assert_eq!(sums(b"Total 0\n"), (0, 0));
    }
}
