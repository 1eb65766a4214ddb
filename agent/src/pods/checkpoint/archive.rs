//! The archive of one container: a tar with the names that tools for checkpoints of Kubernetes look for.
//!
//! ```text
//!  config.dump      which container and image it was        checkpoint/      CRIU's images
//!  spec.dump        its OCI configuration                    rootfs-diff.tar  what it changed of its image
//!  status           how it was                               container.log    what it had said
//!  sampan.dump      the agent's own record, to restore from  dump.log, stats-dump
//! ```
//!
//! An archive appears whole or not at all, and only root can read it: the memory of processes is in it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
};

use serde::de::DeserializeOwned;
use serde_json::json;

use crate::{
    error::{Error, Result, at},
    pods::{ContainerId, record::ContainerRecord},
    services::time,
};

/// CRIU's images, in an archive and beside the difference in a folder.
pub(super) const IMAGES: &str = "checkpoint";
/// What the container has changed of its image.
pub(super) const CHANGES: &str = "rootfs-diff.tar";
const RECORD: &str = "sampan.dump";
/// Of CRIU's files, those that tools expect at the top too.
const LOGS: [&str; 2] = [sampan_runtime::criu::DUMP_LOG, "stats-dump"];
/// No record is longer.
const MAX_RECORD: u64 = 4 << 20;

/// What an archive is made of.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) container: &'a ContainerRecord,
    /// Nanoseconds since 1970.
    pub(super) taken_at: i64,
    /// With [`IMAGES`] and [`CHANGES`].
    pub(super) folder: &'a Path,
    /// With `config.json`.
    pub(super) bundle: &'a Path,
}

/// Writes an archive at `path`, in place of a file that is there.
pub(super) fn write(path: &Path, parts: &Parts<'_>) -> Result<()> {
    let temporary = temporary(path)?;
    let written = write_file(&temporary, parts)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_folder(path))
        .map_err(at("write", path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A name beside `path` that nobody else has.
pub(super) fn temporary(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.ok_or_else(|| Error::Invalid(format!("{} names no file", path.display())))?;
    Ok(path.with_file_name(format!(".{name}.{}.partial", ContainerId::random().short())))
}

/// Has a name last that a folder has got.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn write_file(path: &Path, parts: &Parts<'_>) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut archive = tar::Builder::new(BufWriter::with_capacity(1 << 20, file));
    archive.mode(tar::HeaderMode::Complete);
    archive.follow_symlinks(false);
    for (name, text) in documents(parts)? {
        append_text(&mut archive, name, &text)?;
    }
    archive.append_path_with_name(parts.bundle.join("config.json"), "spec.dump")?;
    archive.append_path_with_name(parts.folder.join(CHANGES), CHANGES)?;
    let images = parts.folder.join(IMAGES);
    archive.append_dir(IMAGES, &images)?;
    let mut names: Vec<_> =
        fs::read_dir(&images)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    names.sort();
    for name in names {
        archive.append_path_with_name(images.join(&name), Path::new(IMAGES).join(&name))?;
    }
    for name in LOGS.into_iter().filter(|name| images.join(name).exists()) {
        archive.append_path_with_name(images.join(name), name)?;
    }
    if let Some(log) = parts.container.log_path.as_ref().filter(|log| log.is_file()) {
        append_log(&mut archive, log)?;
    }
    archive.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn documents(parts: &Parts<'_>) -> io::Result<[(&'static str, Vec<u8>); 3]> {
    let Parts { container, taken_at, .. } = *parts;
    let config = json!({
        "id": container.id.as_str(),
        "name": container.config.name,
        "rootfsImage": container.config.image_ref,
        "rootfsImageRef": container.image_id,
        "rootfsImageName": container.config.image,
        "runtime": "sampan-runtime",
        "createdTime": time(container.created_at),
        "checkpointedTime": time(taken_at),
        "restored": false,
    });
    let status = json!({
        "id": container.id.as_str(),
        "status": "running",
        "pid": container.pid,
        "createdTime": time(container.created_at),
        "startedTime": time(container.started_at),
        "logPath": container.log_path,
    });
    Ok([
        ("config.dump", serde_json::to_vec_pretty(&config)?),
        ("status", serde_json::to_vec_pretty(&status)?),
        (RECORD, serde_json::to_vec_pretty(container)?),
    ])
}

fn append_text(archive: &mut tar::Builder<impl Write>, name: &str, text: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(text.len() as u64);
    header.set_mode(0o600);
    archive.append_data(&mut header, name, text)
}

/// The log may grow meanwhile, or be cut; an entry has the length that its header says.
fn append_log(archive: &mut tar::Builder<impl Write>, log: &Path) -> io::Result<()> {
    let file = File::open(log)?;
    let length = file.metadata()?.len();
    let mut header = tar::Header::new_ustar();
    header.set_size(length);
    header.set_mode(0o600);
    archive.append_data(&mut header, "container.log", file.chain(io::repeat(0)).take(length))
}

/// The record in an archive.
pub(super) fn record(path: &Path) -> Result<ContainerRecord> {
    let mut archive = tar::Archive::new(open_trusted(path)?);
    let mut found = None;
    for entry in archive.entries().map_err(at("read", path))? {
        let mut entry = entry.map_err(at("read", path))?;
        if entry.path().is_ok_and(|name| name == Path::new(RECORD)) {
            found = Some(parse(path, (&mut entry).take(MAX_RECORD))?);
            break;
        }
    }
    found.ok_or_else(|| Error::Invalid(format!("{} is no checkpoint: it has no {RECORD}", path.display())))
}

/// What a JSON file or entry holds.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, text: impl Read) -> Result<T> {
    serde_json::from_reader(BufReader::new(text))
        .map_err(|error| Error::Invalid(format!("{} is no checkpoint: {error}", path.display())))
}

