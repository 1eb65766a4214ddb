//! What other tools make of an image's layers, and what we make of them, file by file.
//!
//! The images are written by umoci from what mmdebstrap made, and by buildah. Each layer is compared with what GNU tar
//! makes of its blob, and all of them together with what `umoci unpack` makes of the image.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sampan_tests::{Agent, fixture, with_agent};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::archive::{inspect, tool};

/// All that a layer can say of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    size: u64,
    mtime: i64,
    device: u64,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// The digest of a file's content, or where a link leads.
    content: String,
    /// The first of its names.
    linked: PathBuf,
}

type Tree = BTreeMap<PathBuf, Entry>;

/// overlayfs's own word for a directory that hides what is below it.
const OPAQUE: &str = "trusted.overlay.opaque";

fn tree(root: &Path) -> Tree {
    let (mut tree, mut names) = (Tree::new(), BTreeMap::new());
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<PathBuf> = fs::read_dir(root.join(&folder))
            .unwrap_or_else(|error| panic!("{}: {error}", root.join(&folder).display()))
            .map(|entry| folder.join(entry.unwrap().file_name()))
            .collect();
        entries.sort();
        for path in entries {
            let entry = entry(&root.join(&path));
            if entry.kind == "directory" {
                folders.push(path.clone());
            }
            tree.insert(path, entry);
        }
    }
    for (path, entry) in &mut tree {
        let inode = fs::symlink_metadata(root.join(path)).unwrap().ino();
        entry.linked = names.entry(inode).or_insert_with(|| path.clone()).clone();
    }
    tree
}

fn entry(path: &Path) -> Entry {
    let metadata = fs::symlink_metadata(path).unwrap();
    let kind = metadata.file_type();
    let (kind, content) = if kind.is_dir() {
        ("directory", String::new())
    } else if kind.is_symlink() {
        ("symlink", fs::read_link(path).unwrap().display().to_string())
    } else if kind.is_file() {
        ("file", hex::encode(Sha256::digest(fs::read(path).unwrap())))
    } else if kind.is_fifo() {
        ("fifo", String::new())
    } else if kind.is_char_device() {
        ("character device", String::new())
    } else {
        ("something else", String::new())
    };
    Entry {
        kind,
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
        // Of a directory it is the file system's affair.
        size: if kind == "directory" { 0 } else { metadata.size() },
        mtime: metadata.mtime(),
        device: metadata.rdev(),
        xattrs: xattrs(path),
        content,
        linked: PathBuf::new(),
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        (String::from_utf8(name.to_vec()).unwrap(), value[..length].to_vec())
    };
    names.map(value).collect()
}

/// An image of ours and the same in an OCI layout.
struct Case {
    layout: PathBuf,
    /// The directories of our layers, the lowest first.
    ours: Vec<PathBuf>,
    /// The blobs, in the same order.
    blobs: Vec<PathBuf>,
}

impl Case {
    fn new(agent: &Agent, image: &str, layout: &Path) -> Case {
        let seen = inspect(agent, image);
        let data = &seen["GraphDriver"]["Data"];
        let lower = data["LowerDir"].as_str().unwrap_or_default().split(':').filter(|path| !path.is_empty());
        let mut ours: Vec<PathBuf> =
            [data["UpperDir"].as_str().unwrap()].into_iter().chain(lower).map(PathBuf::from).collect();
        ours.reverse();
        let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        let blob = |descriptor: &Value| {
            layout.join("blobs").join(descriptor["digest"].as_str().unwrap().replace(':', "/"))
        };
        let manifest = read(&blob(&read(&layout.join("index.json"))["manifests"][0]));
        let blobs: Vec<PathBuf> = manifest["layers"].as_array().unwrap().iter().map(blob).collect();
        assert_eq!(ours.len(), blobs.len(), "{seen}");
        Case { layout: layout.to_owned(), ours, blobs }
    }

