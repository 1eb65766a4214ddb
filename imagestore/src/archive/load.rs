//! Loading: one pass over a tar whose documents may come last.
//!
//! Every file that could be a blob is stored under the digest of its bytes and held by a lease; when the tar has ended,
//! the documents that are in it say which of them belong together. What nobody names is collected afterwards. Names
//! of entries are keys of a table here and never paths of a file system.

use std::{
    collections::HashMap,
    io::{BufReader, Read},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::json;
use tar::{Archive, Entry, EntryType};

use super::{BLOBS, CONTAINERD_NAME, Error, INDEX, LAYOUT, MANIFEST, OCI_NAME};
use crate::{
    Digest, Image, Platform, Reference,
    assemble::assemble_within,
    content,
    gc::Lease,
    manifest::{self, Document, MAX_DOCUMENT, OCI_MANIFEST},
    pull::{self, Allowance, Counted},
    store::Inner,
};

/// More files than any archive of images has.
const ENTRIES: usize = 100_000;
/// Of links that lead to links.
const LINKS: usize = 8;

/// An image that an archive held.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The image.
    pub image: Arc<Image>,
    /// The names that the archive gave it, normalised.
    pub names: Vec<String>,
}

/// Reads an archive to its end and enters its images.
pub(crate) fn load(store: &Arc<Inner>, input: impl Read + Send) -> Result<Vec<Loaded>, Error> {
    // What the whole archive unpacks to is bounded by how much of it came, wherever in it something swells.
    let received = Allowance::of(0);
    let loaded = Contents::read(store, input, &received).and_then(|contents| {
        let layers = Allowance::of(received.compressed());
        contents.images(store, &layers)
    });
    // Leftovers: blobs that no document names, or all of them after a failure. What is loaded holds itself by now.
    if let Err(error) = store.collect() {
        tracing::warn!(%error, "leftovers of a load stay until the next collection");
    }
    loaded
}

/// What an archive holds.
struct Contents {
    documents: HashMap<String, Vec<u8>>,
    /// Of each file that was stored.
    files: HashMap<String, (Digest, u64)>,
    /// Docker's older archives have a layer once and link to it.
    links: HashMap<String, String>,
    lease: Lease,
}

/// An entry of a layout's index.
#[derive(Deserialize)]
struct Described {
    digest: Digest,
    #[serde(default)]
    annotations: HashMap<String, String>,
    platform: Option<Platform>,
}

impl Described {
    /// The name of the image. containerd's annotation has all of it; the specification's has that, or no more than a
    /// tag, which is no name.
    fn name(&self) -> Option<Reference> {
        let whole = self.annotations.get(CONTAINERD_NAME);
        let name =
            whole.or_else(|| self.annotations.get(OCI_NAME).filter(|name| name.contains([':', '/'])))?;
        readable(name)
    }
}

/// An image whose name is none is loaded without it: it can be had by its id.
fn readable(name: &str) -> Option<Reference> {
    match name.parse() {
        Ok(reference) => Some(reference),
        Err(error) => {
            tracing::warn!(name, %error, "archive has an image with a name that is none");
            None
        }
    }
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Described>,
}

/// An image of a Docker archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// What is to be entered: two documents and their names.
struct Found {
    manifest: Vec<u8>,
    config: Vec<u8>,
    names: Vec<Reference>,
}

impl Contents {
    fn read(store: &Arc<Inner>, input: impl Read + Send, received: &Allowance) -> Result<Contents, Error> {
        let failed = |source| Error::Read { source };
        let input = BufReader::with_capacity(1 << 18, input);
        let mut input = Counted { inner: input, allowance: received };
        let mut tar = Archive::new(pull::inflated(&mut input, received).map_err(failed)?);
        let mut contents = Contents {
            documents: HashMap::new(),
            files: HashMap::new(),
            links: HashMap::new(),
            lease: store.leases.take(Vec::new()),
        };
        for (number, entry) in tar.entries().map_err(failed)?.enumerate() {
            if number >= ENTRIES {
                return Err(Error::TooMany { limit: ENTRIES });
            }
            contents.take(store, entry.map_err(failed)?)?;
        }
        Ok(contents)
    }

