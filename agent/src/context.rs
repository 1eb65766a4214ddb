//! What every part of the agent shares: configuration, stores, network, and the way into blocking work.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
use oci_spec::runtime::Capability;
use rustix::process::Rlimit;
use sampan_imagestore::{Credentials, Store, StoreOptions, build::Builder};
use sampan_runtime::{delegate, mount::MinimalNamespace, seccomp, shim::Launcher};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::warn;

use crate::{
    config::{Config, RUNTIME_HANDLER},
    credential::Helpers,
    error::{Error, Result, at, chain},
    events::Events,
    measurements::Measurements,
    network::{self, Attachment, NAMESPACE_END, Network, cni::Cni},
    pods::{PodId, parting::Parting, record::Records, storage},
    procfs::PodProcfs,
};

/// How long a client that takes nothing is waited for, to tell it that the agent ends.
const LAST_WORD: Duration = Duration::from_secs(1);

/// The agent's shared parts. Nothing here changes after the start but behind the parts' own locks.
#[derive(Debug)]
pub struct Context {
    /// As read at the start.
    pub config: Config,
    /// Images and snapshots.
    pub store: Store,
    /// Builds images.
    pub builder: Builder,
    /// The bridge, which the cluster may give other subnets; absent until something needs it.
    network: RwLock<Option<Arc<Network>>>,
    /// The network that a cluster brings.
    pub(crate) cni: Cni,
    /// What happens.
    pub events: Arc<Events>,
    /// Records of pods.
    pub(crate) records: Records,
    /// The runtime's binary.
    pub(crate) runtime: PathBuf,
    /// Starts monitors.
    pub(crate) launcher: Launcher,
    /// What mount namespaces of containers are made from, if it could be made.
    pub(crate) mounts: Option<MinimalNamespace>,
    /// Where kernel parameters of pods are set.
    pub(crate) procfs: PodProcfs,
    /// Changes with every boot of the machine.
    pub(crate) boot_id: String,
    /// How long things take.
    pub(crate) measurements: Measurements,
    filters: SeccompFilters,
    /// How many files each process of a container may have open, unless its request says otherwise.
    pub(crate) open_files: Rlimit,
    /// Roots of containers that have ended.
    pub(crate) parting: Parting,
    /// Cancelled when the agent is told to end. Streams without an end of their own end then: it would wait for them in vain.
    pub(crate) ending: CancellationToken,
}

impl Context {
    /// Opens everything beneath the configured folders. `open_files` is how many files each process of a container may have
    /// open, unless its request says otherwise.
    ///
    /// # Errors
    /// A folder that cannot be made, a store that cannot be opened, a bridge that cannot be set up, or a
    /// missing runtime.
    pub fn open(config: Config, open_files: Rlimit) -> Result<Context> {
        for folder in [&config.root, &config.state] {
            private_folder(folder)?;
        }
        private_folder(&config.state.join("pods"))?;
        let options = StoreOptions {
            insecure_registries: config.registry.insecure.clone(),
            policy: Some(config.registry.policy.clone()),
            registry_settings: Some(config.registry.settings.clone()),
            credentials: Credentials {
                file: Some(config.registry.credentials.clone()),
                helper: Some(Arc::new(Helpers)),
            },
            // They parse: the configuration was checked.
            pinned: config.images.pinned.iter().filter_map(|name| name.parse().ok()).collect(),
            quota: Some(Arc::new(storage::Projects)),
            ..StoreOptions::default()
        };
        let store = Store::open(&config.root, options)?;
        if config.runtime.writable_bytes.is_some() && !store.snapshots().can_limit() {
            return Err(Error::Precondition(format!(
                "runtime.writable_bytes is set, and the file system of {} keeps no project quotas: it has to be xfs or \
                 ext4 with the features project and quota, mounted with prjquota",
                config.root.display()
            )));
        }
        let builder = Builder::open(&store, &config.root, crate::build::options(&config.build))?;
        crate::build::log::settle(&config.root);
        let boot_id = "/proc/sys/kernel/random/boot_id";
        let boot_id = fs::read_to_string(boot_id).map_err(at("read", boot_id))?.trim().to_owned();
        let runtime = find_runtime(config.runtime.path.as_deref())?;
        let context = Context {
            cni: Cni {
                configurations: config.network.cni_configurations.clone(),
                plugins: config.network.cni_plugins.clone(),
            },
            network: RwLock::default(),
            events: Arc::new(Events::open(&config.root, &boot_id)?),
            records: Records::open(&config.root)?,
            launcher: Launcher::open(&runtime).map_err(at("prepare to start", &runtime))?,
            runtime,
            mounts: MinimalNamespace::make()
                .inspect_err(|error| {
                    warn!(error = chain(error), "containers are made from all of the host's mounts");
                })
                .ok(),
            store,
            builder,
            procfs: PodProcfs::new(),
            boot_id,
            measurements: Measurements::default(),
            filters: SeccompFilters::default(),
            open_files,
            parting: Parting::default(),
            ending: CancellationToken::new(),
            config,
        };
        // What is wrong with the bridge is told now and not with the first pod; nodes with a CNI network need none.
        if !matches!(context.cni.installed(), Ok(Some(_))) {
            context.network()?;
        }
        Ok(context)
    }

