//! Where a registry is reached: mirrors first, then the registry itself, and how to speak to each.
//!
//! This is containerd's `certs.d/HOST/hosts.toml`, read anew for every pull: the table of a host, and the top level
//! for the registry itself, which comes last. A folder without that file may hold `*.crt` and pairs of `*.cert` and
//! `*.key`, as Docker has it. Keys that containerd does not know are passed over, as it does. Which host a request
//! goes to is for the repository to decide.

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;
use toml::{Table, Value};

/// More than any certificate or list of hosts has.
const MAX_FILE: u64 = 1 << 20;
/// Each may cost a pull a few seconds.
const MAX_HOSTS: usize = 16;
const FILE: &str = "hosts.toml";

/// What is wrong with the settings of a registry.
#[derive(Debug, thiserror::Error)]
#[error("registry settings {path}: {reason}")]
pub struct Error {
    path: PathBuf,
    reason: String,
}

/// What a host may be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Capabilities {
    /// Content by its digest.
    pub(crate) pull: bool,
    /// What a tag points at.
    pub(crate) resolve: bool,
    /// To take content.
    pub(crate) push: bool,
}

impl Capabilities {
    pub(crate) const ALL: Capabilities = Capabilities { pull: true, resolve: true, push: true };
}

/// How to speak TLS to a host; the contents of files, so that a change of one is seen.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tls {
    /// Certificates that are trusted beside the system's, in PEM.
    pub(crate) ca: Vec<Vec<u8>>,
    /// Certificates of ours with their keys.
    pub(crate) clients: Vec<ClientPem>,
    /// Whether any certificate will do.
    pub(crate) skip_verify: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tls { ca, clients, skip_verify } = self;
        let mut text = f.debug_struct("Tls");
        text.field("ca", &ca.len()).field("clients", clients).field("skip_verify", skip_verify).finish()
    }
}

/// A certificate of ours, perhaps with those between it and its authority, and its key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct ClientPem {
    /// The certificate's file, for messages.
    pub(crate) path: PathBuf,
    /// All in PEM.
    pub(crate) pem: Vec<u8>,
}

impl fmt::Debug for ClientPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}

/// A host with the settings to speak to it.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Ends with a slash; repositories come below.
    pub(crate) base: Url,
    pub(crate) capabilities: Capabilities,
    pub(crate) tls: Tls,
    pub(crate) headers: HeaderMap,
    /// Whether this is the registry that the image's name has: the credentials for it go nowhere else.
    pub(crate) own: bool,
}

/// The hosts for a registry, in the order in which to ask them; `None` in place of the registry itself where the
/// settings do not name its address. Without a folder for it there are no settings.
pub(crate) fn load(root: &Path, domain: &str) -> Result<Vec<Entry>, Error> {
    for name in folders(domain) {
        let folder = root.join(name);
        if !folder.is_dir() {
            continue;
        }
        let file = folder.join(FILE);
        let failed = |source: io::Error| Error { path: file.clone(), reason: source.to_string() };
        return match read(&file) {
            Ok(bytes) => {
                let text = String::from_utf8(bytes)
                    .map_err(|_| Error { path: file.clone(), reason: "is not UTF-8".to_owned() })?;
                let hosts = parse(&text).map_err(|reason| Error { path: file.clone(), reason })?;
                hosts.into_iter().map(|host| host.open(&folder)).collect()
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                let host = certificates(&folder).map_err(failed)?;
                Ok(vec![host.open(&folder)?])
            }
            Err(source) => Err(failed(source)),
        };
    }
    Ok(Vec::new())
}

/// A host of the settings; without an address it stands for the registry's own.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) base: Option<Url>,
    pub(crate) capabilities: Capabilities,
    pub(crate) tls: Tls,
    pub(crate) headers: HeaderMap,
    pub(crate) own: bool,
}

/// The folders that may have the settings; the first that exists has. No name leads out of the root: references
/// have neither slashes nor dots alone in their registry.
fn folders(domain: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = domain.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([domain.to_owned(), "_default".to_owned()]);
    names
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other("is larger than 1 MiB"));
    }
    Ok(bytes)
}

