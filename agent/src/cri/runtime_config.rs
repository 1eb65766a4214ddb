//! `RuntimeConfig`: how cgroups are driven; it stays the same for the life of the agent.

use sampan_proto::cri;
use tonic::Status;

use crate::config::{Cgroup, Driver};

pub(super) async fn call(config: &Cgroup) -> Result<cri::RuntimeConfigResponse, Status> {
    let driver = match config.driver() {
        Driver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
        Driver::Systemd => cri::CgroupDriver::Systemd,
    };
    let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: driver as i32 };
    Ok(cri::RuntimeConfigResponse { linux: Some(linux) })
}
