//! Configurations of CNI networks: a list of plugins and what is common to them (CNI 1.1, section 1).

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::Error;
use super::plugin::Verb;

/// The versions whose plugins and results are understood, oldest first.
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// What files of configurations are named, as libcni has it.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// The plugins that connect a pod, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// The network's name.
    pub name: String,
    /// The version of the specification that its plugins are spoken to in.
    pub version: String,
    /// CHECK is not to be asked.
    pub disable_check: bool,
    /// GC is not to be asked.
    pub disable_gc: bool,
    /// Each plugin's configuration, as it stands in the file.
    pub plugins: Vec<Map<String, Value>>,
}

impl List {
    /// The first configuration of a folder, by file name; `None`: there is no such file, or no folder.
    pub(super) fn first_of(folder: &Path) -> Result<Option<List>, Error> {
        if folder.as_os_str().is_empty() {
            return Ok(None);
        }
        let Some(path) = files(folder, &EXTENSIONS)?.into_iter().next() else { return Ok(None) };
        let mut whole = object(&path)?;
        if path.extension().is_some_and(|extension| extension == "conflist") {
            add_plugins_beside(&path, &mut whole)?;
        }
        List::parse(&whole).map(Some).map_err(broken(&path))
    }

    /// A list of plugins (`.conflist`), or a single one (`.conf`).
    pub(super) fn parse(whole: &Map<String, Value>) -> Result<List, String> {
        let name = text(whole, "name")?.unwrap_or_default().to_owned();
        if !is_name(&name) {
            return Err(format!("\"name\" {name:?} is not of letters, digits, '_', '.' and '-'"));
        }
        let plugins = match whole.get("plugins") {
            None => vec![whole.clone()],
            Some(plugins) => serde_json::from_value(plugins.clone())
                .map_err(|error| format!("\"plugins\" is no list of objects: {error}"))?,
        };
        if plugins.is_empty() {
            return Err("\"plugins\" is empty".to_owned());
        }
        for (index, plugin) in plugins.iter().enumerate() {
            match text(plugin, "type")? {
                None | Some("") => return Err(format!("plugin {index} has no \"type\"")),
                Some(kind) if kind.contains('/') => {
                    return Err(format!("\"type\" {kind:?} is no file name"));
                }
                Some(_) => {}
            }
        }
        Ok(List {
            version: version(whole)?,
            disable_check: flag(whole, "disableCheck")?,
            disable_gc: flag(whole, "disableGC")?,
            plugins,
            name,
        })
    }

    /// Whether the list's version has a verb, and the list allows it.
    pub(super) fn knows(&self, verb: Verb) -> bool {
        let (since, disabled) = match verb {
            Verb::Add | Verb::Del => return true,
            Verb::Check => ("0.4.0", self.disable_check),
            Verb::Gc => ("1.1.0", self.disable_gc),
            Verb::Status => ("1.1.0", false),
        };
        let place = |version: &str| VERSIONS.iter().position(|known| *known == version);
        !disabled && place(&self.version) >= place(since)
    }

    /// What a plugin of the list reads in every call.
    pub(super) fn input(&self, plugin: &Map<String, Value>) -> Map<String, Value> {
        let mut input = plugin.clone();
        input.insert("name".into(), self.name.clone().into());
        input.insert("cniVersion".into(), self.version.clone().into());
        input
    }
}

/// The files of a folder with one of these extensions, by name; none if there is no folder.
fn files(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable(folder))?,
    };
    let files = entries.flatten().filter(|entry| !entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut paths: Vec<PathBuf> = files.map(|entry| entry.path()).collect();
    paths.retain(|path| {
        path.extension().and_then(|text| text.to_str()).is_some_and(|text| extensions.contains(&text))
    });
    paths.sort();
    Ok(paths)
}

fn object(path: &Path) -> Result<Map<String, Value>, Error> {
    let bytes = fs::read(path).map_err(unreadable(path))?;
    serde_json::from_slice(&bytes).map_err(|error| broken(path)(error.to_string()))
}

/// Adds to a list the plugins of the `.conf` files in the folder that is named after the network, as libcni does since
/// CNI 1.1 unless the list has `loadOnlyInlinedPlugins`. So a list need not have any of its own.
fn add_plugins_beside(list: &Path, whole: &mut Map<String, Value>) -> Result<(), Error> {
    let name = text(whole, "name").map_err(broken(list))?.unwrap_or_default();
    let mut beside = Vec::new();
    if !flag(whole, "loadOnlyInlinedPlugins").map_err(broken(list))? && is_name(name) {
        for path in files(&list.with_file_name(name), &["conf"])? {
            beside.push(Value::Object(object(&path)?));
        }
    }
    let plugins = whole.entry("plugins").or_insert_with(|| Value::Array(Vec::new()));
    // Another value is told when the list is parsed.
    if let Value::Array(plugins) = plugins {
        plugins.extend(beside);
    }
    Ok(())
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Unreadable { path: path.to_owned(), source }
}

fn broken(path: &Path) -> impl Fn(String) -> Error {
    move |problem| Error::Configuration { path: path.to_owned(), problem }
}

/// The plugin's program.
pub(super) fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The newest version that both the list and this agent know.
fn version(whole: &Map<String, Value>) -> Result<String, String> {
    // Without one it is the first (section "Version considerations" of 0.2.0).
    let mut offered = vec![text(whole, "cniVersion")?.filter(|text| !text.is_empty()).unwrap_or("0.1.0")];
    if let Some(more) = whole.get("cniVersions") {
        let more = more.as_array().ok_or("\"cniVersions\" is no list")?;
        offered.extend(more.iter().filter_map(Value::as_str));
    }
    let known = VERSIONS.iter().rev().find(|version| offered.contains(version));
    known
        .map(|version| (*version).to_owned())
        .ok_or_else(|| format!("\"cniVersion\" {} is not among {}", offered.join(", "), VERSIONS.join(", ")))
}

fn flag(whole: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match whole.get(key) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        // libcni takes these words too, from templates that know no other way.
        Some(Value::String(word)) if word == "true" || word == "false" => Ok(word == "true"),
        Some(other) => Err(format!("{key:?} is {other}, which is neither true nor false")),
    }
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match object.get(key) {
        None => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or_else(|| format!("{key:?} is {value} and no text")),
    }
}

/// Section 1 of the specification: it becomes part of file names.
fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}
