//! The catalog: every image of this node and the names it goes by, in memory and on disk.
//!
//! Readers see memory only. A change is on the disk before it is in memory, and changes happen one at a time.
//! A tag belongs to one image; when records disagree after a crash, the one written last is right.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use crate::{
    Digest, Error, Image, Reference,
    metadata::{self, Metadata, Record},
};

/// What removing an image or a name did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// Images and chains of layers that are gone.
    pub deleted: Vec<Digest>,
}

#[derive(Debug)]
pub(crate) struct Catalog {
    metadata: Metadata,
    state: RwLock<State>,
    /// The generation of the last record written; held while one is being written.
    writer: Mutex<u64>,
}

#[derive(Debug, Default)]
struct State {
    images: HashMap<Digest, Arc<Image>>,
    names: HashMap<String, Digest>,
    /// Names whose images removing unused ones spares.
    pinned: HashSet<String>,
}

impl State {
    fn insert(&mut self, mut image: Arc<Image>) {
        self.forget(&image.id);
        // Configured and not recorded: an image is pinned as long as its name is.
        let pinned = image.repo_tags.iter().chain(&image.repo_digests).any(|name| self.pinned.contains(name));
        if image.pinned != pinned {
            Arc::make_mut(&mut image).pinned = pinned;
        }
        for name in image.repo_tags.iter().chain(&image.repo_digests) {
            self.names.insert(name.clone(), image.id.clone());
        }
        self.images.insert(image.id.clone(), image);
    }

    fn forget(&mut self, id: &Digest) -> Option<Arc<Image>> {
        let image = self.images.remove(id)?;
        self.names.retain(|_, owner| owner != id);
        Some(image)
    }

    fn owner(&self, tag: &str) -> Option<&Arc<Image>> {
        self.images.get(self.names.get(tag)?)
    }
}

impl Catalog {
    /// Reads all records. `usable` says of each image whether what it is made of is here.
    pub(crate) fn open(
        root: &Path,
        pinned: &[Reference],
        usable: impl Fn(&Image) -> Result<(), String>,
    ) -> Result<(Catalog, Vec<String>), metadata::Error> {
        let metadata = Metadata::open(root)?;
        let (mut records, mut faults) = metadata.load()?;
        records.sort_by_key(|record| record.generation);
        let generation = records.last().map_or(0, |record| record.generation);
        let pinned = pinned.iter().map(Reference::to_string).collect();
        let mut state = State { pinned, ..State::default() };
        for Record { mut image, .. } in records {
            if let Err(fault) = usable(&image) {
                faults.push(format!("image {} is not usable: {fault}", image.id));
                continue;
            }
            for tag in &image.repo_tags {
                if let Some(former) = state.owner(tag).cloned() {
                    state.insert(Arc::new(without(&former, tag)));
                }
            }
            image.repo_tags.sort();
            state.insert(Arc::new(image));
        }
        Ok((Catalog { metadata, state: RwLock::new(state), writer: Mutex::new(generation) }, faults))
    }

    /// Every image.
    pub(crate) fn images(&self) -> Vec<Arc<Image>> {
        self.state().images.values().cloned().collect()
    }

    /// The image with this id.
    pub(crate) fn get(&self, id: &Digest) -> Option<Arc<Image>> {
        self.state().images.get(id).cloned()
    }

    /// The image that goes by a name, an id or the beginning of an id.
    pub(crate) fn find(&self, text: &str) -> Result<Option<Arc<Image>>, Error> {
        if let Some(hex) = text.strip_prefix("sha256:") {
            return self.find_id(hex, text);
        }
        if text.len() == 64 && is_hex(text) {
            return self.find_id(text, text);
        }
        match text.parse() {
            // A name wins over the beginning of an id, as with docker.
            Ok(reference) => match self.find_name(&reference) {
                None if is_hex(text) => self.find_id(text, text),
                found => Ok(found),
            },
            Err(error) => Err(Error::Reference(error)),
        }
    }

    /// The image that goes by exactly this name.
    pub(crate) fn find_name(&self, reference: &Reference) -> Option<Arc<Image>> {
        let state = self.state();
        let Some(digest) = reference.digest() else {
            return state.owner(&reference.to_string()).cloned();
        };
        let pinned = reference.with_digest(digest).to_string();
        if let Some(image) = state.owner(&pinned) {
            return Some(image.clone());
        }
        // The name led to an index, and this is the digest of the manifest that was chosen from it.
        let repository = format!("{}@", reference.repository());
        let known = |image: &&Arc<Image>| {
            image.manifest == *digest && image.repo_digests.iter().any(|name| name.starts_with(&repository))
        };
        state.images.values().find(known).cloned()
    }

    fn find_id(&self, hex: &str, text: &str) -> Result<Option<Arc<Image>>, Error> {
        if hex.is_empty() || hex.len() > 64 || !is_hex(hex) {
            return Err(Error::Reference(
                text.parse::<Reference>()
                    .err()
                    .unwrap_or_else(|| crate::reference::ParseError::new(text, "is not an image id")),
            ));
        }
        let state = self.state();
        let mut matching = state.images.values().filter(|image| image.id.hex().starts_with(hex));
        let first = matching.next().cloned();
        match matching.next() {
            Some(_) => Err(Error::Ambiguous { text: text.to_owned() }),
            None => Ok(first),
        }
    }

