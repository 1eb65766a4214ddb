//! `Version`: who answers. kubelet wants `version` to be exactly this, and parses the other two as semantic versions.

use sampan_proto::cri;
use tonic::Status;

pub(super) async fn call(_: cri::VersionRequest) -> Result<cri::VersionResponse, Status> {
    Ok(cri::VersionResponse {
        version: "0.1.0".into(),
        runtime_name: "sampan".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "1.0.0".into(),
    })
}
