//! The builder: what builds share, and the way into one.

use std::{
    collections::{BTreeMap, HashMap},
    fs::DirBuilder,
    io::Write,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64},
    },
};

use tokio::sync::{Semaphore, mpsc};

use super::{
    Context, Error, Event, Failure, Network, Options, Runner, Telling,
    cache::Cache,
    context::{Memory, Sent, look},
    fetch::Fetcher,
    files::{Files, Writer},
    mounts::Mounts,
    now,
    solve::{self, Built},
    step::{Feed, Flight, Landing},
};
use crate::{Auth, Reference, Store, pull::Flights, store};

/// How a builder goes about things.
#[derive(Clone, Debug)]
pub struct BuilderOptions {
    /// How many commands run at a time.
    pub parallel: usize,
    /// Bytes that the cache may take before what was used longest ago goes; cache mounts included.
    pub keep_bytes: u64,
}

impl Default for BuilderOptions {
    fn default() -> BuilderOptions {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        BuilderOptions { parallel: (2 * processors).max(4), keep_bytes: 20 << 30 }
    }
}

/// What is to be built.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The Dockerfile; without it, it is in the context.
    pub dockerfile: Option<Vec<u8>>,
    /// What it is called, and where it is in the context.
    pub path: String,
    /// What the language has to know.
    pub options: Options,
    /// What the image is to be called.
    pub names: Vec<Reference>,
    /// By id.
    pub secrets: BTreeMap<String, Arc<Vec<u8>>>,
    /// For base images, by registry.
    pub credentials: HashMap<String, Auth>,
    /// Whether every step runs.
    pub no_cache: bool,
    /// Whether base images are looked for in their registries although they are here.
    pub pull: bool,
    /// Whether no image is wanted, but files.
    pub files_only: bool,
    /// Of steps that name none.
    pub network: Network,
    /// Whether to say why steps are not cached.
    pub explain: bool,
    /// Whether to make an image of what a failed command left.
    pub debug: bool,
    /// Bytes at most for each command; 0: the runner's default.
    pub memory: i64,
    /// Thousandths of a processor; likewise.
    pub cpu_millis: i64,
    /// For `/etc/hosts` of commands.
    pub hosts: Vec<(String, IpAddr)>,
}

/// A context that comes as one stream.
#[derive(Debug)]
pub struct Upload {
    writer: Writer,
    files: Arc<Files>,
}

impl Upload {
    /// Takes a piece. Blocks.
    ///
    /// # Errors
    /// A disk that takes no more.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.writer.write_all(bytes).map_err(Error::io("write", b"the context"))
    }

    /// That was all. Dropping the future ends the look at it.
    ///
    /// # Errors
    /// Whatever is neither a tar nor a Dockerfile.
    pub async fn end(self) -> Result<Sent, Error> {
        let Upload { writer, files } = self;
        let digest = super::step::blocking(move || writer.finish()).await?;
        look(files, digest).await
    }
}

/// Builds images. Cheap to clone.
#[derive(Clone)]
pub struct Builder {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) store: Arc<store::Inner>,
    pub(super) images: Store,
    pub(super) cache: Cache,
    pub(super) files: Arc<Files>,
    pub(super) mounts: Arc<Mounts>,
    pub(super) fetcher: Fetcher,
    pub(super) flights: Flights<Flight, Feed, Landing>,
    /// Commands that may run now.
    pub(super) slots: Semaphore,
    pub(super) options: BuilderOptions,
    contexts: PathBuf,
    boot: String,
    /// When the builds began that run now, by number.
    running: Mutex<HashMap<u64, i64>>,
    /// Numbers that nothing else has.
    pub(super) next: AtomicU64,
    /// Whether somebody sees to it that not too much is kept.
    pub(super) tidying: AtomicBool,
}

/// A build that runs, until it is dropped.
struct Running<'i>(&'i Inner, u64);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running().remove(&self.1);
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