    /// Each layer beside what GNU tar makes of it; gives how many entries were compared.
    fn compare_layers(&self, scratch: &Path) -> usize {
        let mut compared = 0;
        for (number, (ours, blob)) in self.ours.iter().zip(&self.blobs).enumerate() {
            let root = scratch.join(format!("tar-{number}"));
            fs::create_dir(&root).unwrap();
            let (from, to) = (blob.to_str().unwrap(), root.to_str().unwrap());
            // Folders' times last of all: a tar may come back to one.
            let plain = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "--delay-directory-restore"];
            tool("tar", &[&["-xPpf", from, "-C", to][..], &plain].concat());
            let described = tool("tar", &["-tf", from, "--quoting-style=literal"]);
            let described: BTreeSet<PathBuf> = described.lines().map(|line| clean(Path::new(line))).collect();
            compared += compare_layer(&whiteouts_applied(tree(&root)), &tree(ours), &described, number);
            fs::remove_dir_all(root).unwrap();
        }
        compared
    }

    /// All layers together beside what umoci makes of them.
    fn compare_image(&self, scratch: &Path) -> usize {
        let bundle = scratch.join("bundle");
        let image = format!("{}:{}", self.layout.display(), self.tag());
        tool("umoci", &["unpack", "--image", &image, bundle.to_str().unwrap()]);
        let theirs = tree(&bundle.join("rootfs"));
        let ours = merged(self.ours.iter().map(|path| tree(path)));
        assert_eq!(names(&ours), names(&theirs), "the same files");
        for (path, entry) in &theirs {
            assert_eq!(&ours[path], entry, "{} by us and by umoci", path.display());
        }
        fs::remove_dir_all(bundle).unwrap();
        theirs.len()
    }

    fn tag(&self) -> String {
        let index: Value =
            serde_json::from_slice(&fs::read(self.layout.join("index.json")).unwrap()).unwrap();
        let name = &index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"];
        name.as_str().unwrap().to_owned()
    }
}

fn names(tree: &Tree) -> BTreeSet<&Path> {
    tree.keys().map(PathBuf::as_path).collect()
}

fn clean(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect()
}

/// A tar's files with the marks of removed files turned into overlayfs's.
fn whiteouts_applied(tar: Tree) -> BTreeMap<PathBuf, Result<Entry, &'static str>> {
    let mut layer: BTreeMap<PathBuf, Result<Entry, &'static str>> = BTreeMap::new();
    let mut opaque = Vec::new();
    for (path, entry) in tar {
        let name = path.file_name().unwrap().to_str().unwrap_or_default().to_owned();
        match name.strip_prefix(".wh.") {
            Some(".wh..opq") => opaque.push(path.parent().unwrap().to_owned()),
            Some(removed) => drop(layer.insert(path.with_file_name(removed), Err("whiteout"))),
            None => drop(layer.insert(path, Ok(entry))),
        }
    }
    for path in opaque {
        if let Some(Ok(entry)) = layer.get_mut(&path) {
            entry.xattrs.insert(OPAQUE.into(), b"y".into());
        }
    }
    layer
}

fn compare_layer(
    theirs: &BTreeMap<PathBuf, Result<Entry, &'static str>>,
    ours: &Tree,
    described: &BTreeSet<PathBuf>,
    number: usize,
) -> usize {
    let (have, want): (BTreeSet<_>, BTreeSet<_>) = (ours.keys().collect(), theirs.keys().collect());
    assert_eq!(have, want, "the same files in layer {number}");
    for (path, wanted) in theirs {
        let entry = &ours[path];
        match wanted {
            Err(_) => assert!(is_whiteout(entry), "{path:?} in layer {number}: {entry:?}"),
            // What a layer does not describe looks as it does in the layer below, and tar cannot know that.
            Ok(wanted) if wanted.kind == "directory" && !described.contains(path) => {
                assert_eq!(entry.kind, "directory", "{path:?} in layer {number}");
            }
            Ok(wanted) => assert_eq!(entry, wanted, "{path:?} in layer {number}, by us and by tar"),
        }
    }
    theirs.len()
}

fn is_whiteout(entry: &Entry) -> bool {
    entry.kind == "character device" && entry.device == 0
}

