//! One step: is it in the cache, is somebody at it, and what does it make.
//!
//! ```text
//!  inputs by name ─▶ quick key ── found ─────────────────────────▶ Done, cached
//!       │ not found: look at the contents of stages that it reads
//!       ▼
//!  inputs by content ─▶ key ── found ── the quick key becomes an alias ─▶ Done, cached
//!       │ not found
//!       ▼
//!  flight(key): snapshot ─ copy, make, run ─ layer ─ record ─▶ Done
//! ```
//!
//! A parent counts by its chain, which is its content, so a record can never stand on something else than it was made on.
//! Work in flight belongs to everybody who asks for the same; it ends when the last of them is gone.

mod copy;
mod run;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Context, Directory, Error, Network, Origin, Output, Runner, Work,
    builder::Inner,
    cache::{Key, Record},
    now,
    pad::{Pad, View},
    transfer, tree,
};
use crate::{ChainId, DiffOptions, Digest, gc::Lease, image::Layer, pull, snapshot::Access};

/// What all steps of a build share.
pub(super) struct Site {
    pub(super) builder: Arc<Inner>,
    pub(super) runner: Arc<dyn Runner>,
    pub(super) context: Arc<Context>,
    pub(super) secrets: BTreeMap<String, Arc<Vec<u8>>>,
    /// Names the build; fit for file names.
    pub(super) id: String,
    pub(super) platform: String,
    /// What times are cut off at, in seconds since 1970.
    pub(super) epoch: Option<i64>,
    pub(super) network: Network,
    pub(super) hostname: String,
    pub(super) hosts: Vec<(String, IpAddr)>,
    pub(super) memory: i64,
    pub(super) cpu_millis: i64,
    pub(super) no_cache: bool,
    pub(super) explain: bool,
    pub(super) debug: bool,
    pub(super) next: AtomicU64,
}

/// A step with what it stands on.
#[derive(Clone, Copy)]
pub(super) struct Task<'t> {
    /// From the lowest to the uppermost.
    pub(super) layers: &'t [Layer],
    pub(super) title: &'t str,
    /// What the origins of the step have come to, as layers; the context is not among them.
    pub(super) places: &'t [(Origin, Vec<Layer>)],
}

impl Task<'_> {
    fn parent(&self) -> Option<&ChainId> {
        self.layers.last().map(|layer| &layer.chain_id)
    }

    /// The chain that an origin has come to; none for nothing at all.
    fn chain(&self, origin: &Origin) -> Option<&ChainId> {
        let (_, layers) = self.places.iter().find(|(place, _)| place == origin)?;
        layers.last().map(|layer| &layer.chain_id)
    }
}

/// What a step has come to.
#[derive(Clone, Debug)]
pub(super) struct Done {
    /// What it adds; none when it changes nothing.
    pub(super) layer: Option<Layer>,
    /// When it was made, in nanoseconds since 1970.
    pub(super) created: i64,
    pub(super) cached: bool,
    /// Why it was not cached, if that was asked for.
    pub(super) explanation: String,
    /// Keeps the layer until an image has it.
    pub(super) lease: Arc<Lease>,
}

/// Why a step failed, and what it left.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub(super) struct Failed {
    #[source]
    pub(super) error: Error,
    /// The layer of what a command left that failed.
    pub(super) wreck: Option<Arc<(Option<Layer>, Lease)>>,
    pub(super) explanation: String,
}

impl<E: Into<Error>> From<E> for Failed {
    fn from(error: E) -> Failed {
        Failed { error: error.into(), wreck: None, explanation: String::new() }
    }
}

/// Who is told what a step says, some pieces at a time.
pub(super) type Listener = mpsc::Sender<Vec<Output>>;

/// What those who wait for a step share with it.
#[derive(Debug, Default)]
pub(super) struct Feed(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    listeners: Vec<Listener>,
    before: Vec<Output>,
    bytes: usize,
    /// Bytes that whoever joins now does not hear.
    missed: usize,
}

impl Feed {
    /// What whoever joins late is told of what was said before.
    const BEFORE: usize = 4 << 20;
    /// A listener that takes nothing for this long gets no more.
    const PATIENCE: Duration = Duration::from_secs(10);