/// Lays out images and difference in a new folder. Nothing else of the archive is looked at, and no name of it is
/// resolved.
pub(super) fn extract(path: &Path, folder: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder.join(IMAGES))
        .map_err(at("create", folder))?;
    let mut archive = tar::Archive::new(open_trusted(path)?);
    for entry in archive.entries().map_err(at("read", path))? {
        let mut entry = entry.map_err(at("read", path))?;
        if entry.header().entry_type() != tar::EntryType::Regular {
            continue;
        }
        let Some(target) = entry.path().ok().and_then(|name| wanted(&name)) else { continue };
        let target = folder.join(target);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target);
        file.and_then(|mut file| io::copy(&mut entry, &mut file)).map_err(at("write", target))?;
    }
    match folder.join(CHANGES).exists() {
        true => Ok(()),
        false => Err(Error::Invalid(format!("{} is no checkpoint: it has no {CHANGES}", path.display()))),
    }
}

/// Where an entry goes, if it is of use: the difference, or a file right in the images' folder.
fn wanted(name: &Path) -> Option<PathBuf> {
    let mut parts = name.components();
    match (parts.next()?, parts.next(), parts.next()) {
        (Component::Normal(file), None, None) if file == CHANGES => Some(CHANGES.into()),
        (Component::Normal(folder), Some(Component::Normal(file)), None) if folder == IMAGES => {
            Some(Path::new(IMAGES).join(file))
        }
        _ => None,
    }
}

/// Opens what only root can have written: a checkpoint says what its processes may do.
pub(super) fn open_trusted(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().read(true).custom_flags(libc_flags()).open(path);
    let file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::NotFound { object: "checkpoint", id: path.display().to_string() },
        _ => at("open", path)(error),
    })?;
    let metadata = file.metadata().map_err(at("look at", path))?;
    if !metadata.is_file() {
        return Err(Error::Invalid(format!("{} is no checkpoint: it is no file", path.display())));
    }
    if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
        return Err(Error::Precondition(format!(
            "{} is not trusted: it has to be root's, and nobody else may write to it",
            path.display()
        )));
    }
    Ok(file)
}

/// A pipe in its place must not hold up anybody.
fn libc_flags() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits().cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_and_the_difference_are_taken() {
        assert_eq!(wanted(Path::new("rootfs-diff.tar")), Some("rootfs-diff.tar".into()));
        assert_eq!(wanted(Path::new("checkpoint/pages-1.img")), Some("checkpoint/pages-1.img".into()));
        for name in [
            "checkpoint",
            "checkpoint/../x",
            "../checkpoint/x",
            "/checkpoint/x",
            "checkpoint/a/b",
            "spec.dump",
        ] {
            assert_eq!(wanted(Path::new(name)), None, "{name}");
        }
    }

    #[test]
    fn what_others_can_write_is_not_restored() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.tar");
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
        assert!(open_trusted(&path).unwrap_err().to_string().contains("not trusted"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(open_trusted(&path).is_ok());
        assert!(record(&path).is_err());
        assert!(matches!(open_trusted(&folder.path().join("none")), Err(Error::NotFound { .. })));
    }
}