/// What a file says of one host.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Host {
    base: Option<Url>,
    capabilities: Option<[bool; 3]>,
    ca: Vec<PathBuf>,
    /// Certificates with their keys, which may be in one file.
    client: Vec<(PathBuf, Option<PathBuf>)>,
    skip_verify: bool,
    headers: HeaderMap,
    own: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Settings {
    capabilities: Vec<String>,
    ca: OneOrMany,
    client: Option<Client>,
    skip_verify: bool,
    override_path: bool,
    header: Table,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Default for OneOrMany {
    fn default() -> OneOrMany {
        OneOrMany::Many(Vec::new())
    }
}

impl From<OneOrMany> for Vec<String> {
    fn from(value: OneOrMany) -> Vec<String> {
        match value {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    One(String),
    Many(Vec<OneOrMany>),
}

/// Reads a list of hosts; the last is the registry itself.
pub(crate) fn parse(text: &str) -> Result<Vec<Host>, String> {
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| error.message().to_owned())?;
    let hosts = match table.remove("host") {
        None => Table::new(),
        Some(Value::Table(hosts)) => hosts,
        Some(_) => return Err("host is no table".to_owned()),
    };
    let server = match table.remove("server") {
        None => None,
        Some(Value::String(server)) if server.is_empty() => None,
        Some(Value::String(server)) => Some(server),
        Some(_) => return Err("server is no string".to_owned()),
    };
    if hosts.len() > MAX_HOSTS {
        return Err(format!("more than {MAX_HOSTS} hosts"));
    }
    let mut parsed = Vec::with_capacity(hosts.len() + 1);
    // The table keeps the order of the file.
    for (address, settings) in hosts {
        let settings: Settings =
            settings.try_into().map_err(|error| format!("host {address:?}: {}", error.message()))?;
        parsed.push(host(Some(&address), settings, false)?);
    }
    let settings: Settings =
        Value::Table(table).try_into().map_err(|error: toml::de::Error| error.message().to_owned())?;
    parsed.push(host(server.as_deref(), settings, true)?);
    Ok(parsed)
}

fn host(address: Option<&str>, settings: Settings, own: bool) -> Result<Host, String> {
    let base = address.map(|address| base(address, settings.override_path)).transpose()?;
    let name = address.unwrap_or("the registry itself");
    let capabilities = match settings.capabilities.is_empty() {
        true => None,
        false => {
            let mut capabilities = [false; 3];
            for text in &settings.capabilities {
                let known = ["pull", "resolve", "push"];
                let at = known.iter().position(|known| text.eq_ignore_ascii_case(known));
                capabilities[at.ok_or_else(|| format!("host {name:?}: unknown capability {text:?}"))?] = true;
            }
            Some(capabilities)
        }
    };
    let client = match settings.client {
        None => Vec::new(),
        Some(Client::One(file)) => vec![(file.into(), None)],
        Some(Client::Many(files)) => files.into_iter().map(pair).collect::<Option<_>>().ok_or_else(|| {
            format!("host {name:?}: a client has a certificate and perhaps a key, and no more files")
        })?,
    };
    let mut headers = HeaderMap::new();
    for (key, value) in settings.header {
        // Values may be secrets: no message repeats one.
        let malformed = || format!("host {name:?}: header {key:?} is malformed");
        let texts: OneOrMany = value.try_into().map_err(|_| malformed())?;
        let header: HeaderName = key.parse().map_err(|_| malformed())?;
        for text in Vec::from(texts) {
            let mut value = HeaderValue::from_str(&text).map_err(|_| malformed())?;
            value.set_sensitive(true);
            headers.append(header.clone(), value);
        }
    }
    let ca = Vec::from(settings.ca).into_iter().map(PathBuf::from).collect();
    Ok(Host { base, capabilities, ca, client, skip_verify: settings.skip_verify, headers, own })
}

fn pair(files: OneOrMany) -> Option<(PathBuf, Option<PathBuf>)> {
    let mut files = Vec::from(files).into_iter();
    let (certificate, key) = (files.next()?, files.next().filter(|key| !key.is_empty()));
    files.next().is_none().then(|| (certificate.into(), key.map(PathBuf::from)))
}

/// `mirror.example/path` becomes `https://mirror.example/path/v2/`, with `override_path` without the `v2`.
fn base(address: &str, override_path: bool) -> Result<Url, String> {
    let full = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
    let mut url = Url::parse(&full).map_err(|error| format!("host {address:?}: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(format!("host {address:?} is no address of the form https://HOST/"));
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err(format!("host {address:?} has more than scheme, host, port and path"));
    }
    let path = url.path().trim_end_matches('/').to_owned();
    let version = if override_path || path.ends_with("/v2") { "" } else { "/v2" };
    url.set_path(&format!("{path}{version}/"));
    Ok(url)
}

/// The certificates of a folder that has no list of hosts.
fn certificates(folder: &Path) -> io::Result<Host> {
    let mut host = Host { own: true, ..Host::default() };
    let mut names: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    names.sort();
    for path in names {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => host.ca.push(path),
            Some("cert") => host.client.push((path.clone(), Some(path.with_extension("key")))),
            _ => {}
        }
    }
    Ok(host)
}

impl Host {
    /// Reads the files that the settings name, relative ones from `folder`.
    fn open(self, folder: &Path) -> Result<Entry, Error> {
        let load = |path: &Path| {
            let path = folder.join(path);
            let mut bytes =
                read(&path).map_err(|source| Error { path: path.clone(), reason: source.to_string() })?;
            bytes.push(b'\n');
            Ok(bytes)
        };
        let ca = self.ca.iter().map(|path| load(path)).collect::<Result<_, Error>>()?;
        let client = |(certificate, key): &(PathBuf, Option<PathBuf>)| {
            let mut pem = load(certificate)?;
            pem.extend(key.as_deref().map(load).transpose()?.unwrap_or_default());
            Ok(ClientPem { path: folder.join(certificate), pem })
        };
        let clients = self.client.iter().map(client).collect::<Result<_, Error>>()?;
        let [pull, resolve, push] = self.capabilities.unwrap_or([true; 3]);
        Ok(Entry {
            base: self.base,
            capabilities: Capabilities { pull, resolve, push },
            tls: Tls { ca, clients, skip_verify: self.skip_verify },
            headers: self.headers,
            own: self.own,
        })
    }
}

#[cfg(test)]
mod tests;