    fn listen(&self, listener: Listener) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = heard.before.clone();
        if heard.missed > 0 {
            let data = format!("[{} bytes were said before this build joined]\n", heard.missed);
            before.push(Output { stderr: true, data: data.into_bytes(), time: now() });
        }
        // Nothing is on its way to a listener that is new, so there is room.
        if !before.is_empty() {
            let _ = listener.try_send(before);
        }
        heard.listeners.push(listener);
    }

    async fn tell(&self, output: Output) {
        let listeners = {
            let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if heard.bytes < Feed::BEFORE {
                heard.bytes += output.data.len();
                heard.before.push(output.clone());
            } else {
                heard.missed += output.data.len();
            }
            heard.listeners.clone()
        };
        for listener in listeners {
            if listener.send_timeout(vec![output.clone()], Feed::PATIENCE).await.is_err() {
                let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                heard.listeners.retain(|other| !other.same_channel(&listener));
            }
        }
    }

    /// No more is said.
    fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).listeners.clear();
    }
}

/// What flights are about; a build that wants its steps for itself adds a number of its own.
pub(super) type Flight = (Digest, u64);
/// How they end.
pub(super) type Landing = Result<(Arc<Record>, Arc<Lease>), Failed>;

impl Site {
    /// Brings a step about. Its output, if it has any, goes to `listener`.
    pub(super) async fn perform(
        self: &Arc<Self>,
        task: &Task<'_>,
        work: &Work,
        listener: Listener,
    ) -> Result<Done, Failed> {
        match work {
            Work::Run(run) => self.run(task, run, listener).await,
            Work::Copy(copy) => self.copy(task, copy, listener).await,
            Work::Directory(directory) => self.directory(task, directory, listener).await,
            Work::Metadata => Err(Error::Invalid("a step without work makes nothing".into()).into()),
        }
    }

    /// WORKDIR.
    async fn directory(
        self: &Arc<Self>,
        task: &Task<'_>,
        directory: &Directory,
        listener: Listener,
    ) -> Result<Done, Failed> {
        let mut key = self.key(task, "WORKDIR");
        key.add("directory", &*directory.path);
        key.add("user", &*directory.user);
        if let Some(done) = self.cached(task, &key.digest()).await? {
            return Ok(done);
        }
        let (site, directory, parent) = (self.clone(), directory.clone(), task.parent().cloned());
        let work = move |_: Arc<Feed>, _: CancellationToken| async move {
            blocking(move || {
                let mut pad = site.pad(parent.as_ref())?;
                let root = super::pad::open(&pad.mount()?)?;
                let tree = tree::Directory::new(root.try_clone().map_err(Error::io("dup", b""))?);
                let owner = transfer::owner::resolve_owner(&tree, &directory.user)?;
                drop(tree);
                let made = {
                    use std::os::fd::AsFd;
                    transfer::make_directory(root.as_fd(), &directory.path, owner)?
                };
                drop(root);
                if made { site.keep(pad, &[]) } else { Ok((None, site.lease())) }
            })
            .await
        };
        self.fly(task, &key, None, listener, work).await
    }

    /// The beginning of every key: what the step stands on.
    fn key(&self, task: &Task<'_>, kind: &str) -> Key {
        let mut key = Key::default();
        key.add("kind", kind);
        key.add("parent", task.parent().map(ToString::to_string).unwrap_or_default());
        key.add("platform", &*self.platform);
        key.add("epoch", self.epoch.map(|epoch| epoch.to_string()).unwrap_or_default());
        key
    }

    /// What the cache has for a key, on what the task stands on.
    async fn cached(self: &Arc<Self>, task: &Task<'_>, key: &Digest) -> Result<Option<Done>, Failed> {
        let Some((record, lease)) = self.landed(key) else { return Ok(None) };
        self.done(task, &record, lease, true, String::new()).await.map(Some)
    }

    /// What the cache has for a key, held.
    fn landed(&self, key: &Digest) -> Option<(Arc<Record>, Arc<Lease>)> {
        if self.no_cache {
            return None;
        }
        // Held before it is looked for: nothing goes in between.
        let record = self.builder.cache.find(key)?;
        let names = record.layer.iter().flat_map(Layer::names).collect();
        let lease = Arc::new(self.builder.store.leases.take(names));
        let record = self.builder.cache.find(&record.key)?;
        Some((record, lease))
    }

