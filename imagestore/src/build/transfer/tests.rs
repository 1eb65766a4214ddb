//! COPY of real trees into real directories.

use std::{
    fs::{self, File},
    io::Read,
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::Path,
};

use super::*;
use crate::build::tree::Directory;

fn tree(path: &Path) -> Directory {
    Directory::new(File::open(path).unwrap().into())
}

fn picks(from: &Path, path: &str, exclude: &[&str], parents: bool) -> Result<Vec<Pick>, Error> {
    let exclude: Vec<String> = exclude.iter().map(|text| (*text).to_owned()).collect();
    let mut picks = Vec::new();
    let wanted = Wanted { path, pivot: None, parents, exclude: &exclude };
    select(&tree(from), &wanted, "the tree", &mut picks).map(|()| picks)
}

fn copy(from: &Path, path: &str, root: &Path, to: &str) -> Result<(), Error> {
    copy_with(from, path, root, to, &Changes::default())
}

fn copy_with(from: &Path, path: &str, root: &Path, to: &str, changes: &Changes) -> Result<(), Error> {
    let picks = picks(from, path, &[], false)?;
    let root = File::open(root).unwrap();
    place(&tree(from), &picks, &Destination { root: root.as_fd(), path: to }, changes)
}

fn names(picks: &[Pick]) -> Vec<String> {
    picks.iter().map(|pick| String::from_utf8(pick.to.clone()).unwrap()).collect()
}

/// `a/`, `a/b.txt`, `a/c/d.go`, `a/link → b.txt`, `top.txt`, `dir → a`.
fn source() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    fs::create_dir_all(at.join("a/c")).unwrap();
    fs::write(at.join("a/b.txt"), "b").unwrap();
    fs::write(at.join("a/c/d.go"), "d").unwrap();
    fs::write(at.join("top.txt"), "top").unwrap();
    symlink("b.txt", at.join("a/link")).unwrap();
    symlink("a", at.join("dir")).unwrap();
    fs::set_permissions(at.join("a"), PermissionsExt::from_mode(0o750)).unwrap();
    directory
}

#[test]
fn a_directory_stands_for_what_is_in_it_and_a_file_for_itself() {
    let (from, root) = (source(), tempfile::tempdir().unwrap());
    copy(from.path(), "/a", root.path(), "/new/place").unwrap();
    let made = root.path().join("new/place");
    assert_eq!(fs::read_to_string(made.join("c/d.go")).unwrap(), "d");
    assert_eq!(fs::read_link(made.join("link")).unwrap(), Path::new("b.txt"));
    assert_eq!(fs::metadata(&made).unwrap().mode() & 0o7777, 0o750);
    assert_eq!(fs::metadata(root.path().join("new")).unwrap().mode() & 0o7777, 0o755);
    let times = |path: &Path| fs::metadata(path).unwrap().mtime_nsec();
    assert_eq!(times(&made.join("c")), times(&from.path().join("a/c")));

    copy(from.path(), "/top.txt", root.path(), "/file").unwrap();
    copy(from.path(), "/top.txt", root.path(), "/into/").unwrap();
    copy(from.path(), "/top.txt", root.path(), "/new").unwrap();
    for path in ["file", "into/top.txt", "new/top.txt"] {
        assert_eq!(fs::read_to_string(root.path().join(path)).unwrap(), "top", "{path}");
    }
    // A source that is a link stands for what it leads to.
    copy(from.path(), "/dir", root.path(), "/linked").unwrap();
    assert!(root.path().join("linked/b.txt").exists());
}

#[test]
fn patterns_find_and_exclusions_leave_out() {
    let from = source();
    let found =
        |path: &str, exclude: &[&str], parents| names(&picks(from.path(), path, exclude, parents).unwrap());
    assert_eq!(found("/*.txt", &[], false), ["top.txt"]);
    assert_eq!(found("/a/*", &["link"], false), ["b.txt", "", "d.go"]);
    assert_eq!(found("/a", &["**/*.go", "link"], false), ["", "b.txt", "c"]);
    assert_eq!(found("/a", &["c", "!c/d.go", "link"], false), ["", "b.txt", "c", "c/d.go"]);
    assert_eq!(found("/**/*.go", &[], true), ["a", "a/c", "a/c/d.go"]);
    assert_eq!(found("/nothing*", &[], false), [""; 0]);
    let error = picks(from.path(), "/nothing", &[], false).unwrap_err();
    assert_eq!(error.to_string(), "/nothing is not in the tree");
}

