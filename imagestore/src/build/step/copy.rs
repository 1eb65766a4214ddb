//! COPY and ADD, from the context, a stage, an image, a URL or the Dockerfile itself.

use std::{os::fd::AsFd, sync::Arc};

use rustix::fs::{FileType, Mode};
use tokio_util::sync::CancellationToken;

use super::{Done, Failed, Feed, Listener, Site, Task, blocking};
use crate::{
    Digest,
    build::{
        Copy, Error, Origin, Source,
        cache::Key,
        now,
        pad::{self, View},
        single::{Content, Single},
        transfer::{self, Changes, Destination, Pick, Wanted, archive, owner},
        tree::{Directory, Tree},
    },
    gc::Lease,
    image::Layer,
};

/// Of files that come by a URL.
const FETCHED: u32 = 0o600;
/// Of documents of the Dockerfile.
const INLINE: u32 = 0o644;

/// One source, found.
#[derive(Clone)]
struct Material {
    files: Files,
    picks: Arc<Vec<Pick>>,
    /// Whether an archive is unpacked.
    unpack: bool,
}

/// Where found files are.
#[derive(Clone)]
enum Files {
    Tree(Arc<dyn Tree>),
    View(Arc<View>),
}

impl Files {
    fn tree(&self) -> &dyn Tree {
        match self {
            Files::Tree(tree) => &**tree,
            Files::View(view) => view.tree(),
        }
    }
}

impl Site {
    pub(super) async fn copy(
        self: &Arc<Self>,
        task: &Task<'_>,
        copy: &Copy,
        listener: Listener,
    ) -> Result<Done, Failed> {
        // The files of a stage are the same as long as its chain is: no look at them is needed to know that.
        let chain = task.chain(&copy.from).map(ToString::to_string);
        let quick = chain.map(|chain| {
            let mut key = self.copy_key(task, copy);
            key.add("from", chain);
            for source in &copy.sources {
                key.add("source", format!("{source:?}"));
            }
            key.add("exclude", format!("{:?}", copy.exclude));
            key.digest()
        });
        if let Some(quick) = &quick
            && let Some(done) = self.cached(task, quick).await?
        {
            return Ok(done);
        }
        let materials = self.gather(task, copy).await?;
        if materials.iter().all(|material| material.picks.is_empty()) {
            return Err(Error::Missing(
                "there is nothing to copy: all sources together match no file".into(),
            )
            .into());
        }
        let (key, materials) = {
            let key = self.copy_key(task, copy);
            let sources = copy.sources.clone();
            blocking(move || contents(key, &sources, &materials).map(|key| (key, materials))).await?
        };
        if let Some(done) = self.cached(task, &key.digest()).await? {
            if let Some(quick) = &quick {
                self.builder.cache.alias(quick, &key.digest());
            }
            return Ok(done);
        }
        let (site, copy, parent) = (self.clone(), copy.clone(), task.parent().cloned());
        let work = move |_: Arc<Feed>, _: CancellationToken| async move {
            blocking(move || site.place(parent.as_ref(), &copy, &materials)).await
        };
        self.fly(task, &key, quick.as_ref(), listener, work).await
    }

    /// What counts beside the files themselves.
    fn copy_key(&self, task: &Task<'_>, copy: &Copy) -> Key {
        let named = copy.owner.as_deref().is_some_and(owner::has_names);
        // An independent layer is the same on whatever it stands.
        let independent = copy.link && !named;
        let nothing = Task { layers: &[], ..*task };
        let mut key = self.key(if independent { &nothing } else { task }, "COPY");
        key.add("destination", &*copy.destination);
        key.add("owner", copy.owner.clone().unwrap_or_default());
        key.add("mode", copy.mode.as_ref().map(|mode| format!("{mode:?}")).unwrap_or_default());
        key.add("flags", format!("{:?}", (copy.add, copy.link, copy.parents)));
        key
    }

    /// Finds the files, and has those sent and fetched that are not here.
    async fn gather(self: &Arc<Self>, task: &Task<'_>, copy: &Copy) -> Result<Vec<Material>, Failed> {
        let mut place: Option<Files> = None;
        let mut materials = Vec::with_capacity(copy.sources.len());
        for source in &copy.sources {
            match source {
                Source::Path { pivot, path, unpack } => {
                    let files = match &place {
                        Some(files) => files.clone(),
                        None => self.origin(task, &copy.from).await?,
                    };
                    place = Some(files.clone());
                    let (exclude, parents) = (copy.exclude.clone(), copy.parents);
                    let (pivot, path, found) = (pivot.clone(), path.clone(), files.clone());
                    let where_from = called(&copy.from);
                    let picks = blocking(move || {
                        let mut picks = Vec::new();
                        let wanted =
                            Wanted { path: &path, pivot: pivot.as_deref(), parents, exclude: &exclude };
                        transfer::select(found.tree(), &wanted, &where_from, &mut picks).map(|()| picks)
                    })
                    .await?;
                    if copy.from == Origin::Context {
                        self.context.fetch(picks.iter().map(|pick| &*pick.from)).await?;
                    }
                    materials.push(Material { files, picks: Arc::new(picks), unpack: *unpack });
                }
                Source::Url { url, name, unpack, checksum } => {
                    let checksum: Option<Digest> = match checksum {
                        Some(text) => {
                            Some(text.parse().map_err(|error: crate::digest::ParseError| {
                                Error::Invalid(error.to_string())
                            })?)
                        }
                        None => None,
                    };
                    let files = &self.builder.files;
                    let fetched = self.builder.fetcher.fetch(files, url, checksum.as_ref()).await?;
                    let content = Content::Kept(files.clone(), fetched.digest);
                    let single = (FETCHED, fetched.size, fetched.modified);
                    materials.push(material(name, single, content, *unpack)?);
                }
                Source::Inline { name, content } => {
                    let bytes = content.clone().into_bytes();
                    let single = (INLINE, bytes.len() as u64, now() / 1_000_000_000);
                    materials.push(material(name, single, Content::Bytes(bytes), false)?);
                }
            }
        }
        Ok(materials)
    }