/// What overlayfs shows of a stack of layers.
fn merged(layers: impl Iterator<Item = Tree>) -> Tree {
    let mut all = Tree::new();
    for (number, layer) in layers.enumerate() {
        let clear =
            |all: &mut Tree, path: &Path| all.retain(|known, _| known == path || !known.starts_with(path));
        for (path, mut entry) in layer {
            if is_whiteout(&entry) {
                clear(&mut all, &path);
                all.remove(&path);
                continue;
            }
            if entry.kind != "directory" || entry.xattrs.remove(OPAQUE).is_some() {
                clear(&mut all, &path);
            }
            entry.linked = Path::new(&number.to_string()).join(&entry.linked);
            all.insert(path, entry);
        }
    }
    // Of what has several names the first may be gone.
    let mut first: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for (path, entry) in &mut all {
        entry.linked = first.entry(entry.linked.clone()).or_insert_with(|| path.clone()).clone();
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_mmdebstrap_is_unpacked_as_tar_and_umoci_unpack_it() {
    with_agent(async |agent| {
        let image = super::pulled(agent, "nginx").await;
        let scratch = tempfile::tempdir_in("/tmp").unwrap();
        let case = Case::new(agent, &image, &fixture().images().join("nginx"));
        assert_eq!(case.ours.len(), 3);
        let entries = case.compare_layers(scratch.path());
        assert!(entries > 3000, "only {entries}");
        assert!(case.compare_image(scratch.path()) > 3000);
    })
    .await;
}

/// Files of every kind, beneath `root`.
fn make_files(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::create_dir_all(at("deep/er/still")).unwrap();
    for (name, mode, content) in [
        ("plain", 0o640, "plain"),
        ("setuid", 0o4755, "#!/bin/sh\n"),
        ("deep/er/still/file", 0o600, ""),
        ("name with spaces and \u{fc}ml\u{e4}uts", 0o644, "x"),
    ] {
        fs::write(at(name), content).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let long = "l".repeat(120);
    fs::create_dir(at(&long)).unwrap();
    fs::write(at(&long).join("m".repeat(200)), "a name that needs an extended header").unwrap();
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    fs::hard_link(at("plain"), at("second name")).unwrap();
    symlink("/etc/../etc/passwd", at("link")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    tool("mkfifo", &["-m", "620", at("fifo").to_str().unwrap()]);
    fs::create_dir(at("sticky")).unwrap();
    fs::set_permissions(at("sticky"), fs::Permissions::from_mode(0o3777)).unwrap();
    std::os::unix::fs::chown(at("deep/er"), Some(1234), Some(4321)).unwrap();
    let set = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::setxattr(at(name), key, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("plain", "user.note", b"kept");
    // CAP_NET_RAW, effective (VFS_CAP_REVISION_2).
    set("setuid", "security.capability", &[1, 0, 0, 2, 0, 32, 0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_007);
    fs::File::open(at("plain")).unwrap().set_modified(old).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_buildah_is_unpacked_as_tar_and_umoci_unpack_it() {
    with_agent(async |agent| {
        let scratch = tempfile::tempdir_in("/tmp").unwrap();
        let at = |name: &str| scratch.path().join(name).display().to_string();
        let (root, state) = (at("root"), at("state"));
        let storage = ["--root", &root, "--runroot", &state, "--storage-driver", "vfs"];
        let buildah = |arguments: &[&str]| tool("buildah", &[&storage[..], arguments].concat());
        let container = buildah(&["from", "--tls-verify=false", &fixture().image("busybox")]);
        let mounted = PathBuf::from(buildah(&["mount", &container]));
        fs::create_dir(mounted.join("made")).unwrap();
        make_files(&mounted.join("made"));
        buildah(&["commit", "-q", &container, "first"]);
        // A second layer takes things away, also a directory that it makes anew.
        let second = buildah(&["from", "first"]);
        let mounted = PathBuf::from(buildah(&["mount", &second]));
        fs::remove_file(mounted.join("made/plain")).unwrap();
        fs::remove_dir_all(mounted.join("made/deep")).unwrap();
        fs::create_dir(mounted.join("made/deep")).unwrap();
        fs::write(mounted.join("made/deep/new"), "new").unwrap();
        fs::remove_dir_all(mounted.join("home")).unwrap();
        buildah(&["commit", "-q", &second, "second"]);
        let layout = scratch.path().join("layout");
        buildah(&["push", "-q", "second", &format!("oci:{}:x/made:1", layout.display())]);
        buildah(&["umount", "-a"]);
        let archive = at("archive.tar");
        tool("tar", &["-cf", &archive, "-C", layout.to_str().unwrap(), "."]);
        agent.cli().ok(&["load", "-q", "-i", &archive]);
        let case = Case::new(agent, "x/made:1", &layout);
        assert_eq!(case.ours.len(), 3);
        let entries = case.compare_layers(scratch.path());
        assert!(entries > 300, "only {entries}");
        let ours = tree(&case.ours[1]);
        let setuid = &ours[Path::new("made/setuid")];
        assert!(setuid.mode == 0o4755 && setuid.xattrs.contains_key("security.capability"), "{setuid:?}");
        assert!(case.compare_image(scratch.path()) > 200);
        buildah(&["rm", "-a"]);
    })
    .await;
}
