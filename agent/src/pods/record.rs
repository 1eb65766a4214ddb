//! Records of pods and containers on disk: one checksummed JSON file each.
//!
//! A record is written whole (temporary file, rename), so a crash of the agent leaves the old or the new one.
//! It is not synced: a power cut ends every container anyway, and a record that it tore fails its checksum
//! and costs that one pod (docs/decisions). The first line is the checksum of the rest; `cat` shows it all.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{
    config::{ContainerConfig, MountConfig, PodConfig, Resources},
    id::{ContainerId, PodId},
};
use crate::{
    error::{Result, at},
    network::Attachment,
};

/// Where a pod is in its life; see `task.rs` for the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodPhase {
    /// Being made. Found so after a restart, it is taken down.
    Creating,
    /// Its monitor runs.
    Ready,
    /// Taken down, or being taken down; only the record and logs are left.
    Stopped,
    /// Being removed. Found so after a restart, the removal is finished.
    Removing,
}

/// What is known of a pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodRecord {
    /// Its id.
    pub id: PodId,
    /// As asked for.
    pub config: PodConfig,
    /// Where it is in its life.
    pub phase: PodPhase,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// Which boot of the machine it belongs to.
    pub boot_id: String,
    /// Its monitor's process.
    pub monitor_pid: Option<i32>,
    /// Its addresses and ports.
    pub attachment: Option<Attachment>,
    /// Its limits as they are in force.
    #[serde(default)]
    pub resources: Resources,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerPhase {
    /// Being made. Found so after a restart, it is taken down and forgotten.
    Creating,
    /// Waits for its start.
    Created,
    /// Runs.
    Running,
    /// Has ended.
    Exited,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The process's own, or 128 and the signal.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, or what took it.
    pub reason: String,
    /// For people; may be empty.
    pub message: String,
    /// Nanoseconds since 1970.
    pub finished_at: i64,
}

/// What is known of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: ContainerId,
    /// As asked for.
    pub config: ContainerConfig,
    /// Id of its image.
    pub image_id: String,
    /// Where it is in its life.
    pub phase: ContainerPhase,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// Nanoseconds since 1970; 0: has not started.
    pub started_at: i64,
    /// How it ended.
    pub exit: Option<ExitRecord>,
    /// Its first process, as the host numbers it.
    pub pid: Option<i32>,
    /// Its cgroup below the roots of the hierarchies.
    pub cgroup: String,
    /// Its log file.
    pub log_path: Option<PathBuf>,
    /// The command line as it was started.
    pub argv: Vec<String>,
    /// The user it runs as.
    pub user: UserIds,
    /// The signal that asks it to end.
    pub stop_signal: i32,
    /// Anonymous volumes, which the image asks for; they go with the container.
    #[serde(default)]
    pub volumes: Vec<MountConfig>,
}

impl ContainerRecord {
    /// The key of the snapshot that shows the image of its mount of that number.
    pub(crate) fn image_volume_key(&self, number: usize) -> String {
        format!("{}.{number}", self.id)
    }

    /// Whether it was made of the image with this id, or has it mounted.
    pub(crate) fn uses_image(&self, id: &str) -> bool {
        let mounted = |mount: &MountConfig| mount.image.as_ref().is_some_and(|volume| volume.id == id);
        self.image_id == id || self.config.mounts.iter().any(mounted)
    }

    /// The keys of all its snapshots: its root's, then those of the images it mounts.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        let images = self.config.mounts.iter().enumerate().filter(|(_, mount)| mount.image.is_some());
        let images = images.map(|(number, _)| self.image_volume_key(number));
        std::iter::once(self.id.to_string()).chain(images).collect()
    }
}

/// The numbers a container runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserIds {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All other groups.
    pub groups: Vec<u32>,
}

/// Where records live: `ROOT/pods/POD/pod.json` and `ROOT/pods/POD/containers/CONTAINER.json`.
#[derive(Debug, Clone)]
pub struct Records {
    root: PathBuf,
}

impl Records {
    /// The records beneath `ROOT/pods`, which is made if missing.
    pub fn open(root: &Path) -> Result<Records> {
        let root = root.join("pods");
        fs::create_dir_all(&root).map_err(at("create", &root))?;
        Ok(Records { root })
    }

    /// A pod's own folder.
    pub fn directory(&self, pod: &PodId) -> PathBuf {
        self.root.join(pod.as_str())
    }

    /// Makes a pod's folders and writes its first record.
    pub fn create(&self, record: &PodRecord) -> Result<()> {
        let containers = self.directory(&record.id).join("containers");
        fs::create_dir_all(&containers).map_err(at("create", &containers))?;
        self.write_pod(record)
    }

    /// Writes a pod's record.
    pub fn write_pod(&self, record: &PodRecord) -> Result<()> {
        write(&self.directory(&record.id).join("pod.json"), record)
    }

    /// Where the anonymous volumes of a container are.
    pub fn volumes(&self, pod: &PodId, id: &ContainerId) -> PathBuf {
        self.directory(pod).join("volumes").join(id.as_str())
    }

