//! What builds keep to be quicker the next time, listed and removed; and the bound that it stays within by itself.
//!
//! A layer that an image has too takes no more room for being in the cache, and removing it from there gives none back.

use std::{collections::HashSet, time::Duration};

use super::{Builder, Error, now};
use crate::{ChainId, Digest};

/// What sort of thing is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeptKind {
    /// What a step made.
    Step,
    /// A directory of `RUN --mount=type=cache`.
    Mount,
    /// Content of contexts and of fetched files, all together.
    Context,
}

/// Something that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What sort.
    pub kind: KeptKind,
    /// To name it by.
    pub id: String,
    /// For people.
    pub description: String,
    /// Bytes that would be free without it.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub created: i64,
    /// Likewise.
    pub used: i64,
    /// Whether it cannot be removed now.
    pub in_use: bool,
}

/// What to remove.
#[derive(Clone, Debug, Default)]
pub struct Prune {
    /// Empty: all kinds.
    pub kinds: Vec<KeptKind>,
    /// These only, or what begins so; empty: any.
    pub ids: Vec<String>,
    /// Only what nobody used for this long.
    pub unused_for: Duration,
    /// Stop when no more than this many bytes are left.
    pub keep_bytes: u64,
}

/// The one entry of all content.
const CONTEXT: &str = "context";

impl Builder {
    /// All that is kept. Cache mounts are counted file by file.
    pub fn kept(&self) -> Vec<Kept> {
        let inner = self.inner();
        let images: HashSet<ChainId> = inner
            .images
            .images()
            .iter()
            .flat_map(|image| image.layers.iter().map(|layer| layer.chain_id.clone()))
            .collect();
        let running = inner.oldest_running();
        let steps = inner.cache.records().into_iter().map(|record| {
            let blob = record.layer.as_ref().map_or(0, |layer| layer.size);
            let shared = record.layer.as_ref().is_none_or(|layer| images.contains(&layer.chain_id));
            Kept {
                kind: KeptKind::Step,
                id: record.key.hex().to_owned(),
                description: record.title.clone(),
                size: if shared { 0 } else { record.size + blob },
                created: record.created,
                used: record.used,
                in_use: record.used >= running,
            }
        });
        let mounts = inner.mounts.list().into_iter().map(|(name, record, size, in_use)| Kept {
            kind: KeptKind::Mount,
            id: name,
            description: record.id,
            size,
            created: record.created,
            used: record.used,
            in_use,
        });
        let content = Kept {
            kind: KeptKind::Context,
            id: CONTEXT.to_owned(),
            description: "files of contexts and URLs".to_owned(),
            size: inner.files.size(),
            created: 0,
            used: inner.files.last_use(),
            in_use: false,
        };
        steps.chain(mounts).chain((content.size > 0).then_some(content)).collect()
    }

    /// Removes what is asked for, what was used longest ago first. Gives the ids of what is gone, and the bytes.
    ///
    /// # Errors
    /// A directory that cannot be deleted; what went before it is gone.
    pub fn prune(&self, prune: &Prune) -> Result<(Vec<String>, u64), Error> {
        let inner = self.inner();
        let mut kept = self.kept();
        let mut total: u64 = kept.iter().map(|kept| kept.size).sum();
        let oldest = now().saturating_sub(i64::try_from(prune.unused_for.as_nanos()).unwrap_or(i64::MAX));
        kept.retain(|kept| {
            let named =
                prune.ids.is_empty() || prune.ids.iter().any(|id| !id.is_empty() && kept.id.starts_with(id));
            let kind = prune.kinds.is_empty() || prune.kinds.contains(&kept.kind);
            named && kind && !kept.in_use && (prune.unused_for.is_zero() || kept.used <= oldest)
        });
        kept.sort_by_key(|kept| kept.used);
        let (mut removed, mut bytes) = (Vec::new(), 0);
        for kept in kept {
            if prune.keep_bytes > 0 && total <= prune.keep_bytes {
                break;
            }
            // It would give no room.
            if prune.keep_bytes > 0 && kept.size == 0 {
                continue;
            }
            let gone = match kept.kind {
                KeptKind::Step => {
                    let key: Result<Digest, _> = format!("sha256:{}", kept.id).parse();
                    key.map(|key| inner.cache.remove(&[key])).is_ok()
                }
                KeptKind::Mount => inner.mounts.remove(&kept.id)?,
                KeptKind::Context => {
                    let left = total - kept.size;
                    let freed =
                        inner.files.prune(prune.keep_bytes.saturating_sub(left), inner.oldest_running());
                    (total, bytes) = (total - freed, bytes + freed);
                    if freed > 0 {
                        removed.push(kept.id);
                    }
                    continue;
                }
            };
            if gone {
                (total, bytes) = (total - kept.size, bytes + kept.size);
                removed.push(kept.id);
            }
        }
        inner.images.collect()?;
        Ok((removed, bytes))
    }

    /// Has [`Builder::keep_within`] done where nobody waits for it.
    pub(super) fn tidy(&self) {
        use std::sync::atomic::Ordering;
        let builder = self.clone();
        if builder.inner().tidying.swap(true, Ordering::AcqRel) {
            return;
        }
        tokio::task::spawn_blocking(move || {
            if let Err(error) = builder.keep_within() {
                tracing::warn!(error = crate::error::chain(&error), "the build cache stays above its bound");
            }
            builder.inner().tidying.store(false, Ordering::Release);
        });
    }

    /// Removes what was used longest ago until no more is kept than the options allow.
    ///
    /// # Errors
    /// As [`Builder::prune`].
    pub fn keep_within(&self) -> Result<(), Error> {
        let keep_bytes = self.inner().options.keep_bytes;
        let total: u64 = self.kept().iter().map(|kept| kept.size).sum();
        if total <= keep_bytes {
            return Ok(());
        }
        // Some room, so that not every build that follows has to do the same.
        let (removed, bytes) = self.prune(&Prune { keep_bytes: keep_bytes / 10 * 9, ..Prune::default() })?;
        tracing::info!(entries = removed.len(), bytes, "the build cache was above its bound");
        Ok(())
    }
}
