//! Image records on disk: one checksummed JSON file an image.
//!
//! A record is written whole and after everything it names is in place, so a record that reads back is the
//! truth. One that does not costs its own image only: it is reported, and a new pull replaces it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Digest, Image, Kind, folder};

/// What went wrong with an image record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory of the records could not be made or read.
    #[error("open image records {path}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A record could not be made durable.
    #[error("write record of image {id}")]
    Write {
        /// The image.
        id: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A record could not be deleted.
    #[error("delete record of image {id}")]
    Delete {
        /// The image.
        id: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Open { source, .. } | Error::Write { source, .. } | Error::Delete { source, .. } => {
                Kind::of_io(source)
            }
        }
    }
}

/// What is kept of an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Grows with every record written: of two records that claim one tag the later is right.
    pub(crate) generation: u64,
    /// The image itself.
    pub(crate) image: Image,
}

/// The directory of the records.
#[derive(Debug)]
pub(crate) struct Metadata {
    path: PathBuf,
    directory: File,
}

/// A file is `{"sha256":"HEX","record":{…}}` and a newline; the sum is that of the inner object's bytes.
const HEAD: &str = "{\"sha256\":\"";
const MIDDLE: &str = "\",\"record\":";
const TAIL: &str = "}\n";
/// A configuration may have 4 MiB, and it is most of the record.
const MAX_RECORD: u64 = 16 << 20;

impl Metadata {
    /// Opens `root/metadata/images`, made if missing.
    pub(crate) fn open(root: &Path) -> Result<Metadata, Error> {
        let path = root.join("metadata/images");
        let directory = folder::closed(&root.join("metadata"))
            .and_then(|_| folder::closed(&path))
            .map_err(|source| Error::Open { path: path.clone(), source })?;
        Ok(Metadata { path, directory })
    }

    /// Every record that is whole, and a sentence about each that is not.
    pub(crate) fn load(&self) -> Result<(Vec<Record>, Vec<String>), Error> {
        let (mut records, mut faults) = (Vec::new(), Vec::new());
        let error = |source| Error::Open { path: self.path.clone(), source };
        for entry in fs::read_dir(&self.path).map_err(error)? {
            let entry = entry.map_err(error)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".tmp") {
                // The rename did not happen, so nobody was told of it.
                let _ = fs::remove_file(entry.path());
            } else if name.ends_with(".json") {
                match read(&entry.path(), &name) {
                    Ok(record) => records.push(record),
                    Err(error) => faults.push(format!("image record {name} is not usable: {error}")),
                }
            }
        }
        Ok((records, faults))
    }

    /// Writes a record in place of the one before, and returns when it is on the disk.
    pub(crate) fn put(&self, record: &Record) -> Result<(), Error> {
        let id = &record.image.id;
        let temporary = self.path.join(format!("{}.tmp", id.hex()));
        self.write(record, &temporary).map_err(|source| {
            let _ = fs::remove_file(&temporary);
            Error::Write { id: id.clone(), source }
        })
    }

    fn write(&self, record: &Record, temporary: &Path) -> io::Result<()> {
        let text = encode(record)?;
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        let path = self.file(&record.image.id);
        let replaces = path.exists();
        fs::rename(temporary, &path)?;
        self.directory.sync_all().inspect_err(|_| {
            // Who is told of a failure must not find the image at the next start. One that was there before stays.
            if !replaces {
                let _ = fs::remove_file(&path);
            }
        })
    }

    /// Deletes the record of an image; without one there is nothing to do.
    pub(crate) fn remove(&self, id: &Digest) -> Result<(), Error> {
        match fs::remove_file(self.file(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.and_then(|()| self.directory.sync_all()),
        }
        .map_err(|source| Error::Delete { id: id.clone(), source })
    }

    fn file(&self, id: &Digest) -> PathBuf {
        self.path.join(format!("{}.json", id.hex()))
    }
}

fn encode(record: &Record) -> io::Result<String> {
    let body = serde_json::to_string(record)?;
    let sum = Digest::of(body.as_bytes());
    Ok(format!("{HEAD}{}{MIDDLE}{body}{TAIL}", sum.hex()))
}

