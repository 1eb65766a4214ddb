//! The `cpuset` controller of version 2. An empty set means the parent's, so nothing has to be copied down.

use oci_spec::runtime::LinuxCpu;

use crate::cgroup::Error;
use crate::cgroup::directory::Directory;

pub(super) fn apply(directory: &Directory, cpu: &LinuxCpu) -> Result<(), Error> {
    for (name, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            directory.write(name, value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake::Fake;
    use oci_spec::runtime::LinuxCpuBuilder;

    #[test]
    fn only_named_sets_are_written() {
        let fake = Fake::with(&[("cpuset.cpus", ""), ("cpuset.mems", "")]);
        apply(&fake.directory(), &LinuxCpuBuilder::default().cpus("0-1").build().unwrap()).unwrap();
        assert_eq!((fake.text("cpuset.cpus"), fake.text("cpuset.mems")), ("0-1".into(), String::new()));
    }
}
