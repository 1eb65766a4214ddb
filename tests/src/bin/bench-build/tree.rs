//! A tree of files as a table: what can be seen of each name but for its times.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use anyhow::Result;
use sha2::{Digest as _, Sha256};

/// Where builds differ by nature: what is named after the moment, drawn by lot, or of the machine. With the reason.
const LEFT_OUT: [(&str, &str); 9] = [
    ("var/log/", "logs tell the time"),
    ("var/cache/ldconfig/aux-cache", "has times of files in it"),
    ("var/cache/debconf/", "has times in it"),
    ("var/lib/dpkg/", "status files and logs with times, and backups of them"),
    ("var/lib/apt/", "lists and extended states of the moment"),
    ("var/cache/apt/", "caches with times in them"),
    ("etc/shadow", "has the day of each password's last change"),
    ("etc/ssl/", "a certificate is made anew by each installation"),
    ("var/lib/systemd/", "drawn by lot"),
];

/// What buildah leaves of what it mounted while it built.
const MOUNTED_ON: [&str; 3] = ["etc/hostname", "etc/hosts", "etc/resolv.conf"];

/// By path: what lies there.
pub(crate) type Tree = BTreeMap<String, String>;

/// Reads the tree below a directory.
pub(crate) fn read(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    walk(root, root, &mut tree)?;
    Ok(tree)
}

fn walk(root: &Path, at: &Path, tree: &mut Tree) -> Result<()> {
    for entry in fs::read_dir(at)? {
        let path = entry?.path();
        let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
        let metadata = fs::symlink_metadata(&path)?;
        let kind = metadata.file_type();
        let empty = metadata.len() == 0 && MOUNTED_ON.contains(&&*name);
        if empty || LEFT_OUT.iter().any(|(left_out, _)| name.starts_with(left_out)) {
            continue;
        }
        let what = if kind.is_dir() {
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("link to {}", fs::read_link(&path)?.display())
        } else if kind.is_file() {
            format!(
                "file of {} bytes, {}",
                metadata.len(),
                &hex::encode(Sha256::digest(fs::read(&path)?))[..12]
            )
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else {
            format!("device {:x}", metadata.rdev())
        };
        let mode = if kind.is_symlink() { 0 } else { metadata.mode() & 0o7777 };
        tree.insert(
            name,
            format!("{what}, {mode:o} {}:{}{}", metadata.uid(), metadata.gid(), capability(&path)),
        );
        if kind.is_dir() {
            walk(root, &path, tree)?;
        }
    }
    Ok(())
}

fn capability(path: &Path) -> String {
    let mut value = [0_u8; 64];
    match rustix::fs::lgetxattr(path, c"security.capability", &mut value[..]) {
        Ok(length) => format!(", capability {}", hex::encode(&value[..length])),
        Err(_) => String::new(),
    }
}

/// What differs, as lines: the first tree's is "-".
pub(crate) fn differences(one: &Tree, other: &Tree) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let mut lines = Vec::new();
    for name in names {
        match (one.get(name), other.get(name)) {
            (Some(one), Some(other)) if one == other => {}
            (one, other) => {
                lines.extend(one.map(|what| format!("- {name}: {what}")));
                lines.extend(other.map(|what| format!("+ {name}: {what}")));
            }
        }
    }
    lines
}
