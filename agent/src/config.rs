//! The agent's configuration: defaults, then the file, then `SAMPAN_…`, then flags. Read here and nowhere else.
//!
//! A key that nobody knows is an error: a misspelt limit must not be a limit that is silently absent.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::Deserialize;

/// The handler of the built-in runtime, which is also the default.
pub const RUNTIME_HANDLER: &str = "sampan";

/// Everything that can be configured.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What must survive a reboot: images, layers, records.
    pub root: PathBuf,
    /// What a reboot makes void: sockets, bundles, exit records.
    pub state: PathBuf,
    /// The gRPC socket.
    pub socket: PathBuf,
    /// What is logged and how.
    pub log: Log,
    /// The built-in bridge.
    pub network: Network,
    /// Registries.
    pub registry: Registry,
    /// Which images stay, and how much room they may take.
    pub images: Images,
    /// Building images.
    pub build: Build,
    /// Where cgroups are made.
    pub cgroup: Cgroup,
    /// The runtime.
    pub runtime: Runtime,
    /// The server of exec's, attach's and port-forward's streams.
    pub streaming: Streaming,
    /// What Prometheus scrapes.
    pub metrics: Metrics,
}

/// What is logged and how.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// A filter such as `info` or `info,sampan_agent=debug`.
    pub level: String,
    /// One line for people, or one JSON object a line.
    pub format: LogFormat,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people and the journal.
    Text,
    /// For collectors.
    Json,
}

/// The built-in bridge.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// The bridge's interface name, at most 15 bytes; the nftables table is named after it.
    pub bridge: String,
    /// At most one network of each address family; the first address is the gateway.
    pub subnets: Vec<IpNet>,
    /// Bytes; absent: the kernel's default.
    pub mtu: Option<u32>,
    /// The folder of CNI configurations; with one in it, pods are connected by CNI plugins. Empty: never.
    pub cni_configurations: PathBuf,
    /// The folders of CNI plugins, in the order in which they are searched.
    pub cni_plugins: Vec<PathBuf>,
}

/// Registries.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// `HOST[:PORT]` of registries that are spoken to over plain HTTP; loopback always is.
    pub insecure: Vec<String>,
    /// The folder with `HOST/hosts.toml`: mirrors, certificates and headers. It need not exist.
    pub settings: PathBuf,
    /// Credentials for pulls that bring none, in Docker's or podman's form. It need not exist.
    pub credentials: PathBuf,
    /// Which images may be pulled: `policy.json` of the containers project. It need not exist.
    pub policy: PathBuf,
}

/// Which images stay, and how much room they may take.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Images {
    /// Names of images that are spared when unused ones are removed.
    pub pinned: Vec<String>,
    /// Beyond as many bytes of images, unused ones are removed; absent: no limit.
    pub high_bytes: Option<u64>,
    /// Down to as many bytes; absent: `high_bytes`.
    pub low_bytes: Option<u64>,
    /// Beyond as many files, directories and others.
    pub high_inodes: Option<u64>,
    /// Down to as many; absent: `high_inodes`.
    pub low_inodes: Option<u64>,
    /// Seconds for which an image that was pulled or used last stays in any case.
    pub minimum_age_seconds: u64,
    /// Seconds between two looks.
    pub check_seconds: u64,
}

impl Images {
    /// Between two looks at how much room they take.
    pub fn period(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.check_seconds.max(1))
    }
}

impl Default for Images {
    fn default() -> Images {
        Images {
            pinned: Vec::new(),
            high_bytes: None,
            low_bytes: None,
            high_inodes: None,
            low_inodes: None,
            minimum_age_seconds: 120,
            check_seconds: 60,
        }
    }
}

/// Building images.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Build {
    /// How many commands run at a time; absent: two for each processor, and four at least.
    pub parallel: Option<usize>,
    /// Bytes that the cache may take, cache mounts included, before what was used longest ago goes.
    pub keep_bytes: u64,
    /// Whether a build may use the host's network.
    pub host_network: bool,
    /// Bytes for each command of builds that name no limit; absent: no limit.
    pub memory_bytes: Option<i64>,
    /// Thousandths of a processor; likewise.
    pub cpu_millis: Option<i64>,
    /// Most processes and threads of a command.
    pub pids: i64,
    /// Seconds after which a command is killed.
    pub step_seconds: u64,
    /// Bytes of output after which a command is killed, with a time for each line.
    pub output_bytes: u64,
}

