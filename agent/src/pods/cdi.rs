//! Devices as vendors describe them: the Container Device Interface, versions 0.3.0 to 1.1.0 of its specification.
//!
//! A container names devices (`vendor.example/gpu=0`), files in the configured folders say what each means for a
//! container: nodes, mounts, variables, hooks. Files are read when a container asks and never kept: vendors write them
//! while the node runs. A file that is broken matters only to those who ask for a device that may be in it.

mod edits;
mod file;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    path::{Path, PathBuf},
};

use oci_spec::runtime::Spec;

use crate::error::{Error, Result};
use file::File;

/// Annotations of a container beside `cdi_devices`; the values are names, with commas between them.
const ANNOTATIONS: &str = "cdi.k8s.io/";

/// A device's qualified name: `VENDOR/CLASS=NAME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Name<'a> {
    kind: &'a str,
    device: &'a str,
}

/// The devices that a container asks for: in order, each once.
pub(crate) fn asked(devices: Vec<String>, annotations: &BTreeMap<String, String>) -> Vec<String> {
    let annotated = annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATIONS));
    let annotated = annotated.flat_map(|(_, value)| value.split(',')).map(|name| name.trim().to_owned());
    let mut seen = BTreeSet::new();
    devices.into_iter().chain(annotated).filter(|name| seen.insert(name.clone())).collect()
}

/// Puts devices into the specification of a container.
///
/// # Errors
/// A name that is none, a device that no file has or that two files of one folder have, a node that is not on the host.
pub(crate) fn inject(spec: &mut Spec, devices: &[String], folders: &[PathBuf]) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let registry = Registry::read(folders);
    let mut begun = BTreeSet::new();
    for device in devices {
        let name = parse(device).ok_or_else(|| {
            Error::Invalid(format!("CDI device {device:?} is not of the form VENDOR/CLASS=NAME"))
        })?;
        let (number, file) = registry.find(name)?;
        // What is common to a file's devices is done once, before the first of them.
        if begun.insert(number) {
            edits::apply(spec, &file.common, device)?;
        }
        if let Some(own) = file.devices.get(name.device) {
            edits::apply(spec, own, device)?;
        }
    }
    Ok(())
}

fn parse(text: &str) -> Option<Name<'_>> {
    let (kind, device) = text.split_once('=')?;
    (is_kind(kind) && is_device(device)).then_some(Name { kind, device })
}

/// `VENDOR/CLASS`: letters, digits and a few others, beginning with a letter.
fn is_kind(text: &str) -> bool {
    let part = |part: &str, more: &[u8]| {
        part.starts_with(|first: char| first.is_ascii_alphabetic())
            && part.ends_with(|last: char| last.is_ascii_alphanumeric())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    text.split_once('/').is_some_and(|(vendor, class)| part(vendor, b"-_.") && part(class, b"-_."))
}

fn is_device(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(edge)
        && text.ends_with(edge)
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
}

/// Every file of the folders, and where each device is.
#[derive(Debug, Default)]
struct Registry {
    files: Vec<(PathBuf, File)>,
    /// By kind and device: its file, or the two that contradict each other.
    places: BTreeMap<(String, String), Place>,
    /// Files that can't be understood, and why.
    broken: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    folder: usize,
    file: usize,
    rival: Option<usize>,
}

impl Registry {
    /// A device in a later folder takes the place of one in an earlier.
    fn read(folders: &[PathBuf]) -> Registry {
        let mut registry = Registry::default();
        for (folder, path) in folders.iter().enumerate() {
            for path in file::list(path) {
                match file::read(&path) {
                    Ok(file) => registry.add(folder, path, file),
                    Err(problem) => registry.broken.push(format!("{}: {problem}", path.display())),
                }
            }
        }
        registry
    }

    fn add(&mut self, folder: usize, path: PathBuf, file: File) {
        let number = self.files.len();
        for device in file.devices.keys() {
            match self.places.entry((file.kind.clone(), device.clone())) {
                Entry::Occupied(mut held) if held.get().folder == folder => {
                    held.get_mut().rival = Some(number)
                }
                Entry::Occupied(mut held) => {
                    held.insert(Place { folder, file: number, rival: None });
                }
                Entry::Vacant(free) => {
                    free.insert(Place { folder, file: number, rival: None });
                }
            }
        }
        self.files.push((path, file));
    }

    fn find(&self, name: Name<'_>) -> Result<(usize, &File)> {
        let shown = format!("{}={}", name.kind, name.device);
        let Some(place) = self.places.get(&(name.kind.to_owned(), name.device.to_owned())) else {
            let broken = match &self.broken[..] {
                [] => String::new(),
                broken => format!("; not understood: {}", broken.join(", ")),
            };
            return Err(Error::Invalid(format!("no CDI file has the device {shown}{broken}")));
        };
        let path = |number: usize| self.files[number].0.as_path();
        match place.rival {
            Some(rival) => {
                let (one, other): (&Path, &Path) = (path(place.file), path(rival));
                Err(Error::Invalid(format!(
                    "CDI device {shown} is in both {} and {}; remove one of them",
                    one.display(),
                    other.display()
                )))
            }
            None => Ok((place.file, &self.files[place.file].1)),
        }
    }
}