    /// Writes a container's record.
    pub fn write_container(&self, pod: &PodId, record: &ContainerRecord) -> Result<()> {
        write(&self.container(pod, &record.id), record)
    }

    /// Forgets a container.
    pub fn remove_container(&self, pod: &PodId, id: &ContainerId) -> Result<()> {
        let volumes = self.volumes(pod, id);
        ignore_missing(fs::remove_dir_all(&volumes)).map_err(at("remove", volumes))?;
        let path = self.container(pod, id);
        ignore_missing(fs::remove_file(&path)).map_err(at("remove", path))
    }

    /// Forgets a pod with everything in its folder.
    pub fn remove_pod(&self, pod: &PodId) -> Result<()> {
        let path = self.directory(pod);
        ignore_missing(fs::remove_dir_all(&path)).map_err(at("remove", path))
    }

    /// Every pod with its containers. What cannot be read is reported in the log and given back by id,
    /// so that its remains can be taken away.
    pub fn load(&self) -> Result<Loaded> {
        let mut loaded = Loaded::default();
        for entry in fs::read_dir(&self.root).map_err(at("read", &self.root))?.flatten() {
            let Some(id) = entry.file_name().to_str().and_then(PodId::from_file_name) else { continue };
            match read::<PodRecord>(&entry.path().join("pod.json")) {
                Ok(record) => {
                    let containers = self.load_containers(&id, &mut loaded.torn_containers)?;
                    loaded.pods.push((record, containers));
                }
                Err(error) => {
                    tracing::warn!(sandbox.id = %id, %error, "pod record is not readable; its remains are removed");
                    loaded.torn_pods.push(id);
                }
            }
        }
        Ok(loaded)
    }

    fn load_containers(
        &self,
        pod: &PodId,
        torn: &mut Vec<(PodId, ContainerId)>,
    ) -> Result<Vec<ContainerRecord>> {
        let folder = self.directory(pod).join("containers");
        let mut records = Vec::new();
        let entries = match fs::read_dir(&folder) {
            // The pod's removal was cut off behind that of its containers.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(records),
            entries => entries.map_err(at("read", &folder))?,
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(id) =
                name.to_str().and_then(|n| n.strip_suffix(".json")).and_then(ContainerId::from_file_name)
            else {
                continue;
            };
            match read::<ContainerRecord>(&entry.path()) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::warn!(container.id = %id, %error, "container record is not readable; its remains are removed");
                    torn.push((pod.clone(), id));
                }
            }
        }
        Ok(records)
    }

    fn container(&self, pod: &PodId, id: &ContainerId) -> PathBuf {
        self.directory(pod).join("containers").join(format!("{id}.json"))
    }
}

/// What [`Records::load`] found.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Pods and their containers.
    pub pods: Vec<(PodRecord, Vec<ContainerRecord>)>,
    /// Pods whose record fails its checksum.
    pub torn_pods: Vec<PodId>,
    /// Containers whose record does.
    pub torn_containers: Vec<(PodId, ContainerId)>,
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn write<T: Serialize>(path: &Path, record: &T) -> Result<()> {
    let json = serde_json::to_string_pretty(record).map_err(io::Error::other).map_err(at("encode", path))?;
    let text = format!("{}\n{json}\n", checksum(&json));
    let temporary = path.with_extension("json.tmp");
    let written = fs::write(&temporary, text).and_then(|()| replace(&temporary, path));
    if !matches!(written, Ok(Replaced::Moved)) {
        let _ = fs::remove_file(&temporary);
    }
    written.map(|_| ()).map_err(at("write", path))
}

enum Replaced {
    /// The temporary name is free.
    Moved,
    /// It has the old file.
    Exchanged,
}

/// Gives a file its name at one blow. A name that is taken changes hands with the temporary one: where a rename replaces a
/// file, ext4 begins to write the new one to the disk at once, which records that are rewritten with every step need not pay
/// for.
fn replace(temporary: &Path, path: &Path) -> io::Result<Replaced> {
    match renameat_with(CWD, temporary, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(Replaced::Exchanged),
        // Nothing to change with, or a file system that can't.
        Err(_) => fs::rename(temporary, path).map(|()| Replaced::Moved),
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let text = fs::read_to_string(path)?;
    let torn = || io::Error::new(io::ErrorKind::InvalidData, "the checksum does not match");
    let (sum, json) = text.split_once('\n').ok_or_else(torn)?;
    let json = json.strip_suffix('\n').ok_or_else(torn)?;
    if sum != checksum(json) {
        return Err(torn());
    }
    Ok(serde_json::from_str(json)?)
}

fn checksum(json: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(json)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        write(&path, &vec![1, 2, 3]).unwrap();
        assert_eq!(read::<Vec<i32>>(&path).unwrap(), [1, 2, 3]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_torn_record_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        write(&path, &vec![1, 2, 3]).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(read::<Vec<i32>>(&path).is_err(), "cut to {length} bytes");
        }
        let mut flipped = whole.clone();
        flipped[75] ^= 1;
        fs::write(&path, flipped).unwrap();
        assert!(read::<Vec<i32>>(&path).is_err());
    }
}
