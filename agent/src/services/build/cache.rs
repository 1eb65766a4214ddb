//! What builds keep: listed, and removed.

use std::{sync::Arc, time::Duration};

use sampan_imagestore::build::{Kept, KeptKind, Prune};
use sampan_proto::sampan::{self, build_cache_entry::Kind};

use crate::{
    context::{Context, blocking},
    error::{Error, Result},
};

pub(super) async fn list(agent: &Arc<Context>) -> sampan::ListBuildCacheResponse {
    let builder = agent.builder.clone();
    let entries = blocking(move || builder.kept()).await;
    let size = entries.iter().map(|entry| entry.size).sum();
    sampan::ListBuildCacheResponse { entries: entries.into_iter().map(entry).collect(), size }
}

fn entry(kept: Kept) -> sampan::BuildCacheEntry {
    let kind = match kept.kind {
        KeptKind::Step => Kind::Step,
        KeptKind::Mount => Kind::Mount,
        KeptKind::Context => Kind::Context,
    };
    sampan::BuildCacheEntry {
        kind: kind as i32,
        id: kept.id,
        description: kept.description,
        size: kept.size,
        created_at: kept.created,
        used_at: kept.used,
        in_use: kept.in_use,
    }
}

pub(super) async fn prune(
    agent: &Arc<Context>,
    request: sampan::PruneBuildCacheRequest,
) -> Result<sampan::PruneBuildCacheResponse> {
    let kinds = request.kinds().filter_map(|kind| match kind {
        Kind::Unspecified => None,
        Kind::Step => Some(KeptKind::Step),
        Kind::Mount => Some(KeptKind::Mount),
        Kind::Context => Some(KeptKind::Context),
    });
    let prune = Prune {
        kinds: kinds.collect(),
        ids: request.ids.clone(),
        unused_for: Duration::from_nanos(u64::try_from(request.unused_for).unwrap_or_default()),
        keep_bytes: request.keep_bytes,
    };
    let builder = agent.builder.clone();
    let (removed, reclaimed_bytes) = blocking(move || builder.prune(&prune)).await.map_err(Error::from)?;
    Ok(sampan::PruneBuildCacheResponse { removed, reclaimed_bytes })
}