impl Default for Build {
    fn default() -> Build {
        Build {
            parallel: None,
            keep_bytes: 20_000_000_000,
            host_network: false,
            memory_bytes: None,
            cpu_millis: None,
            pids: 16384,
            step_seconds: 24 * 3600,
            output_bytes: 256 << 20,
        }
    }
}

/// Where cgroups are made.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cgroup {
    /// Parent of pods that name none, below the root of each hierarchy; the monitors live here too.
    pub root: String,
    /// What kubelet is told to manage cgroups with; absent: systemd where that is the first process.
    pub driver: Option<Driver>,
}

/// Who makes the cgroups of pods that kubelet runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// They are folders, made by kubelet and the agent.
    Cgroupfs,
    /// They are slices and scopes, made by systemd.
    Systemd,
}

impl Driver {
    /// As the configuration has it.
    pub fn name(self) -> &'static str {
        match self {
            Driver::Cgroupfs => "cgroupfs",
            Driver::Systemd => "systemd",
        }
    }
}

impl Cgroup {
    /// The driver that is in use.
    pub fn driver(&self) -> Driver {
        self.driver.unwrap_or(if sampan_runtime::cgroup::has_systemd() {
            Driver::Systemd
        } else {
            Driver::Cgroupfs
        })
    }
}

/// The runtime.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Runtime {
    /// The `sampan-runtime` binary; absent: beside the agent's own binary, then in PATH.
    pub path: Option<PathBuf>,
    /// The folders of vendors' descriptions of devices (CDI); what is in a later one wins.
    pub cdi_folders: Vec<PathBuf>,
    /// Other OCI runtimes, by the name of the handler that pods ask for.
    pub handlers: BTreeMap<String, Handler>,
    /// What a container may write into its own layer unless it asks for another limit, in bytes; absent: no limit.
    pub writable_bytes: Option<u64>,
    /// The system call filter of containers whose CRI request names none.
    pub seccomp_when_unset: UnsetSeccomp,
}

/// What a CRI request without a seccomp profile means; kubelet's requests always have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnsetSeccomp {
    /// No filter, as CRI's validation suite has it.
    #[default]
    Unconfined,
    /// The agent's allow-list.
    RuntimeDefault,
}

/// An OCI runtime with runc's command line, for pods that ask for it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handler {
    /// Its binary.
    pub path: PathBuf,
}

/// The server of exec's, attach's and port-forward's streams.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Streaming {
    /// Where it listens; port 0: any that is free.
    pub address: SocketAddr,
    /// What the URLs it gives out begin with; absent: its own address.
    pub base_url: Option<String>,
    /// PEM file of the certificate and its chain; absent: no TLS.
    pub certificate: Option<PathBuf>,
    /// PEM file of the certificate's key.
    pub key: Option<PathBuf>,
}

/// What Prometheus scrapes.
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Address and port of the endpoint, whose path is `/metrics`; absent: there is none.
    pub address: Option<SocketAddr>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            root: "/var/lib/sampan".into(),
            state: "/run/sampan".into(),
            socket: "/run/sampan/sampan.sock".into(),
            log: Log::default(),
            network: Network::default(),
            registry: Registry::default(),
            images: Images::default(),
            build: Build::default(),
            cgroup: Cgroup::default(),
            runtime: Runtime::default(),
            streaming: Streaming::default(),
            metrics: Metrics::default(),
        }
    }
}

impl Default for Runtime {
    fn default() -> Runtime {
        Runtime {
            path: None,
            cdi_folders: ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from).to_vec(),
            handlers: BTreeMap::new(),
            writable_bytes: None,
            seccomp_when_unset: UnsetSeccomp::default(),
        }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { level: "info".into(), format: LogFormat::Text }
    }
}

impl Default for Network {
    fn default() -> Network {
        let subnets = ["10.89.0.0/16", "fd89:73a7::/64"];
        Network {
            bridge: "sampan0".into(),
            subnets: subnets.into_iter().filter_map(|subnet| subnet.parse().ok()).collect(),
            mtu: None,
            cni_configurations: "/etc/cni/net.d".into(),
            cni_plugins: ["/opt/cni/bin", "/usr/libexec/cni", "/usr/lib/cni"].map(PathBuf::from).to_vec(),
        }
    }
}