    /// Enters an image under the name it was pulled by, and takes the tag from whoever had it.
    pub(crate) fn enter(
        &self,
        image: Image,
        reference: &Reference,
        target: &Digest,
    ) -> Result<Arc<Image>, metadata::Error> {
        let mut generation = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.enter_locked(&mut generation, image, std::slice::from_ref(reference), Some(target))
    }

    /// Enters an image that no registry named, under these tags or none, and takes them from whoever had them.
    pub(crate) fn adopt(&self, image: Image, tags: &[Reference]) -> Result<Arc<Image>, metadata::Error> {
        let mut generation = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.enter_locked(&mut generation, image, tags, None)
    }

    /// Gives a known image one more tag, and takes it from whoever had it; `None` without such an image.
    pub(crate) fn tag(
        &self,
        id: &Digest,
        reference: &Reference,
    ) -> Result<Option<Arc<Image>>, metadata::Error> {
        let mut generation = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(image) = self.get(id) else { return Ok(None) };
        let image = (*image).clone();
        self.enter_locked(&mut generation, image, std::slice::from_ref(reference), None).map(Some)
    }

    fn enter_locked(
        &self,
        generation: &mut u64,
        mut image: Image,
        names: &[Reference],
        target: Option<&Digest>,
    ) -> Result<Arc<Image>, metadata::Error> {
        if let Some(known) = self.get(&image.id) {
            image.repo_tags.clone_from(&known.repo_tags);
            image.repo_digests.clone_from(&known.repo_digests);
            image.pinned = known.pinned;
            image.tagged_at = known.tagged_at;
        }
        for reference in names {
            image.add_name(reference, target);
            image.tagged_at = Some(now());
        }
        let image = self.write(generation, image)?;
        let others = |tag: &str| self.state().owner(tag).filter(|former| former.id != image.id).cloned();
        let tags: Vec<String> = names.iter().map(Reference::to_string).collect();
        let former: Vec<_> = tags.iter().filter_map(|tag| Some((tag, others(tag)?.id.clone()))).collect();
        // Memory first this time: the new record alone decides who has the tag, whatever becomes of the other.
        self.state_mut().insert(image.clone());
        for (tag, id) in former {
            let Some(former) = self.get(&id) else { continue };
            let former = without(&former, tag);
            let written = self.write(generation, former.clone()).unwrap_or_else(|error| {
                tracing::warn!(image.id = %former.id, %error, "record keeps a tag that moved away");
                Arc::new(former)
            });
            self.state_mut().insert(written);
        }
        Ok(image)
    }

    fn write(&self, generation: &mut u64, image: Image) -> Result<Arc<Image>, metadata::Error> {
        *generation += 1;
        let record = Record { generation: *generation, image };
        self.metadata.put(&record)?;
        Ok(Arc::new(record.image))
    }

    /// Removes an image with all its names.
    pub(crate) fn remove(&self, id: &Digest) -> Result<Removed, metadata::Error> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.remove_locked(id)
    }

    /// Removes an image if it still is what the caller takes it for.
    pub(crate) fn remove_if(
        &self,
        id: &Digest,
        unneeded: impl FnOnce(&Image) -> bool,
    ) -> Result<Removed, metadata::Error> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        match self.get(id) {
            Some(image) if unneeded(&image) => self.remove_locked(id),
            _ => Ok(Removed::default()),
        }
    }

    fn remove_locked(&self, id: &Digest) -> Result<Removed, metadata::Error> {
        // Also when memory has no such image: its record may be there and unusable.
        self.metadata.remove(id)?;
        let Some(image) = self.state_mut().forget(id) else { return Ok(Removed::default()) };
        let untagged = image.repo_tags.iter().chain(&image.repo_digests).cloned().collect();
        Ok(Removed { untagged, deleted: vec![id.clone()] })
    }

    /// Removes a name, and the image with its last one.
    pub(crate) fn untag(&self, reference: &Reference) -> Result<Removed, metadata::Error> {
        let mut generation = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(image) = self.find_name(reference) else { return Ok(Removed::default()) };
        let name = match reference.digest() {
            Some(digest) => reference.with_digest(digest).to_string(),
            None => reference.to_string(),
        };
        let mut left = (*image).clone();
        let mut untagged = Vec::new();
        let mut drop_names = |names: &mut Vec<String>, unwanted: &dyn Fn(&String) -> bool| {
            untagged.extend(names.iter().filter(|name| unwanted(name)).cloned());
            names.retain(|name| !unwanted(name));
        };
        drop_names(&mut left.repo_tags, &|known| *known == name);
        let (tag, digest) = (format!("{}:", reference.repository()), format!("{}@", reference.repository()));
        // The digests of a repository came with its tags and go with the last of them.
        let last = reference.digest().is_none() && !left.repo_tags.iter().any(|name| name.starts_with(&tag));
        drop_names(&mut left.repo_digests, &|known| *known == name || last && known.starts_with(&digest));
        if left.repo_tags.is_empty() && left.repo_digests.is_empty() {
            return self.remove_locked(&image.id);
        }
        let left = self.write(&mut generation, left)?;
        self.state_mut().insert(left);
        Ok(Removed { untagged, deleted: Vec::new() })
    }

    fn state(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn without(image: &Image, tag: &str) -> Image {
    let mut image = image.clone();
    image.repo_tags.retain(|known| known != tag);
    image
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests;
