//! Room on the disk: removes unused images when they take more than the configuration allows.

use std::time::Duration;

use sampan_imagestore::Watermarks;
use tracing::{info, warn};

use crate::{context::blocking, error::Error, pods::Pods};

/// Looks again and again. Ends at once when there is no mark to watch.
pub async fn watch(pods: Pods) {
    let images = &pods.context().config.images;
    let marks = Watermarks {
        high_bytes: images.high_bytes,
        low_bytes: images.low_bytes,
        high_inodes: images.high_inodes,
        low_inodes: images.low_inodes,
        minimum_age: Duration::from_secs(images.minimum_age_seconds),
    };
    if marks.is_none() {
        return;
    }
    let mut ticks = tokio::time::interval(images.period());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        make_room(&pods, marks).await;
    }
}

async fn make_room(pods: &Pods, marks: Watermarks) {
    let (store, owner) = (pods.context().store.clone(), pods.clone());
    let made = blocking(move || store.make_room(&marks, |image| owner.use_image(image.id.as_str())));
    match made.await {
        Ok(made) if made.removed.deleted.is_empty() => {}
        Ok(made) => info!(
            untagged = ?made.removed.untagged,
            bytes = made.amount.bytes,
            inodes = made.amount.inodes,
            "unused images removed to make room"
        ),
        Err(error) => warn!(error = %Error::from(error).chain(), "no room could be made"),
    }
}