impl Default for Registry {
    fn default() -> Registry {
        Registry {
            insecure: Vec::new(),
            settings: "/etc/sampan/certs.d".into(),
            credentials: "/etc/sampan/auth.json".into(),
            policy: "/etc/sampan/policy.json".into(),
        }
    }
}

impl Default for Cgroup {
    fn default() -> Cgroup {
        Cgroup { root: "/sampan".into(), driver: None }
    }
}

impl Default for Streaming {
    fn default() -> Streaming {
        Streaming {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            base_url: None,
            certificate: None,
            key: None,
        }
    }
}

/// What the command line says; it beats file and environment.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--root`.
    pub root: Option<PathBuf>,
    /// `--state`.
    pub state: Option<PathBuf>,
    /// `--socket`.
    pub socket: Option<PathBuf>,
    /// `--log-level`.
    pub log_level: Option<String>,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file or the environment cannot be read, or has a key or value that is not known.
    #[error("read the configuration")]
    Read(#[from] config::ConfigError),
    /// A value that cannot work.
    #[error("configuration: {0}")]
    Invalid(String),
}

/// Where the configuration is looked for when no `--config` is given; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/sampan/config.toml";

impl Config {
    /// Reads defaults, file, environment (`SAMPAN_NETWORK__BRIDGE=…`) and flags, in that order.
    ///
    /// # Errors
    /// A named file that does not exist, an unknown key, or a value that cannot work.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Config, Error> {
        let source = match file {
            Some(path) => config::File::from(path).format(config::FileFormat::Toml),
            None => config::File::new(DEFAULT_FILE, config::FileFormat::Toml).required(false),
        };
        let environment = config::Environment::with_prefix("SAMPAN")
            .prefix_separator("_")
            .separator("__")
            .list_separator(",")
            .with_list_parse_key("network.subnets")
            .with_list_parse_key("registry.insecure")
            .with_list_parse_key("images.pinned")
            .try_parsing(true);
        let builder = config::Config::builder()
            .add_source(source)
            .add_source(environment)
            .set_override_option("root", overrides.root.as_ref().map(|path| path.display().to_string()))?
            .set_override_option("state", overrides.state.as_ref().map(|path| path.display().to_string()))?
            .set_override_option("socket", overrides.socket.as_ref().map(|path| path.display().to_string()))?
            .set_override_option("log.level", overrides.log_level.clone())?;
        let config: Config = builder.build()?.try_deserialize()?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Error> {
        let invalid = |text: String| Err(Error::Invalid(text));
        for (key, path) in [
            ("root", &self.root),
            ("state", &self.state),
            ("socket", &self.socket),
            ("registry.settings", &self.registry.settings),
            ("registry.credentials", &self.registry.credentials),
            ("registry.policy", &self.registry.policy),
        ] {
            if !path.is_absolute() {
                return invalid(format!("{key} = {path:?} is not an absolute path"));
            }
        }
        let cni = self.network.cni_plugins.iter().chain([&self.network.cni_configurations]);
        for path in cni.filter(|path| !path.as_os_str().is_empty()) {
            if !path.is_absolute() {
                return invalid(format!("network.cni_…: {path:?} is not an absolute path"));
            }
        }
        for (name, handler) in &self.runtime.handlers {
            if name.is_empty() || name == RUNTIME_HANDLER {
                return invalid(format!("runtime.handlers: {name:?} is the name of the built-in runtime"));
            }
            if !handler.path.is_absolute() {
                return invalid(format!(
                    "runtime.handlers.{name}.path = {:?} is not an absolute path",
                    handler.path
                ));
            }
        }
        if self.network.bridge.is_empty() || self.network.bridge.len() > 15 {
            return invalid(format!("network.bridge = {:?} has not 1 to 15 bytes", self.network.bridge));
        }
        for v4 in [true, false] {
            let family = self.network.subnets.iter().filter(|net| net.addr().is_ipv4() == v4);
            if family.count() > 1 {
                return invalid("network.subnets has more than one network of a family".into());
            }
        }
        for name in &self.images.pinned {
            if let Err(error) = name.parse::<sampan_imagestore::Reference>() {
                return invalid(format!("images.pinned: {error}"));
            }
        }
        for (key, high, low) in [
            ("bytes", self.images.high_bytes, self.images.low_bytes),
            ("inodes", self.images.high_inodes, self.images.low_inodes),
        ] {
            if low.is_some() && low > high {
                return invalid(format!("images.low_{key} is above images.high_{key}, or that is not set"));
            }
        }
        if !self.cgroup.root.starts_with('/') || self.cgroup.root.len() < 2 || self.cgroup.root.contains("..")
        {
            return invalid(format!("cgroup.root = {:?} is not a path below the root", self.cgroup.root));
        }
        self.streaming.check()
    }
}

