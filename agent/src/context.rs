//! What every part of the agent shares: configuration, stores, network, and the way into blocking work.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use oci_spec::runtime::Capability;
use sampan_imagestore::{Store, StoreOptions};
use sampan_runtime::seccomp;

use crate::{
    config::Config,
    error::{Error, Result, at},
    measurements::Measurements,
    network::{self, Network},
    pods::{PodId, record::Records},
};

/// The agent's shared parts. Nothing here changes after the start but behind the parts' own locks.
#[derive(Debug)]
pub struct Context {
    /// As read at the start.
    pub config: Config,
    /// Images and snapshots.
    pub store: Store,
    /// The bridge.
    pub network: Network,
    /// Records of pods.
    pub(crate) records: Records,
    /// The runtime's binary.
    pub(crate) runtime: PathBuf,
    /// Changes with every boot of the machine.
    pub(crate) boot_id: String,
    /// How long things take.
    pub(crate) measurements: Measurements,
    filters: SeccompFilters,
}

impl Context {
    /// Opens everything beneath the configured folders.
    ///
    /// # Errors
    /// A folder that cannot be made, a store that cannot be opened, a bridge that cannot be set up, or a
    /// missing runtime.
    pub fn open(config: Config) -> Result<Context> {
        for folder in [&config.root, &config.state] {
            private_folder(folder)?;
        }
        private_folder(&config.state.join("pods"))?;
        let options =
            StoreOptions { insecure_registries: config.registry.insecure.clone(), ..StoreOptions::default() };
        let store = Store::open(&config.root, options)?;
        let network = Network::open(network::Config {
            bridge: config.network.bridge.clone(),
            subnets: config.network.subnets.clone(),
            mtu: config.network.mtu,
        })?;
        let boot_id = "/proc/sys/kernel/random/boot_id";
        let boot_id = fs::read_to_string(boot_id).map_err(at("read", boot_id))?.trim().to_owned();
        Ok(Context {
            records: Records::open(&config.root)?,
            runtime: find_runtime(config.runtime.path.as_deref())?,
            store,
            network,
            boot_id,
            measurements: Measurements::default(),
            filters: SeccompFilters::default(),
            config,
        })
    }

    /// The folder of a pod beneath the state folder.
    pub(crate) fn pod_state(&self, pod: &PodId) -> PathBuf {
        self.config.state.join("pods").join(pod.as_str())
    }

    /// The default system call filter for a container that may hold these capabilities, ready for the kernel.
    pub(crate) fn seccomp_filter(&self, capabilities: &HashSet<Capability>) -> Result<Arc<Vec<u8>>> {
        self.filters.default_for(capabilities)
    }
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
