//! `Push`: an image to its registry, with progress.

use std::sync::Arc;

use sampan_imagestore::{Auth, Image, Reference, UploadEvent, UploadPhase};
use sampan_proto::sampan::{self, layer_progress::Phase, push_response::Event};
use tokio::sync::mpsc;
use tonic::Status;

use crate::{error::Result, pods::Pods};

/// Events that may wait for a slow client.
const QUEUE: usize = 64;

pub(super) async fn push(
    pods: &Pods,
    image: Arc<Image>,
    reference: &Reference,
    auth: Option<Auth>,
    sender: &mpsc::Sender<Result<sampan::PushResponse, Status>>,
) -> Result<sampan::PushResponse> {
    let (events, mut steps) = mpsc::channel(QUEUE);
    let feed = sender.clone();
    let forward = tokio::spawn(async move {
        while let Some(step) = steps.recv().await {
            let event = Some(Event::Blob(upload(&step)));
            if feed.send(Ok(sampan::PushResponse { event })).await.is_err() {
                return;
            }
        }
    });
    let pushed = tokio::select! {
        pushed = pods.context().store.push(image, reference, auth, events) => pushed?,
        // Nobody is left to push for.
        () = sender.closed() => return Ok(sampan::PushResponse { event: None }),
    };
    // All steps before the end.
    let _ = forward.await;
    Ok(sampan::PushResponse {
        event: Some(Event::Image(sampan::PushedImage {
            reference: reference.to_string(),
            digest: pushed.digest.to_string(),
            size: pushed.size,
        })),
    })
}

fn upload(event: &UploadEvent) -> sampan::LayerProgress {
    let phase = match event.phase {
        UploadPhase::Waiting => Phase::Waiting,
        UploadPhase::Uploading => Phase::Uploading,
        UploadPhase::Done => Phase::Done,
        UploadPhase::Exists => Phase::Exists,
        UploadPhase::Mounted => Phase::Mounted,
    };
    sampan::LayerProgress {
        digest: event.digest.to_string(),
        phase: phase as i32,
        current: event.current,
        total: event.total,
    }
}