    /// A record as the result of a task. One that was made on something else is put on what the task stands on.
    async fn done(
        self: &Arc<Self>,
        task: &Task<'_>,
        record: &Arc<Record>,
        lease: Arc<Lease>,
        cached: bool,
        explanation: String,
    ) -> Result<Done, Failed> {
        let mut layer = record.layer.clone();
        if let Some(layer) = &mut layer
            && record.parent.as_ref() != task.parent()
        {
            layer.chain_id = match task.parent() {
                Some(parent) => parent.child(&layer.diff_id),
                None => ChainId::base(&layer.diff_id),
            };
            let lease = self.builder.store.leases.take(layer.names().to_vec());
            let layers: Vec<Layer> = task.layers.iter().chain([&*layer]).cloned().collect();
            let store = self.builder.store.clone();
            blocking(move || pull::restore(&store.content, &store.snapshots, &layers))
                .await
                .map_err(|error| Error::from(crate::commit::Error::Image(error)))?;
            return Ok(Done {
                layer: Some(layer.clone()),
                created: record.created,
                cached,
                explanation,
                lease: Arc::new(lease),
            });
        }
        Ok(Done { layer, created: record.created, cached, explanation, lease })
    }

    /// Does the work of a key once for all who want it now. `quick` is another key that means the same.
    async fn fly<F, W>(
        self: &Arc<Self>,
        task: &Task<'_>,
        key: &Key,
        quick: Option<&Digest>,
        listener: Listener,
        work: W,
    ) -> Result<Done, Failed>
    where
        F: Future<Output = Result<(Option<Layer>, Lease), Failed>> + Send + 'static,
        W: FnOnce(Arc<Feed>, CancellationToken) -> F + Send + 'static,
    {
        let digest = key.digest();
        let explanation = match (self.explain, self.no_cache) {
            (false, _) => String::new(),
            (true, true) => "--no-cache was asked for".to_owned(),
            (true, false) => self.builder.cache.explain(key, task.title),
        };
        let own = if self.no_cache || self.debug {
            self.builder.next.fetch_add(1, Ordering::Relaxed) + 1
        } else {
            0
        };
        let (site, record_key) = (self.clone(), key.clone());
        let (parent, title) = (task.parent().cloned(), task.title.to_owned());
        let start = move |feed: Arc<Feed>, token: CancellationToken| async move {
            // Somebody else's flight may have landed since the cache was looked into.
            if let Some(landed) = site.landed(&record_key.digest()) {
                return Ok(landed);
            }
            let ended = work(feed.clone(), token).await;
            feed.close();
            let (layer, lease) = ended?;
            let size =
                layer.as_ref().and_then(|layer| site.builder.store.snapshots.layer_usage(&layer.chain_id));
            let now = now();
            let record = Record {
                key: record_key.digest(),
                parent,
                layer,
                created: now,
                used: now,
                title,
                size: size.map_or(0, |usage| usage.bytes),
                parts: Vec::new(),
                aliases: Vec::new(),
            };
            let record = blocking(move || site.builder.cache.put(&record_key, record)).await;
            Ok((record, Arc::new(lease)))
        };
        let join = |feed: &Feed| feed.listen(listener);
        let landed = self.builder.flights.run((digest.clone(), own), join, start).await;
        let lost = || {
            Failed::from(Error::Invalid("the step came to no end; that is a mistake of the builder".into()))
        };
        let (record, lease) = landed
            .unwrap_or_else(|| Err(lost()))
            .map_err(|failed| Failed { explanation: explanation.clone(), ..failed })?;
        if let Some(quick) = quick {
            self.builder.cache.alias(quick, &digest);
        }
        self.done(task, &record, lease, false, explanation).await
    }

    /// A snapshot to work in.
    fn pad(&self, parent: Option<&ChainId>) -> Result<Pad, Error> {
        Pad::new(&self.builder.store, &self.runner, self.name(), parent, Access::Volatile)
    }

    /// The files of a chain.
    fn view(&self, chain: &ChainId, writable: bool) -> Result<View, Error> {
        View::new(&self.builder.store, &self.runner, self.name(), chain, writable)
    }

    /// A name that nothing else has.
    fn name(&self) -> String {
        format!("build-{}-{}", self.id, self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn lease(&self) -> Lease {
        self.builder.store.leases.take(Vec::new())
    }

    /// Makes a layer of what was written.
    fn keep(
        &self,
        mut pad: Pad,
        mount_points: &[std::path::PathBuf],
    ) -> Result<(Option<Layer>, Lease), Failed> {
        let mut lease = self.lease();
        let options = DiffOptions { mount_points: mount_points.to_vec(), latest: self.epoch };
        let layer = pad.commit(&options, &mut lease)?;
        Ok((layer, lease))
    }
}

/// Runs what blocks where it holds nobody up.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
