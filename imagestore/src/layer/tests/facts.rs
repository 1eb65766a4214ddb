//! Everything about a tree that can be compared.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

/// Facts by path; the tree itself is under the empty path.
#[derive(PartialEq, Eq, Clone)]
pub(crate) struct Tree(pub(crate) BTreeMap<PathBuf, Facts>);

#[derive(PartialEq, Eq, Clone)]
pub(crate) struct Facts {
    /// Type, permissions, setuid and the like.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// None for directories: their size depends on how they grew.
    pub(crate) size: Option<u64>,
    pub(crate) rdev: u64,
    pub(crate) mtime: (i64, i64),
    /// A file's content or a link's target.
    pub(crate) content: Vec<u8>,
    pub(crate) attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same inode.
    pub(crate) first: PathBuf,
}

impl Tree {
    pub(crate) fn read(root: &Path) -> Tree {
        let mut tree = BTreeMap::new();
        let mut inodes = BTreeMap::new();
        let mut pending = vec![PathBuf::new()];
        // Sorted, so that the first path of an inode is the same in two trees.
        while let Some(path) = pending.pop() {
            let full = if path.as_os_str().is_empty() { root.to_path_buf() } else { root.join(&path) };
            let meta = full.symlink_metadata().unwrap();
            let kind = meta.file_type();
            let content = if kind.is_file() {
                std::fs::read(&full).unwrap()
            } else if kind.is_symlink() {
                std::fs::read_link(&full).unwrap().as_os_str().as_bytes().to_vec()
            } else {
                Vec::new()
            };
            if kind.is_dir() {
                let mut names: Vec<_> =
                    std::fs::read_dir(&full).unwrap().map(|e| path.join(e.unwrap().file_name())).collect();
                names.sort_by(|a, b| b.cmp(a));
                pending.extend(names);
            }
            let facts = Facts {
                mode: meta.mode(),
                uid: meta.uid(),
                gid: meta.gid(),
                size: (!kind.is_dir()).then_some(meta.size()),
                rdev: meta.rdev(),
                mtime: (meta.mtime(), meta.mtime_nsec()),
                content,
                attributes: attributes(&full),
                first: inodes.entry(meta.ino()).or_insert_with(|| path.clone()).clone(),
            };
            tree.insert(path, facts);
        }
        Tree(tree)
    }

    pub(crate) fn get(&self, path: &str) -> &Facts {
        self.0.get(Path::new(path)).unwrap_or_else(|| panic!("no {path} in {self:?}"))
    }

    /// All but the tree itself.
    pub(crate) fn paths(&self) -> Vec<Cow<'_, str>> {
        self.0.keys().filter(|path| !path.as_os_str().is_empty()).map(|path| path.to_string_lossy()).collect()
    }

    /// Fails with the first path that differs.
    pub(crate) fn assert_equals(&self, other: &Tree) {
        for (path, facts) in &self.0 {
            assert_eq!(Some(facts), other.0.get(path), "{}", path.display());
        }
        assert_eq!(self.paths(), other.paths());
    }
}

impl Facts {
    pub(crate) fn is_whiteout(&self) -> bool {
        self.mode & 0o170_000 == 0o020_000 && self.rdev == 0
    }

    pub(crate) fn is_opaque(&self) -> bool {
        self.attributes.get(&b"trusted.overlay.opaque"[..]).is_some_and(|value| value == b"y")
    }
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 64 * 1024];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut found = BTreeMap::new();
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 * 1024];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(length);
        found.insert(name.to_vec(), value);
    }
    found
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.0).finish()
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.content[..self.content.len().min(40)];
        write!(f, "{:o} {}:{} size {:?} rdev {:x} ", self.mode, self.uid, self.gid, self.size, self.rdev)?;
        write!(f, "mtime {:?} {:?} ", self.mtime, String::from_utf8_lossy(shown))?;
        for (name, value) in &self.attributes {
            let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
            write!(f, "{name}={value:?} ")?;
        }
        write!(f, "first {}", self.first.display())
    }
}
