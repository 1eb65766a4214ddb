//! `ImageHistory` and `DiskUsage`.

use std::collections::HashSet;

use sampan_imagestore::{Digest, Image, Step, Usage};
use sampan_proto::sampan;

use crate::{
    context::blocking,
    error::Result,
    pods::{Found, Pods, record::ContainerPhase},
};

pub(super) fn step(step: Step) -> sampan::HistoryStep {
    sampan::HistoryStep {
        image_id: step.image.map(|id| id.to_string()).unwrap_or_default(),
        created_at: step.created.unwrap_or(0),
        created_by: step.created_by,
        size: step.size,
        comment: step.comment,
        tags: step.tags,
    }
}

pub(super) async fn disk_usage(pods: &Pods) -> Result<sampan::DiskUsageResponse> {
    let store = pods.context().store.clone();
    let containers = pods.containers();
    let users = |image: &Image| {
        let uses = |found: &&Found| found.container.uses_image(image.id.as_str());
        containers.iter().filter(uses).count() as u32
    };
    let usage = store.image_usage();
    let images = usage
        .iter()
        .map(|usage| sampan::ImageDiskUsage {
            image: Some(super::summary(&usage.image)),
            shared: Some(amount(usage.shared)),
            unique: Some(amount(usage.unique)),
            containers: users(&usage.image),
        })
        .collect();
    let used = usage.iter().filter(|usage| users(&usage.image) > 0);
    let kept: HashSet<Digest> = used.map(|usage| usage.image.id.clone()).collect();
    let total = store.usage_of_images(|_| true);
    let needed = store.usage_of_images(|image| kept.contains(&image.id));
    let reclaimable = Usage {
        bytes: total.bytes.saturating_sub(needed.bytes),
        inodes: total.inodes.saturating_sub(needed.inodes),
    };
    // The writable layers are the only thing that has to be counted.
    let written = blocking(move || containers.iter().map(|found| container(&store, found)).collect()).await;
    Ok(sampan::DiskUsageResponse {
        images,
        containers: written,
        image_total: Some(amount(total)),
        image_reclaimable: Some(amount(reclaimable)),
    })
}

fn container(store: &sampan_imagestore::Store, found: &Found) -> sampan::ContainerDiskUsage {
    let container = &found.container;
    let written = store.snapshots().usage(container.id.as_str()).unwrap_or_default();
    sampan::ContainerDiskUsage {
        id: container.id.to_string(),
        name: container.config.name.clone(),
        image: container.config.image.clone(),
        running: container.phase == ContainerPhase::Running,
        written: Some(amount(written)),
        created_at: container.created_at,
    }
}

pub(super) fn amount(usage: Usage) -> sampan::Amount {
    sampan::Amount { bytes: usage.bytes, inodes: usage.inodes }
}
