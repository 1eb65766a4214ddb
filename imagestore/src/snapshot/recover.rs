//! What is there when the snapshots are opened.
//!
//! Everything without a record, and everything in the folders for temporary things, is left over from a crash
//! and deleted. What cannot be deleted (something may still be mounted in it) is reported and passed over.

use std::{
    collections::HashSet,
    ffi::CString,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::fs::Dir;
use tracing::warn;

use super::{Active, Committed, Error, Folders, State, check_key, open_directory, record};
use crate::layer::remove_tree;

pub(super) fn recover(folders: &Folders) -> Result<State, Error> {
    let mut state = State::default();
    for name in names(folders, folders.committed.as_fd(), "committed")? {
        let read = open_record::<record::Layer>(folders.committed.as_fd(), &name);
        let usable = |record: &record::Layer| {
            record.chain.digest().hex() == name
                && record.boot.as_ref().is_none_or(|boot| *boot == folders.boot)
        };
        match read.filter(usable) {
            Some(record) => {
                // What an earlier process of this boot has not synced is for us to sync.
                if record.boot.is_some() {
                    state.insert_unsynced(record);
                } else {
                    state.committed.insert(record.chain.clone(), Committed { record, unsynced: None });
                }
            }
            None => retire(folders, folders.committed.as_fd(), &name),
        }
    }
    for orphan in orphans(&state) {
        state.committed.remove(&orphan);
        retire(folders, folders.committed.as_fd(), orphan.digest().hex());
    }
    for name in names(folders, folders.active.as_fd(), "active")? {
        let read = open_record::<record::Active>(folders.active.as_fd(), &name);
        let usable = |record: &record::Active| {
            record.key == name && check_key(&name).is_ok() && state.stack(record.parent.as_ref()).is_ok()
        };
        match read.filter(usable) {
            Some(record) => {
                state.last_project = state.last_project.max(record.project);
                let active = Active::new(record.parent, record.access);
                state.active.insert(record.key, Active { project: record.project, ready: true, ..active });
            }
            None => retire(folders, folders.active.as_fd(), &name),
        }
    }
    empty(folders, folders.unpacking.as_fd(), "unpacking")?;
    empty(folders, folders.staging.as_fd(), "staging")?;
    empty(folders, folders.removing.as_fd(), "removing")?;
    Ok(state)
}

/// Layers with something missing below them: of no use, and never to be completed by accident.
fn orphans(state: &State) -> Vec<crate::ChainId> {
    let mut whole = HashSet::new();
    let mut orphans = Vec::new();
    for chain in state.committed.keys() {
        let mut path = Vec::new();
        let mut next = Some(chain);
        let complete = loop {
            let Some(chain) = next else { break true };
            if whole.contains(chain) {
                break true;
            }
            // A circle of parents cannot be made, but a file can say anything.
            if path.len() > state.committed.len() {
                break false;
            }
            path.push(chain.clone());
            match state.committed.get(chain) {
                Some(layer) => next = layer.record.parent.as_ref(),
                None => break false,
            }
        };
        if complete {
            whole.extend(path);
        } else {
            orphans.push(chain.clone());
        }
    }
    orphans
}

fn open_record<T: serde::de::DeserializeOwned + serde::Serialize>(
    parent: BorrowedFd<'_>,
    name: &str,
) -> Option<T> {
    let directory = open_directory(parent, name).ok()?;
    open_directory(directory.as_fd(), "fs").ok()?;
    record::read(directory.as_fd())
}

fn retire(folders: &Folders, parent: BorrowedFd<'_>, name: &str) {
    warn!(name, "snapshot has no valid record and is deleted");
    if let Err(error) = folders.retire(parent, name) {
        warn!(%error, name, "snapshot not moved away");
    }
}

fn empty(folders: &Folders, folder: BorrowedFd<'_>, title: &str) -> Result<(), Error> {
    for name in names(folders, folder, title)? {
        let Ok(path) = CString::new(name.as_str()) else { continue };
        if let Err(error) = remove_tree(folder, &path, &mut |_, _| {}) {
            warn!(%error, name, folder = title, "leftover not removed");
        }
    }
    Ok(())
}

fn names(folders: &Folders, folder: BorrowedFd<'_>, title: &str) -> Result<Vec<String>, Error> {
    let error = || Error::io("getdents", folders.path.join(title));
    let mut names = Vec::new();
    for entry in Dir::read_from(folder).map_err(error())? {
        let entry = entry.map_err(error())?;
        if let Ok(name) = entry.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
