//! How much a container may write into its own layer: what it asks for, or what the node gives.
//!
//! The limit is the file system's to keep, as a quota of a project. Where it keeps none, a container that asks for a
//! limit is refused: a limit that is silently absent is worse than none.

use std::{collections::BTreeMap, io, os::fd::BorrowedFd};

use sampan_imagestore::{ProjectQuota, Usage};
use sampan_runtime::quota;

use crate::error::{Error, Result};

/// The annotation of a container with which it asks, over CRI too: bytes, or a number with k, m, g, t behind it.
pub(crate) const ANNOTATION: &str = "io.sampan.storage-size";

/// The limit for a container with these annotations, if there is to be one.
pub(crate) fn limit(annotations: &BTreeMap<String, String>, default: Option<u64>) -> Result<Option<u64>> {
    let Some(text) = annotations.get(ANNOTATION) else { return Ok(default) };
    let bytes = bytes(text).filter(|bytes| *bytes > 0);
    let invalid =
        || Error::Invalid(format!("annotation {ANNOTATION}: {text:?} is no size such as 10g or 500m"));
    bytes.ok_or_else(invalid).map(Some)
}

/// In 1024, as sizes of memory are, whether the letter stands alone or as `Gi` or `GiB`.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (number, suffix) = lower.split_at(end);
    let shift = match suffix {
        "" | "b" => 0,
        "k" | "ki" | "kb" | "kib" => 10,
        "m" | "mi" | "mb" | "mib" => 20,
        "g" | "gi" | "gb" | "gib" => 30,
        "t" | "ti" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// The kernel's project quotas, for a store that makes no system calls of this kind itself.
#[derive(Debug)]
pub(crate) struct Projects;

impl ProjectQuota for Projects {
    fn assign(&self, directory: BorrowedFd<'_>, project: u32) -> io::Result<()> {
        quota::assign(directory, project).map_err(io::Error::from)
    }

    fn limit(&self, on: BorrowedFd<'_>, project: u32, bytes: u64) -> io::Result<()> {
        quota::limit(on, project, bytes).map_err(io::Error::from)
    }

    fn usage(&self, on: BorrowedFd<'_>, project: u32) -> io::Result<Usage> {
        let usage = quota::usage(on, project).map_err(io::Error::from)?;
        Ok(Usage { bytes: usage.bytes, inodes: usage.inodes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Result<Option<u64>> {
        limit(&BTreeMap::from([(ANNOTATION.to_owned(), text.to_owned())]), Some(7))
    }

    #[test]
    fn a_container_has_what_it_asks_for_or_what_the_node_gives() {
        assert_eq!(limit(&BTreeMap::new(), None).unwrap(), None);
        assert_eq!(limit(&BTreeMap::new(), Some(7)).unwrap(), Some(7));
        for (text, bytes) in [("1", 1), ("10g", 10 << 30), ("2Gi", 2 << 30), ("500 m", 0), ("3MB", 3 << 20)] {
            match bytes {
                0 => assert!(asked(text).is_err(), "{text}"),
                bytes => assert_eq!(asked(text).unwrap(), Some(bytes), "{text}"),
            }
        }
        for text in ["", "0", "-1", "g", "1x", "99999999999999999999", "99999999t"] {
            assert!(asked(text).is_err(), "{text}");
        }
    }
}