impl Streaming {
    fn check(&self) -> Result<(), Error> {
        let invalid = |text: String| Err(Error::Invalid(text));
        if self.certificate.is_some() != self.key.is_some() {
            return invalid(
                "streaming.certificate and streaming.key belong together; set both or none".into(),
            );
        }
        match &self.base_url {
            Some(url) if !["http://", "https://"].iter().any(|scheme| url.starts_with(scheme)) => {
                invalid(format!("streaming.base_url = {url:?} begins with neither http:// nor https://"))
            }
            None if self.address.ip().is_unspecified() => invalid(format!(
                "streaming.address = \"{}\" is no address that a client could connect to; set streaming.base_url too",
                self.address
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, overrides: &Overrides) -> Result<Config, Error> {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(Some(file.path()), overrides)
    }

    #[test]
    fn flags_beat_the_file_and_the_file_beats_defaults() {
        let text = "root = \"/a\"\nstate = \"/b\"\n[network]\nbridge = \"br9\"\n";
        let overrides = Overrides { root: Some("/c".into()), ..Overrides::default() };
        let config = load(text, &overrides).unwrap();
        assert_eq!(config.root, PathBuf::from("/c"));
        assert_eq!(config.state, PathBuf::from("/b"));
        assert_eq!(config.network.bridge, "br9");
        assert_eq!(config.network.subnets.len(), 2);
        assert_eq!(config.cgroup.root, "/sampan");
    }

    #[test]
    fn unknown_keys_are_errors_that_name_the_key() {
        let error = load("[network]\nbrigde = \"x\"\n", &Overrides::default()).unwrap_err();
        assert!(crate::error::chain(&error).contains("brigde"), "{}", crate::error::chain(&error));
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        for text in [
            "root = \"relative\"",
            "[network]\nbridge = \"a-name-that-is-too-long\"",
            "[network]\nsubnets = [\"10.0.0.0/24\", \"10.1.0.0/24\"]",
            "[cgroup]\nroot = \"/../x\"",
            "[streaming]\ncertificate = \"/etc/sampan/tls.crt\"",
            "[streaming]\nbase_url = \"127.0.0.1:1\"",
            "[streaming]\naddress = \"0.0.0.0:10250\"",
        ] {
            assert!(load(text, &Overrides::default()).is_err(), "{text}");
        }
    }

    #[test]
    fn the_file_to_install_shows_every_key_with_its_default() {
        let installed = include_str!("../../deploy/config.toml");
        assert_eq!(
            format!("{:?}", load(installed, &Overrides::default()).unwrap()),
            format!("{:?}", Config::default())
        );
        // A key without a default shows an example.
        let example = [
            "network.mtu",
            "runtime.path",
            "runtime.writable_bytes",
            "cgroup.driver",
            "images.high_bytes",
            "images.low_bytes",
            "images.high_inodes",
            "images.low_inodes",
            "streaming.base_url",
            "streaming.certificate",
            "streaming.key",
            "metrics.address",
            "build.parallel",
            "build.memory_bytes",
            "build.cpu_millis",
        ];
        let (mut text, mut table, mut keys) = (String::new(), "", 0);
        for line in installed.lines() {
            table = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(table);
            let setting = line.strip_prefix("# ").and_then(|rest| Some((rest.split_once(" = ")?.0, rest)));
            match setting.filter(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')) {
                Some((key, rest)) => {
                    keys += 1;
                    if !example.contains(&format!("{table}.{key}").as_str()) {
                        text.push_str(rest);
                    }
                }
                None => text.push_str(line),
            }
            text.push('\n');
        }
        assert_eq!(
            format!("{:?}", load(&text, &Overrides::default()).unwrap()),
            format!("{:?}", Config::default())
        );
        assert_eq!(keys, 41);
    }
}
