//! `PruneImages` and `CheckStore`: looking after the store.

use sampan_imagestore::{Fault, Unneeded};
use sampan_proto::sampan::{self, check_store_response::Event};
use tokio::sync::mpsc;
use tonic::Status;

use super::usage::amount;
use crate::{
    context::blocking,
    error::{Error, Result},
    pods::Pods,
};

/// Faults that may wait for a slow client.
const QUEUE: usize = 64;

pub(super) async fn prune(pods: &Pods, all: bool) -> Result<sampan::PruneImagesResponse> {
    let (store, pods) = (pods.context().store.clone(), pods.clone());
    let which = if all { Unneeded::All } else { Unneeded::Untagged };
    let pruned = blocking(move || store.prune(which, |image| pods.use_image(image.id.as_str()))).await?;
    Ok(sampan::PruneImagesResponse {
        untagged: pruned.removed.untagged,
        deleted: pruned.removed.deleted.iter().map(ToString::to_string).collect(),
        reclaimed: Some(amount(pruned.amount)),
    })
}

/// Checks the store and sends what it finds; the summary comes last.
pub(super) async fn check(
    pods: Pods,
    repair: bool,
    sender: mpsc::Sender<Result<sampan::CheckStoreResponse, Status>>,
) {
    let (faults, mut found) = mpsc::channel(QUEUE);
    let feed = sender.clone();
    let forward = tokio::spawn(async move {
        while let Some(fault) = found.recv().await {
            // A client that has gone away misses them; the log has them too.
            let _ = feed.send(Ok(response(Event::Fault(store_fault(fault))))).await;
        }
    });
    let checked = pods.context().store.check(repair, faults).await;
    let _ = forward.await;
    let last = checked.map(|summary| {
        response(Event::Summary(sampan::CheckSummary {
            blobs: summary.blobs,
            layers: summary.layers,
            faults: summary.faults,
            repaired: summary.repaired,
            entries: summary.entries,
            bytes: summary.bytes,
        }))
    });
    let _ = sender.send(last.map_err(|error| Error::from(error).into())).await;
}

fn response(event: Event) -> sampan::CheckStoreResponse {
    sampan::CheckStoreResponse { event: Some(event) }
}

fn store_fault(fault: Fault) -> sampan::StoreFault {
    sampan::StoreFault {
        object: fault.object.to_owned(),
        digest: fault.digest.to_string(),
        path: fault.path,
        problem: fault.problem,
        repaired: fault.repaired,
    }
}