#[test]
fn owners_and_modes_change_on_the_way() {
    let (from, root) = (source(), tempfile::tempdir().unwrap());
    let mode = Some(crate::build::ModeChange::Octal(0o604));
    let changes = Changes { owner: Some((7, 8)), mode, replace: false };
    copy_with(from.path(), "/a/b.txt", root.path(), "/x/b", &changes).unwrap();
    let file = fs::metadata(root.path().join("x/b")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (7, 8, 0o604));
    assert_eq!(fs::metadata(root.path().join("x")).unwrap().uid(), 7);
}

#[test]
fn nothing_leaves_the_root() {
    let (from, outside) = (source(), tempfile::tempdir().unwrap());
    fs::write(outside.path().join("canary"), "alive").unwrap();
    let root = outside.path().join("root");
    fs::create_dir(&root).unwrap();
    symlink(outside.path(), root.join("absolute")).unwrap();
    symlink("../../../../..", root.join("up")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    // Links are the root's own: what is absolute in them begins there.
    copy(from.path(), "/top.txt", &root, "/absolute/canary").unwrap();
    copy(from.path(), "/top.txt", &root, "/up/canary").unwrap();
    assert!(copy(from.path(), "/top.txt", &root, "/loop/canary").is_err());
    assert_eq!(fs::read_to_string(outside.path().join("canary")).unwrap(), "alive");
    assert_eq!(fs::read_to_string(root.join("canary")).unwrap(), "top");
    let beneath = root.join(outside.path().strip_prefix("/").unwrap()).join("canary");
    assert_eq!(fs::read_to_string(beneath).unwrap(), "top");
    // And those of the source lead nowhere else either.
    symlink("/etc/passwd", from.path().join("escape")).unwrap();
    symlink("../../../etc/passwd", from.path().join("climb")).unwrap();
    for path in ["/escape", "/climb"] {
        assert!(matches!(picks(from.path(), path, &[], false), Err(Error::Missing(_))), "{path}");
    }
}

#[test]
fn files_and_directories_do_not_take_each_others_place() {
    let (from, root) = (source(), tempfile::tempdir().unwrap());
    fs::create_dir_all(root.path().join("x/b.txt")).unwrap();
    assert!(copy(from.path(), "/a", root.path(), "/x").is_err());
    fs::create_dir(root.path().join("y")).unwrap();
    symlink("/elsewhere", root.path().join("y/c")).unwrap();
    let error = copy(from.path(), "/a", root.path(), "/y").unwrap_err();
    assert!(error.to_string().contains("y/c is there already"), "{error}");
    // A link is replaced by a file, and not followed.
    fs::create_dir(root.path().join("z")).unwrap();
    fs::write(root.path().join("target"), "old").unwrap();
    symlink("/target", root.path().join("z/b.txt")).unwrap();
    copy(from.path(), "/a", root.path(), "/z").unwrap();
    assert_eq!(fs::read_to_string(root.path().join("target")).unwrap(), "old");
    assert_eq!(fs::read_to_string(root.path().join("z/b.txt")).unwrap(), "b");
}

#[test]
fn what_an_archive_holds_takes_the_place_of_whatever_is_there() {
    let (from, root) = (source(), tempfile::tempdir().unwrap());
    fs::create_dir_all(root.path().join("x/b.txt/full")).unwrap();
    symlink("/elsewhere", root.path().join("x/c")).unwrap();
    fs::create_dir(root.path().join("elsewhere")).unwrap();
    let (tree, picks) = (tree(from.path()), picks(from.path(), "/a", &[], false).unwrap());
    let into = crate::build::pad::open(root.path()).unwrap();
    let changes = Changes { replace: true, ..Changes::default() };
    place(&tree, &picks, &Destination { root: into.as_fd(), path: "/x/" }, &changes).unwrap();
    assert_eq!(fs::read_to_string(root.path().join("x/b.txt")).unwrap(), "b");
    assert!(fs::symlink_metadata(root.path().join("x/c")).unwrap().is_dir());
    assert_eq!(fs::read_dir(root.path().join("elsewhere")).unwrap().count(), 0);
}

#[test]
fn names_of_one_file_stay_so() {
    let (from, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(from.path().join("d")).unwrap();
    fs::write(from.path().join("a"), "x").unwrap();
    fs::hard_link(from.path().join("a"), from.path().join("d/b")).unwrap();
    copy(from.path(), "/", root.path(), "/out").unwrap();
    let inode = |path: &str| fs::metadata(root.path().join(path)).unwrap().ino();
    assert_eq!(inode("out/a"), inode("out/d/b"));
}

#[test]
fn fingerprints_see_all_but_times() {
    let from = source();
    let print = || fingerprint(&tree(from.path()), &picks(from.path(), "/a", &[], false).unwrap()).unwrap();
    let before = print();
    let file = File::options().write(true).open(from.path().join("a/b.txt")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(print(), before);
    fs::write(from.path().join("a/b.txt"), "c").unwrap();
    let changed = print();
    assert_ne!(changed, before);
    fs::set_permissions(from.path().join("a/b.txt"), PermissionsExt::from_mode(0o600)).unwrap();
    assert_ne!(print(), changed);
}

#[test]
fn owners_are_looked_up_in_the_trees_own_files() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\nme:x:1000:1001::/:/bin/sh\n").unwrap();
    fs::write(root.path().join("etc/group"), "root:x:0:\nstaff:x:50:\n").unwrap();
    let resolve = |text: &str| owner::resolve_owner(&tree(root.path()), text);
    for (text, expected) in
        [("me", (1000, 1001)), ("me:staff", (1000, 50)), ("5", (5, 5)), ("5:6", (5, 6)), ("me:0", (1000, 0))]
    {
        assert_eq!(resolve(text).unwrap(), expected, "{text}");
    }
    for text in ["you", "me:them", "4294967295", "2147483648", "99999999999"] {
        assert!(resolve(text).is_err(), "{text}");
    }
    // It may be anything, and of any size.
    fs::remove_file(root.path().join("etc/passwd")).unwrap();
    symlink("/dev/zero", root.path().join("etc/passwd")).unwrap();
    assert!(resolve("me").is_err());
    fs::remove_file(root.path().join("etc/passwd")).unwrap();
    File::create(root.path().join("etc/passwd")).unwrap().set_len(1 << 40).unwrap();
    assert!(resolve("me").unwrap_err().to_string().contains("10 MiB"));
}

#[test]
fn archives_are_told_by_their_content() {
    let directory = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o644);
    tar.append_data(&mut header, "x/y", &b"abc"[..]).unwrap();
    let tar = tar.into_inner().unwrap();
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &tar).unwrap();
        encoder.finish().unwrap()
    };
    let bzip2 = {
        let mut bytes = Vec::new();
        bzip2::read::BzEncoder::new(&tar[..], bzip2::Compression::fast()).read_to_end(&mut bytes).unwrap();
        bytes
    };
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    // `tar c x/y | xz -1` of the same file: one block of LZMA2, with a CRC64.
    for (name, bytes) in [("plain", tar), ("gzip", gzip.clone()), ("bzip2", bzip2), ("zstd", zstd)] {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        let tar = archive::open(File::open(&path).unwrap(), b"x").unwrap().expect(name);
        let out = tempfile::tempdir().unwrap();
        archive::unpack(tar, File::open(out.path()).unwrap().as_fd(), b"x").unwrap();
        assert_eq!(fs::read_to_string(out.path().join("x/y")).unwrap(), "abc", "{name}");
    }
    for (name, bytes) in [("text", b"hello".to_vec()), ("empty", vec![]), ("cut", gzip[..30].to_vec())] {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        assert!(archive::open(File::open(&path).unwrap(), b"x").unwrap().is_none(), "{name}");
    }
}