impl Builder {
    /// Opens the builder's folder below `root`, made if missing. It keeps its images in `store`.
    ///
    /// # Errors
    /// A folder that cannot be made or read.
    pub fn open(store: &Store, root: &Path, options: BuilderOptions) -> Result<Builder, Error> {
        let folder = root.join("build");
        let contexts = folder.join("contexts");
        for path in [&folder, &contexts] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(Error::io("mkdir", path.as_os_str().as_encoded_bytes()))?;
        }
        let boot = crate::snapshot::boot();
        let inner = Inner {
            cache: Cache::open(store.inner().clone(), &folder)?,
            files: Arc::new(Files::open(&folder, &boot)?),
            mounts: Arc::new(Mounts::open(&folder)?),
            fetcher: Fetcher::default(),
            flights: Flights::default(),
            slots: Semaphore::new(options.parallel.max(1)),
            store: store.inner().clone(),
            images: store.clone(),
            options,
            contexts,
            boot,
            running: Mutex::default(),
            next: AtomicU64::new(0),
            tidying: AtomicBool::new(false),
        };
        Ok(Builder { inner: Arc::new(inner) })
    }

    /// A context that is about to be told. `id` names it among those of all clients; without one it is not known again.
    pub fn context(&self, id: &str) -> Telling {
        let memory = (!id.is_empty())
            .then(|| Arc::new(Memory::open(&self.inner.contexts, id, &self.inner.boot, now())));
        Telling::new(self.inner.files.clone(), memory)
    }

    /// Begins to take a context that comes as one stream.
    ///
    /// # Errors
    /// A disk that takes no more.
    pub fn upload(&self) -> Result<Upload, Error> {
        Ok(Upload { writer: self.inner.files.begin()?, files: self.inner.files.clone() })
    }

    /// Fetches a context, or a Dockerfile.
    ///
    /// # Errors
    /// A server that does not give it, and whatever is neither.
    pub async fn fetch(&self, url: &str) -> Result<Sent, Error> {
        let parsed = url::Url::parse(url).map_err(|error| Error::Invalid(format!("{url:?}: {error}")))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(Error::Invalid(format!("{url:?} begins with neither http:// nor https://")));
        }
        let fetched = self.inner.fetcher.fetch(&self.inner.files, url, None).await?;
        look(self.inner.files.clone(), fetched.digest).await
    }

    /// Writes the files of what was built as a tar.
    ///
    /// # Errors
    /// A mount that the runner cannot make, and whatever `out` says.
    pub fn export(&self, built: &Built, runner: &Arc<dyn Runner>, out: &mut impl Write) -> Result<(), Error> {
        super::export::export(&self.inner, built, runner, out)
    }

    /// A context with nothing in it.
    pub fn no_context(&self) -> Context {
        Context::empty(self.inner.files.clone())
    }

    /// Builds. Dropping the future cancels what nobody else waits for. `id` names the build; fit for file names.
    ///
    /// # Errors
    /// The first thing that failed, with its place in the Dockerfile.
    pub async fn build(
        &self,
        id: &str,
        request: Request,
        context: Arc<Context>,
        runner: Arc<dyn Runner>,
        events: mpsc::Sender<Event>,
    ) -> Result<Built, Failure> {
        let number = self.inner.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.inner.running().insert(number, now());
        let running = Running(&self.inner, number);
        let built = solve::build(&self.inner, id, request, context.clone(), runner, events).await;
        // Also of a build that failed: it will come again.
        super::step::blocking(move || {
            context.remember();
            context.abandon();
        })
        .await;
        drop(running);
        self.tidy();
        built
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Inner {
    /// What was used since then may be in use.
    pub(super) fn oldest_running(&self) -> i64 {
        self.running().values().min().copied().unwrap_or(i64::MAX)
    }

    fn running(&self) -> MutexGuard<'_, HashMap<u64, i64>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