fn decode(text: &str) -> Result<Record, String> {
    let parts = text
        .strip_prefix(HEAD)
        .and_then(|rest| rest.strip_suffix(TAIL))
        .and_then(|rest| rest.split_once(MIDDLE));
    let Some((sum, body)) = parts else {
        return Err("it is cut short or not a record".to_owned());
    };
    if Digest::of(body.as_bytes()).hex() != sum {
        return Err("its checksum does not match".to_owned());
    }
    serde_json::from_str(body).map_err(|error| error.to_string())
}

fn read(path: &Path, name: &str) -> Result<Record, String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_RECORD).read_to_string(&mut text))
        .map_err(|error| error.to_string())?;
    let record = decode(&text)?;
    if name.strip_suffix(".json") != Some(record.image.id.hex()) {
        return Err(format!("it is of image {}", record.image.id));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ChainId, image::Layer};

    fn record(seed: &str) -> Record {
        let digest = Digest::of(seed.as_bytes());
        let layer = Layer {
            digest: digest.clone(),
            diff_id: digest.clone(),
            chain_id: ChainId::base(&digest),
            size: 1,
        };
        let image = Image {
            id: digest.clone(),
            manifest: digest,
            repo_tags: vec![format!("docker.io/library/{seed}:latest")],
            repo_digests: Vec::new(),
            size: 1,
            created: Some(1),
            config: Default::default(),
            layers: vec![layer],
            pinned: false,
            tagged_at: None,
        };
        Record { generation: 1, image }
    }

    #[test]
    fn records_read_back_as_written_and_are_plain_json() {
        let root = tempfile::tempdir().unwrap();
        let metadata = Metadata::open(root.path()).unwrap();
        metadata.put(&record("a")).unwrap();
        metadata.put(&record("b")).unwrap();
        metadata.put(&Record { generation: 7, ..record("a") }).unwrap();
        let (mut records, faults) = Metadata::open(root.path()).unwrap().load().unwrap();
        records.sort_by_key(|record| record.generation);
        assert_eq!(faults, [""; 0]);
        assert_eq!(records.iter().map(|record| record.generation).collect::<Vec<_>>(), [1, 7]);
        assert_eq!(records[1].image, record("a").image);
        let file = root.path().join("metadata/images").join(format!("{}.json", records[0].image.id.hex()));
        serde_json::from_slice::<serde_json::Value>(&fs::read(file).unwrap()).unwrap();
    }

    #[test]
    fn a_damaged_record_costs_one_image_and_is_reported() {
        let root = tempfile::tempdir().unwrap();
        let metadata = Metadata::open(root.path()).unwrap();
        metadata.put(&record("good")).unwrap();
        for (seed, damage) in [("cut", 0), ("flipped", 1), ("empty", 2)] {
            metadata.put(&record(seed)).unwrap();
            let file = metadata.file(&record(seed).image.id);
            let mut bytes = fs::read(&file).unwrap();
            match damage {
                0 => bytes.truncate(bytes.len() / 2),
                1 => bytes[200] ^= 1,
                _ => bytes.clear(),
            }
            fs::write(&file, bytes).unwrap();
        }
        let (records, faults) = metadata.load().unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(faults.len(), 3, "{faults:?}");
        metadata.put(&record("cut")).unwrap();
        assert_eq!(metadata.load().unwrap().1.len(), 2);
    }

    #[test]
    fn a_record_that_was_not_renamed_is_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let metadata = Metadata::open(root.path()).unwrap();
        let leftover = root.path().join("metadata/images/x.tmp");
        fs::write(&leftover, "{").unwrap();
        assert_eq!(metadata.load().unwrap().1, [""; 0]);
        assert!(!leftover.exists());
    }

    proptest! {
        #[test]
        fn reading_any_text_never_panics(text in "\\PC*") {
            let _ = decode(&text);
            let _ = decode(&format!("{HEAD}{text}{TAIL}"));
        }
    }
}
