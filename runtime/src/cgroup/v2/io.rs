//! The `io` controller: weights, throttles and traffic of block devices.

use oci_spec::runtime::{LinuxBlockIo, LinuxWeightDevice};

use crate::cgroup::directory::{ControlFile, Directory, number};
use crate::cgroup::{Error, IoStats};

pub(super) fn apply(directory: &Directory, io: &LinuxBlockIo) -> Result<(), Error> {
    let leaf = |device: &LinuxWeightDevice| device.leaf_weight().is_some_and(|weight| weight != 0);
    if io.leaf_weight().is_some_and(|weight| weight != 0) || io.weight_device().iter().flatten().any(leaf) {
        return Err(Error::Unavailable { controller: "blkio.leaf_weight", limit: "blockIO.leafWeight" });
    }
    let weight = io.weight().filter(|weight| *weight != 0);
    let devices = io.weight_device().as_deref().unwrap_or_default();
    if weight.is_some() || !devices.is_empty() {
        let name = ["io.bfq.weight", "io.weight"].into_iter().find(|name| directory.has(name));
        let name = name.ok_or(Error::Unavailable { controller: "io.weight", limit: "blockIO.weight" })?;
        // BFQ counts as version 1 did.
        let scale = |weight: u16| if name == "io.weight" { scaled(weight) } else { weight.into() };
        if let Some(weight) = weight {
            // The file shows the default among the devices' lines.
            directory.write_keyed(name, &[format!("default {}", scale(weight))], "100")?;
        }
        let line = |device: &LinuxWeightDevice| {
            let weight = scale(device.weight().filter(|weight| *weight != 0)?);
            Some(format!("{}:{} {weight}", device.major(), device.minor()))
        };
        let lines: Vec<String> = devices.iter().filter_map(line).collect();
        directory.write_keyed(name, &lines, "default")?;
    }
    throttle(directory, io)
}

/// From version 1's 10 to 1000 to the 1 to 10000 of `io.weight`.
pub(in crate::cgroup) fn scaled(weight: u16) -> u64 {
    1 + (u64::from(weight).max(10) - 10) * 9999 / 990
}

fn throttle(directory: &Directory, io: &LinuxBlockIo) -> Result<(), Error> {
    let kinds = [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ];
    if kinds.iter().all(|(_, devices)| devices.as_ref().is_none_or(Vec::is_empty)) {
        return Ok(());
    }
    if !directory.has("io.max") {
        return Err(Error::Unavailable { controller: "io", limit: "blockIO" });
    }
    let lines = kinds.iter().flat_map(|(kind, devices)| {
        let line = move |d: &oci_spec::runtime::LinuxThrottleDevice| match d.rate() {
            0 => format!("{}:{} {kind}=max", d.major(), d.minor()),
            rate => format!("{}:{} {kind}={rate}", d.major(), d.minor()),
        };
        devices.iter().flatten().map(line)
    });
    directory.write_keyed("io.max", &lines.collect::<Vec<_>>(), "rbps=max wbps=max riops=max wiops=max")
}

pub(super) struct Reader(ControlFile);

impl Reader {
    pub(super) fn open(directory: &Directory) -> Result<Reader, Error> {
        directory.open_file("io.stat").map(Reader)
    }

    /// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`
    pub(super) fn read(&self, buffer: &mut Vec<u8>, stats: &mut IoStats) -> Result<(), Error> {
        let text = self.0.read(buffer)?;
        for word in text.split(|byte| matches!(byte, b'\n' | b' ')) {
            let Some(equals) = word.iter().position(|byte| *byte == b'=') else { continue };
            let Some(value) = number(&word[equals + 1..]) else { continue };
            let sum = match &word[..equals] {
                b"rbytes" => &mut stats.read_bytes,
                b"wbytes" => &mut stats.write_bytes,
                b"rios" => &mut stats.read_ops,
                b"wios" => &mut stats.write_ops,
                _ => continue,
            };
            *sum = sum.saturating_add(value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;
    use oci_spec::runtime::{LinuxBlockIoBuilder, LinuxThrottleDeviceBuilder};

    #[test]
    fn throttles_share_a_file() {
        let device =
            |rate| LinuxThrottleDeviceBuilder::default().major(8).minor(0).rate(rate).build().unwrap();
        let io = LinuxBlockIoBuilder::default()
            .throttle_read_bps_device(vec![device(1024u64)])
            .throttle_write_iops_device(vec![device(0)])
            .build()
            .unwrap();
        let fake = Fake::with(&[("io.max", "")]);
        apply(&fake.directory(), &io).unwrap();
        assert_eq!(fake.text("io.max"), "8:0 rbps=10248:0 wiops=max");
    }

    #[test]
    fn weight_is_scaled_for_the_file_that_exists() {
        let io = LinuxBlockIoBuilder::default().weight(1000u16).build().unwrap();
        for (name, text) in [("io.weight", "default 10000"), ("io.bfq.weight", "default 1000")] {
            let fake = Fake::with(&[(name, "")]);
            apply(&fake.directory(), &io).unwrap();
            assert_eq!(fake.text(name), text);
        }
    }

    #[test]
    fn traffic_is_summed_over_devices() {
        let fake = Fake::with(&[(
            "io.stat",
            "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 \n8:32 rbytes=1 wbytes=2 rios=3 wios=4\n",
        )]);
        let mut stats = IoStats::default();
        Reader::open(&fake.directory()).unwrap().read(&mut Vec::new(), &mut stats).unwrap();
        assert_eq!(stats, IoStats { read_bytes: 11, write_bytes: 22, read_ops: 4, write_ops: 6 });
    }
}
