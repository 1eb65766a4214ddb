//! `RuntimeConfig`: how cgroups are driven; it stays the same for the life of the agent.

use sampan_proto::cri;
use tonic::Status;

pub(super) async fn call(_: cri::RuntimeConfigRequest) -> Result<cri::RuntimeConfigResponse, Status> {
    let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: cri::CgroupDriver::Cgroupfs as i32 };
    Ok(cri::RuntimeConfigResponse { linux: Some(linux) })
}