    fn take<R: Read>(&mut self, store: &Arc<Inner>, mut entry: Entry<'_, R>) -> Result<(), Error> {
        let failed = |source| Error::Read { source };
        let path = clean(&String::from_utf8_lossy(&entry.path_bytes()));
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            let target = entry.link_name_bytes().unwrap_or_default();
            let target = String::from_utf8_lossy(&target).into_owned();
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let target =
                if kind == EntryType::Link { clean(&target) } else { clean(&format!("{folder}/{target}")) };
            self.links.insert(path, target);
            return Ok(());
        }
        if !matches!(kind, EntryType::Regular | EntryType::Continuous) {
            return Ok(());
        }
        match path.as_str() {
            LAYOUT | INDEX | MANIFEST => {
                let mut bytes = Vec::new();
                entry.take(MAX_DOCUMENT).read_to_end(&mut bytes).map_err(failed)?;
                self.documents.insert(path, bytes);
                return Ok(());
            }
            // What only docker before 1.10 read.
            "repositories" => return Ok(()),
            _ if path.ends_with("/VERSION") || path.ends_with("/json") => return Ok(()),
            _ => {}
        }
        let mut ingest = store.content.ingest()?;
        std::io::copy(&mut entry, &mut ingest).map_err(failed)?;
        let (digest, size) = (ingest.digest(), ingest.size());
        if size < entry.size() {
            let text = format!("it ends inside {path}");
            return Err(failed(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, text)));
        }
        if let Some(hex) = path.strip_prefix(BLOBS)
            && let Ok(named) = format!("sha256:{hex}").parse::<Digest>()
        {
            ingest.verify(&named, size)?;
        }
        // Whatever it is, layer or document: a collection leaves it alone until it is known.
        self.lease.hold([digest.clone()]);
        if store.content.size(&digest) != Some(size) {
            ingest.commit(&digest, size)?;
        }
        self.files.insert(path, (digest, size));
        Ok(())
    }

    fn images(mut self, store: &Arc<Inner>, allowance: &Allowance) -> Result<Vec<Loaded>, Error> {
        let mut found: Vec<Found> = Vec::new();
        if let Some(index) = self.documents.remove(INDEX) {
            let index: Index = parse(INDEX, &index)?;
            for described in &index.manifests {
                self.described(store, described, &mut found)?;
            }
        }
        if let Some(list) = self.documents.remove(MANIFEST) {
            let list: Vec<DockerImage> = parse(MANIFEST, &list)?;
            for image in list {
                self.docker(store, image, &mut found)?;
            }
        }
        if found.is_empty() {
            return Err(Error::NoImage);
        }
        let enter = |found: Found| {
            let names = found.names.iter().map(Reference::to_string).collect();
            let documents = (&found.manifest[..], &found.config[..]);
            let image = assemble_within(store, documents, &found.names, Some(allowance))?;
            Ok(Loaded { image, names })
        };
        found.into_iter().map(enter).collect()
    }

    /// An image of the layout, or the one of an index in it that suits this machine.
    fn described(&self, store: &Inner, described: &Described, found: &mut Vec<Found>) -> Result<(), Error> {
        let own = &store.options.platform;
        if described.platform.as_ref().is_some_and(|platform| !own.runs(platform)) {
            return Ok(());
        }
        let mut digest = described.digest.clone();
        for _ in 0..=2 {
            let bytes = store.content.read(&digest, MAX_DOCUMENT)?;
            let error = |source| pull::Error::Manifest { digest: digest.clone(), source };
            match manifest::parse(&bytes, None).map_err(error)? {
                Document::Index(index) => {
                    digest = manifest::select(&index, own).map_err(error)?.digest.clone();
                }
                Document::Manifest(manifest) => {
                    let config = store.content.read(&manifest.config.digest, MAX_DOCUMENT)?;
                    for layer in &manifest.layers {
                        let digest = &layer.digest;
                        store
                            .content
                            .size(digest)
                            .ok_or(content::Error::Missing { digest: digest.clone() })?;
                    }
                    let names = described.name().into_iter().collect();
                    add(found, Found { manifest: bytes, config, names });
                    return Ok(());
                }
            }
        }
        Err(pull::Error::Manifest { digest, source: manifest::Error::Nested }.into())
    }

    /// An image of a Docker archive, which has no manifest: it gets one that names the layers as they are here.
    fn docker(&self, store: &Inner, image: DockerImage, found: &mut Vec<Found>) -> Result<(), Error> {
        let names = image.repo_tags.unwrap_or_default();
        let names: Vec<Reference> = names.iter().filter_map(|name| readable(name)).collect();
        let (id, _) = self.file(&image.config)?;
        let config = store.content.read(&id, MAX_DOCUMENT)?;
        if let Some(known) = found.iter_mut().find(|known| known.config == config) {
            known.names.extend(names);
            known.names.sort();
            known.names.dedup();
            return Ok(());
        }
        let files = image.layers.unwrap_or_default();
        let files = files.iter().map(|path| self.file(path)).collect::<Result<Vec<_>, _>>()?;
        let layers = files
            .iter()
            .map(|(digest, size)| {
                let media_type = manifest::layer_type(&store.content, digest)?;
                Ok(json!({ "mediaType": media_type, "digest": digest, "size": size }))
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": manifest::OCI_CONFIG, "digest": id, "size": config.len() },
            "layers": layers,
        });
        add(found, Found { manifest: manifest.to_string().into_bytes(), config, names });
        Ok(())
    }

    fn file(&self, path: &str) -> Result<(Digest, u64), Error> {
        let mut name = clean(path);
        for _ in 0..LINKS {
            match (self.files.get(&name), self.links.get(&name)) {
                (Some(file), _) => return Ok(file.clone()),
                (None, Some(target)) => name = target.clone(),
                (None, None) => break,
            }
        }
        Err(Error::Missing { path: path.to_owned() })
    }
}

/// Images of one archive that are equal but for their names are one.
fn add(found: &mut Vec<Found>, image: Found) {
    match found.iter_mut().find(|known| known.manifest == image.manifest) {
        Some(known) => known.names.extend(image.names),
        None => found.push(image),
    }
}

fn parse<T: serde::de::DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Document { path: path.to_owned(), source })
}

/// `./a//b/../c` is `a/c`; nothing climbs above the top.
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}