    /// Lets `work` feed a client until it is done, the client has gone or the agent ends, which the client is told.
    pub(crate) async fn feed<T>(
        &self,
        sender: &mpsc::Sender<Result<T, Status>>,
        work: impl Future<Output = ()>,
    ) {
        tokio::select! {
            () = work => {}
            () = sender.closed() => {}
            () = self.ending.cancelled() => {
                let _ = sender.send_timeout(Err(Error::Ending.into()), LAST_WORD).await;
            }
        }
    }

    /// The bridge as it is now; set up first, if nothing needed it yet.
    ///
    /// # Errors
    /// What keeps it from being set up.
    pub(crate) fn network(&self) -> Result<Arc<Network>> {
        if let Some(network) = self.open_network() {
            return Ok(network);
        }
        let mut current = self.network.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(network) = current.as_ref() {
            return Ok(network.clone());
        }
        let chosen = pod_cidr(&self.config.root)?;
        let network = Arc::new(open_network(
            &self.config,
            chosen.unwrap_or_else(|| self.config.network.subnets.clone()),
        )?);
        Ok(current.insert(network).clone())
    }

    /// The bridge, if anything needed it yet.
    pub(crate) fn open_network(&self) -> Option<Arc<Network>> {
        self.network.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a pod off the bridge whose monitor has ended, and has its addresses given back later: see [`Network::depart`].
    /// For a thread that may block.
    ///
    /// # Errors
    /// What of it stays; it may be repeated.
    pub(crate) fn depart(&self, pod: &PodId, attachment: &Attachment) -> Result<()> {
        let network = self.network()?;
        network.depart(pod.as_str(), attachment)?;
        tokio::spawn(settle(network));
        Ok(())
    }

    /// Whether pods can be connected now.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn network_ready(&self) -> Result<()> {
        match self.cni.installed()? {
            Some(list) => Ok(self.cni.status(&list).await?),
            None => self.network().map(drop),
        }
    }

    /// Has new pods get their addresses from other subnets, also after a restart. Pods that are on the bridge keep theirs.
    ///
    /// # Errors
    /// Subnets that can't be used; all is as before then.
    pub(crate) fn move_network(&self, subnets: Vec<IpNet>) -> Result<()> {
        // Nobody opens the bridge meanwhile, nor moves it.
        let current = self.network.write().unwrap_or_else(PoisonError::into_inner);
        let Some(network) = current.as_ref() else { return write_pod_cidr(&self.config.root, &subnets) };
        let before = network.subnets();
        if before == subnets {
            return Ok(());
        }
        network.move_to(subnets.clone())?;
        write_pod_cidr(&self.config.root, &subnets).inspect_err(|_| {
            if let Err(error) = network.move_to(before) {
                warn!(error = Error::from(error).chain(), "the network stays moved until the next start");
            }
        })
    }

    /// The folder of a pod beneath the state folder.
    pub(crate) fn pod_state(&self, pod: &PodId) -> PathBuf {
        self.config.state.join("pods").join(pod.as_str())
    }

    /// The cgroup of a pod that names no parent.
    pub(crate) fn pod_cgroup(&self, pod: &PodId) -> String {
        format!("{}/{pod}", self.config.cgroup.root)
    }

    /// The other runtime that makes the containers of pods with this handler; `None`: the monitor makes them.
    ///
    /// # Errors
    /// `InvalidArgument`: there is no such handler.
    pub(crate) fn delegate(&self, handler: &str) -> Result<Option<delegate::Runtime>> {
        if handler.is_empty() || handler == RUNTIME_HANDLER {
            return Ok(None);
        }
        let handlers = &self.config.runtime.handlers;
        let Some(found) = handlers.get(handler) else {
            let known: Vec<&str> = handlers.keys().map(String::as_str).chain([RUNTIME_HANDLER]).collect();
            return Err(Error::Invalid(format!(
                "there is no runtime handler {handler:?}; known are {}",
                known.join(", ")
            )));
        };
        Ok(Some(delegate::Runtime { program: found.path.clone(), root: self.delegate_root(handler) }))
    }

