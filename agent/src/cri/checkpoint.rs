//! `CheckpointContainer`, `CheckpointPod` and `RestorePod`: refused, with what is missing.

use std::path::Path;

use tonic::Status;

/// Where CRIU would be.
const CRIU: [&str; 3] = ["/usr/sbin/criu", "/usr/local/sbin/criu", "/usr/bin/criu"];

pub(super) fn refuse<T>(rpc: &str) -> Result<T, Status> {
    if CRIU.iter().any(|path| Path::new(path).exists()) {
        return Err(Status::unimplemented(format!("{rpc} is not there in this version of sampan")));
    }
    Err(Status::failed_precondition(format!(
        "{rpc} needs CRIU, which is not installed on this node (package criu)"
    )))
}
