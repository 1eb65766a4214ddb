//! Reclaiming: images that nobody needs are removed, because somebody asks for it or because the disk fills up.
//!
//! Spared are pinned images, those that somebody holds and those that the caller knows to be used. What goes is the
//! image's record first, then what only that record named; a lease, a snapshot or another image keeps its share, so this
//! is safe at any moment. When room is needed, those go first that were used longest ago.
//!
//! Who takes an image into use holds it until the caller of these functions knows of the use. Each image is looked at
//! once more right before it goes, while nobody can begin to hold it: it goes unused, or it stays.

use std::time::Duration;

use crate::{Error, Image, Removed, catalog::now, snapshot::Usage, store::Inner};

/// Which images to remove.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unneeded {
    /// Those without a tag.
    Untagged,
    /// Those too that have tags.
    All,
}

/// When to make room, and how much. What is absent is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watermarks {
    /// Beyond as many bytes of images, room is made.
    pub high_bytes: Option<u64>,
    /// Down to as many bytes; the high mark when absent.
    pub low_bytes: Option<u64>,
    /// Beyond as many files, directories and others.
    pub high_inodes: Option<u64>,
    /// Down to as many; the high mark when absent.
    pub low_inodes: Option<u64>,
    /// How long an image that was pulled, tagged or used last stays in any case: whoever asked for it may be about to use it.
    pub minimum_age: Duration,
}

impl Watermarks {
    /// Whether there is nothing to watch for.
    pub fn is_none(&self) -> bool {
        self.high_bytes.is_none() && self.high_inodes.is_none()
    }

    fn exceeded(&self, usage: Usage) -> bool {
        let over = |number: u64, mark: Option<u64>| mark.is_some_and(|mark| number > mark);
        over(usage.bytes, self.high_bytes) || over(usage.inodes, self.high_inodes)
    }

    fn reached(&self, usage: Usage) -> bool {
        let under =
            |number: u64, low: Option<u64>, high: Option<u64>| low.or(high).is_none_or(|mark| number <= mark);
        under(usage.bytes, self.low_bytes, self.high_bytes)
            && under(usage.inodes, self.low_inodes, self.high_inodes)
    }
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Images, names and layers.
    pub removed: Removed,
    /// What that gave back.
    pub amount: Usage,
}

/// Removes the images that `used` knows nothing of, and every leftover of failed work.
pub(crate) fn prune(
    store: &Inner,
    which: Unneeded,
    used: &dyn Fn(&Image) -> bool,
) -> Result<Reclaimed, Error> {
    let before = store.image_bytes();
    let mut removed = Removed::default();
    let unneeded =
        |image: &Image| (which == Unneeded::All || image.repo_tags.is_empty()) && is_unneeded(image, used);
    for image in store.catalog.images() {
        if unneeded(&image) {
            add(&mut removed, give_up(store, &image, &unneeded)?);
        }
    }
    let removed = store.sweep(removed)?;
    Ok(Reclaimed { removed, amount: less(before, store.image_bytes()) })
}

/// Makes room if a mark is exceeded.
pub(crate) fn make_room(
    store: &Inner,
    marks: &Watermarks,
    used: &dyn Fn(&Image) -> bool,
) -> Result<Reclaimed, Error> {
    let before = store.image_bytes();
    if !marks.exceeded(before) {
        return Ok(Reclaimed::default());
    }
    // Leftovers first: nobody will miss them.
    let mut removed = store.sweep(Removed::default())?;
    let unneeded = |image: &Image| is_unneeded(image, used);
    let mut candidates = store.catalog.images();
    candidates.retain(|image| unneeded(image));
    let last_used =
        |image: &Image| store.snapshots.last_use(image.chain_id()).max(image.tagged_at).unwrap_or(i64::MIN);
    let age = i64::try_from(marks.minimum_age.as_nanos()).unwrap_or(i64::MAX);
    let newest = now().saturating_sub(age);
    candidates.retain(|image| last_used(image) <= newest);
    candidates.sort_by_key(|image| last_used(image));
    for image in candidates {
        if marks.reached(store.image_bytes()) {
            break;
        }
        let gone = give_up(store, &image, &unneeded)?;
        add(&mut removed, store.sweep(gone)?);
    }
    Ok(Reclaimed { removed, amount: less(before, store.image_bytes()) })
}

fn is_unneeded(image: &Image, used: &dyn Fn(&Image) -> bool) -> bool {
    !image.pinned && !used(image)
}

/// Removes an image that nobody holds and that still is unneeded.
fn give_up(store: &Inner, image: &Image, unneeded: &dyn Fn(&Image) -> bool) -> Result<Removed, Error> {
    store.leases.with_held(|held| {
        let free = |image: &Image| !held(&image.id) && !held(&image.manifest) && unneeded(image);
        Ok(store.catalog.remove_if(&image.id, free)?)
    })
}

fn add(removed: &mut Removed, more: Removed) {
    removed.untagged.extend(more.untagged);
    removed.deleted.extend(more.deleted);
}

fn less(before: Usage, after: Usage) -> Usage {
    Usage {
        bytes: before.bytes.saturating_sub(after.bytes),
        inodes: before.inodes.saturating_sub(after.inodes),
    }
}

#[cfg(test)]
mod tests;
