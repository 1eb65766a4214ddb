//! `ImageFsInfo`: what images and writable layers take of the disk. It's counted for images, and known to the file system or
//! found out by walks, of which there are few, for layers.

use std::sync::Arc;

use sampan_imagestore::Usage;
use sampan_proto::cri;
use tonic::Status;

use super::convert_stats;
use crate::{
    context::{Context, blocking, now},
    error::Error,
};

pub(super) async fn call(
    context: &Arc<Context>,
    _: cri::ImageFsInfoRequest,
) -> Result<cri::ImageFsInfoResponse, Status> {
    let of = context.clone();
    let usage = blocking(move || of.store.usage()).await.map_err(Error::from)?;
    // One path for both: they share a file system, and kubelet compares the two names.
    let file_system = |usage: Usage| cri::FilesystemUsage {
        timestamp: now(),
        fs_id: Some(cri::FilesystemIdentifier { mountpoint: convert_stats::snapshots(context) }),
        used_bytes: Some(cri::UInt64Value { value: usage.bytes }),
        inodes_used: Some(cri::UInt64Value { value: usage.inodes }),
    };
    Ok(cri::ImageFsInfoResponse {
        image_filesystems: vec![file_system(usage.images)],
        container_filesystems: vec![file_system(usage.containers)],
    })
}
