//! One file of the Container Device Interface: JSON, or YAML, of which JSON is a part.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{LinuxIntelRdt, LinuxNetDevice};
use serde::Deserialize;

use super::{is_device, is_kind};

/// Those that are understood.
const VERSIONS: [&str; 8] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
/// Larger than any vendor's.
const MAX_SIZE: u64 = 4 << 20;

/// What a file says.
#[derive(Debug)]
pub(super) struct File {
    /// `VENDOR/CLASS` of its devices.
    pub(super) kind: String,
    /// What any of its devices brings along.
    pub(super) common: Edits,
    /// Each device by its name.
    pub(super) devices: BTreeMap<String, Edits>,
}

/// What changes in a container.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Edits {
    /// `NAME=VALUE`.
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<Node>,
    pub(super) net_devices: Vec<NetDevice>,
    pub(super) hooks: Vec<Hook>,
    pub(super) mounts: Vec<Mount>,
    pub(super) intel_rdt: Option<LinuxIntelRdt>,
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Node {
    pub(super) path: PathBuf,
    pub(super) host_path: Option<PathBuf>,
    /// `b`, `c`, `u` or `p`; absent: what the host's is.
    pub(super) r#type: Option<String>,
    pub(super) major: Option<i64>,
    pub(super) minor: Option<i64>,
    pub(super) file_mode: Option<u32>,
    /// Some of `r`, `w` and `m`.
    pub(super) permissions: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct NetDevice {
    pub(super) host_interface_name: String,
    pub(super) name: String,
}

impl NetDevice {
    pub(super) fn in_container(&self) -> LinuxNetDevice {
        let mut device = LinuxNetDevice::default();
        device.set_name(Some(self.name.clone()));
        device
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: PathBuf,
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default)]
    pub(super) env: Vec<String>,
    /// Seconds.
    pub(super) timeout: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) host_path: PathBuf,
    pub(super) container_path: PathBuf,
    pub(super) r#type: Option<String>,
    #[serde(default)]
    pub(super) options: Vec<String>,
}

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Raw {
    cdi_version: String,
    kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    container_edits: Edits,
}

/// The files of a folder, by name; a missing folder has none.
pub(super) fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| {
        path.extension().is_some_and(|text| text == "json" || text == "yaml" || text == "yml")
    });
    paths.sort();
    paths
}

pub(super) fn read(path: &Path) -> Result<File, String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_SIZE {
        return Err(format!("it has {size} bytes, more than {MAX_SIZE}"));
    }
    parse(&fs::read_to_string(path).map_err(|error| error.to_string())?)
}

pub(super) fn parse(text: &str) -> Result<File, String> {
    let raw: Raw = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if !VERSIONS.contains(&raw.cdi_version.trim_start_matches('v')) {
        return Err(format!("cdiVersion {:?} is not among {}", raw.cdi_version, VERSIONS.join(", ")));
    }
    if !is_kind(&raw.kind) {
        return Err(format!("kind {:?} is not of the form VENDOR/CLASS", raw.kind));
    }
    let mut devices = BTreeMap::new();
    for device in raw.devices {
        if !is_device(&device.name) {
            return Err(format!("a device cannot be named {:?}", device.name));
        }
        if devices.contains_key(&device.name) {
            return Err(format!("device {:?} is there twice", device.name));
        }
        devices.insert(device.name, device.container_edits);
    }
    Ok(File { kind: raw.kind, common: raw.container_edits, devices })
}