    /// The tree that paths of an origin lead into.
    async fn origin(self: &Arc<Self>, task: &Task<'_>, origin: &Origin) -> Result<Files, Failed> {
        if *origin == Origin::Context {
            return Ok(Files::Tree(self.context.clone()));
        }
        match task.chain(origin).cloned() {
            Some(chain) => {
                let site = self.clone();
                Ok(Files::View(Arc::new(blocking(move || site.view(&chain, false)).await?)))
            }
            None => Ok(Files::Tree(Arc::new(crate::build::Context::empty(self.builder.files.clone())))),
        }
    }

    /// Puts the files where they belong, and makes a layer of that.
    fn place(
        &self,
        parent: Option<&crate::ChainId>,
        copy: &Copy,
        materials: &[Material],
    ) -> Result<(Option<Layer>, Lease), Failed> {
        let mut pad = self.pad(parent)?;
        let named = copy.owner.as_deref().is_some_and(owner::has_names);
        let mut changes = Changes { mode: copy.mode.clone(), ..Changes::default() };
        if let Some(text) = &copy.owner {
            let files = if named { pad::open(&pad.mount()?)? } else { pad.upper()? };
            changes.owner = Some(owner::resolve_owner(&Directory::new(files), text)?);
        }
        // On its own, a layer is made in the directory that is on top; what is below is not seen, and no link of it followed.
        let root = if copy.link {
            pad.unmount()?;
            pad.upper()?
        } else if named {
            pad::open(&pad.merged()?)?
        } else {
            pad::open(&pad.mount()?)?
        };
        let alone = materials.iter().flat_map(|material| &*material.picks).filter(|pick| pick.alone).count();
        let several = alone > 1 || materials.len() > 1 || copy.parents;
        let directory = format!("{}/", copy.destination.trim_end_matches('/'));
        let path = if several { &directory } else { &copy.destination };
        for material in materials {
            let mut plain = Vec::with_capacity(material.picks.len());
            for pick in &*material.picks {
                if !(material.unpack && self.unpack(material, pick, root.as_fd(), &directory, &changes)?) {
                    plain.push(pick.clone());
                }
            }
            let destination = Destination { root: root.as_fd(), path };
            transfer::place(material.files.tree(), &plain, &destination, &changes)?;
        }
        drop(root);
        self.keep(pad, &[])
    }

    /// Unpacks a file that is an archive below the destination; false if it is none.
    fn unpack(
        &self,
        material: &Material,
        pick: &Pick,
        root: std::os::fd::BorrowedFd<'_>,
        directory: &str,
        changes: &Changes,
    ) -> Result<bool, Error> {
        if !pick.alone || pick.node.kind != FileType::RegularFile {
            return Ok(false);
        }
        let Some(tar) = archive::open(material.files.tree().open(&pick.from)?, &pick.from)? else {
            return Ok(false);
        };
        let temporary = self.builder.files.directory()?;
        let unpacked = pad::open(temporary.path())?;
        // What the destination will be if it is not there, unless the archive tells of its own root.
        rustix::fs::fchmod(&unpacked, Mode::from(0o755)).map_err(Error::io("fchmod", b"an archive"))?;
        archive::unpack(tar, unpacked.as_fd(), &pick.from)?;
        let tree = Directory::new(pad::open(temporary.path())?);
        let mut picks = Vec::new();
        let wanted = Wanted { path: "/", pivot: None, parents: false, exclude: &[] };
        transfer::select(&tree, &wanted, "the archive", &mut picks)?;
        let changes = Changes { replace: true, ..changes.clone() };
        transfer::place(&tree, &picks, &Destination { root, path: directory }, &changes)?;
        Ok(true)
    }
}

fn material(
    name: &str,
    (mode, size, mtime): (u32, u64, i64),
    content: Content,
    unpack: bool,
) -> Result<Material, Error> {
    let tree = Single { name: name.as_bytes().to_vec(), mode, size, mtime, content };
    let node = tree.look(name.as_bytes())?.filter(|node| node.kind == FileType::RegularFile);
    let node = node.filter(|_| !name.contains('/') && !matches!(name, "" | "." | ".."));
    let node = node.ok_or_else(|| Error::Invalid(format!("{name:?} is no name of a file")))?;
    let name = name.as_bytes().to_vec();
    let picks = vec![Pick { from: name.clone(), to: name, node, alone: true }];
    Ok(Material { files: Files::Tree(Arc::new(tree)), picks: Arc::new(picks), unpack })
}

/// Adds what the files count for.
fn contents(mut key: Key, sources: &[Source], materials: &[Material]) -> Result<Key, Error> {
    for (number, (source, material)) in sources.iter().zip(materials).enumerate() {
        let print = transfer::fingerprint(material.files.tree(), &material.picks)?;
        let unpacked = if material.unpack { " unpacked" } else { "" };
        let name = match source {
            Source::Path { path, .. } => path,
            Source::Url { name, .. } => name,
            Source::Inline { name, .. } => name,
        };
        key.add(&format!("content of {name} ({number})"), format!("{}{unpacked}", hex::encode(print)));
    }
    Ok(key)
}

/// An origin, in messages.
pub(super) fn called(origin: &Origin) -> String {
    match origin {
        Origin::Context => "the build's context".to_owned(),
        Origin::Stage(stage) => format!("stage {stage}"),
        Origin::Image(name) => format!("the image {name}"),
        Origin::Scratch => "scratch".to_owned(),
    }
}