    /// Our own runtime by its command line, for what a monitor leaves to it: hooks.
    pub(crate) fn own_delegate(&self) -> delegate::Runtime {
        delegate::Runtime { program: self.runtime.clone(), root: self.delegate_root(RUNTIME_HANDLER) }
    }

    fn delegate_root(&self, handler: &str) -> PathBuf {
        self.config.state.join("runtimes").join(handler)
    }

    /// The default system call filter for a container that may hold these capabilities, ready for the kernel.
    pub(crate) fn seccomp_filter(&self, capabilities: &HashSet<Capability>) -> Result<Arc<Vec<u8>>> {
        self.filters.default_for(capabilities)
    }
}

/// Has the addresses given back of pods that have departed. An agent that ends first finds at its next start the
/// interfaces that are still there.
async fn settle(network: Arc<Network>) {
    const ATTEMPTS: usize = 5;
    for _ in 0..ATTEMPTS {
        tokio::time::sleep(NAMESPACE_END).await;
        let departing = network.clone();
        match blocking(move || departing.settle(NAMESPACE_END)).await {
            Ok(()) => return,
            Err(error) => {
                warn!(error = Error::from(error).chain(), "addresses of pods that are gone stay in use")
            }
        }
    }
}

fn open_network(config: &Config, subnets: Vec<IpNet>) -> Result<Network> {
    let (bridge, mtu) = (config.network.bridge.clone(), config.network.mtu);
    Ok(Network::open(network::Config { bridge, subnets, mtu })?)
}

/// The file that has the subnets that the cluster chose, a line each.
const POD_CIDR: &str = "pod-cidr";

/// What the cluster chose; `None` if it never has.
fn pod_cidr(root: &Path) -> Result<Option<Vec<IpNet>>> {
    let path = root.join(POD_CIDR);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(at("read", &path))?,
    };
    let subnets: Vec<IpNet> = text.lines().filter_map(|line| line.parse().ok()).collect();
    // A file that a power failure has emptied is none.
    Ok(Some(subnets).filter(|subnets| !subnets.is_empty()))
}

fn write_pod_cidr(root: &Path, subnets: &[IpNet]) -> Result<()> {
    let path = root.join(POD_CIDR);
    let temporary = root.join("pod-cidr.tmp");
    let text: String = subnets.iter().map(|subnet| format!("{subnet}\n")).collect();
    fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path)).map_err(at("write", path))
}

/// Compiled filters by the capabilities they are for: compiling one takes milliseconds, loading it does not.
#[derive(Debug, Default)]
struct SeccompFilters {
    compiled: Mutex<HashMap<BTreeSet<String>, Arc<Vec<u8>>>>,
}

impl SeccompFilters {
    fn default_for(&self, capabilities: &HashSet<Capability>) -> Result<Arc<Vec<u8>>> {
        let key: BTreeSet<String> = capabilities.iter().map(ToString::to_string).collect();
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(filter) = compiled.get(&key) {
            return Ok(filter.clone());
        }
        let program = seccomp::compile(&seccomp::default_profile(capabilities))?;
        let filter = Arc::new(program.to_bytes());
        compiled.insert(key, filter.clone());
        Ok(filter)
    }
}

/// Runs blocking work off the asynchronous threads, in the current span.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

/// Makes a folder that only root may enter, whatever the umask is.
pub(crate) fn private_folder(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(path).map_err(at("create", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(at("set the mode of", path))
}

fn find_runtime(configured: Option<&Path>) -> Result<PathBuf> {
    const NAME: &str = "sampan-runtime";
    if let Some(path) = configured {
        return path.canonicalize().map_err(at("find", path));
    }
    let own = std::env::current_exe().map_err(at("find", "/proc/self/exe"))?;
    let beside = own.parent().map(|folder| folder.join(NAME));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = beside.into_iter().chain(std::env::split_paths(&path).map(|folder| folder.join(NAME)));
    candidates.into_iter().find(|candidate| candidate.is_file()).ok_or_else(|| Error::File {
        call: "find",
        path: NAME.into(),
        source: io::Error::new(
            io::ErrorKind::NotFound,
            "neither beside sampand nor in PATH; set runtime.path",
        ),
    })
}
