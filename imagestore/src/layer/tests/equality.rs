//! The same trees as GNU tar makes of the same archives, and layers that other tools wrote.

use std::{
    ffi::OsStr,
    os::unix::{ffi::OsStrExt, fs as unix},
};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat};

use super::*;

/// A tree with everything in it that a tar can carry.
pub(crate) fn build(root: &Path) {
    let at = |name: &str| root.join(name);
    std::fs::create_dir_all(at("usr/bin")).unwrap();
    std::fs::create_dir_all(at("var/mail")).unwrap();
    std::fs::write(at("usr/bin/a"), "a").unwrap();
    std::fs::hard_link(at("usr/bin/a"), at("usr/bin/b")).unwrap();
    std::fs::hard_link(at("usr/bin/a"), at("elsewhere")).unwrap();
    unix::symlink("usr/bin", at("bin")).unwrap();
    unix::symlink("/etc/../nowhere", at("dangling")).unwrap();
    std::fs::hard_link(at("dangling"), at("dangling-too")).unwrap();
    std::fs::write(at(&"n".repeat(255)), "long").unwrap();
    let deep = "some-directory/".repeat(30);
    std::fs::create_dir_all(at(&deep)).unwrap();
    std::fs::write(at(&deep).join("file"), "deep").unwrap();
    unix::symlink("t".repeat(300), at("far")).unwrap();
    std::fs::write(root.join(OsStr::from_bytes(b"bytes \xff\xfe\n\\ = %41")), "odd").unwrap();
    std::fs::write(at("empty"), "").unwrap();
    std::fs::write(at("big"), vec![42; 700_001]).unwrap();
    let holes = File::create(at("holes")).unwrap();
    for piece in 0..60 {
        std::os::unix::fs::FileExt::write_all_at(&holes, b"piece", piece * 100_000).unwrap();
    }
    holes.set_len(8_000_000).unwrap();
    File::create(at("all-hole")).unwrap().set_len(1 << 20).unwrap();
    let node =
        |name: &str, kind, mode, device| mknodat(CWD, at(name), kind, Mode::from(mode), device).unwrap();
    node("null", FileType::CharacterDevice, 0o666, makedev(1, 3));
    node("disk", FileType::BlockDevice, 0o660, makedev(259, 1_000));
    node("fifo", FileType::Fifo, 0o600, 0);
    let owner = |name: &str, uid, gid| unix::lchown(at(name), Some(uid), Some(gid)).unwrap();
    owner("usr/bin/b", 1000, 1000);
    owner("var/mail", 0, 8);
    owner("far", 65_534, 65_534);
    owner("null", 4, 5);
    owner("empty", 3_000_000_000, 70_000);
    let mode = |name: &str, mode| rustix::fs::chmod(at(name), Mode::from(mode)).unwrap();
    mode("usr/bin/b", 0o6711);
    mode("var/mail", 0o3777);
    mode("empty", 0);
    mode("fifo", 0o4622);
    let set = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::lsetxattr(at(name), key, value, XattrFlags::empty()).unwrap();
    };
    set("big", "user.plain", b"value");
    set("big", "user.with=equals%", b"a=b\n\0\xff");
    set("usr", "user.empty", b"");
    set("usr/bin/a", "security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    set("far", "trusted.on-link", b"x");
    set("fifo", "trusted.on-fifo", b"x");
    let time = |name: &str, seconds, nanoseconds| set_time(&at(name), seconds, nanoseconds);
    time("big", 1_234_567_890, 123_456_789);
    time("empty", -1, 0);
    time("all-hole", -86_400, 250_000_000);
    time("far", 17, 1);
    time("usr/bin", 5_000_000_000, 5);
    time("usr", 0, 0);
}

fn set_time(path: &Path, seconds: i64, nanoseconds: u32) {
    let times = super::super::tree::timestamps(super::super::pax::Time { seconds, nanoseconds });
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn pack(source: &Path, options: &[&str]) -> Vec<u8> {
    let mut arguments = vec!["--create", "--xattrs", "--xattrs-include=*"];
    arguments.extend(options);
    arguments.extend(["--file=-", "."]);
    run("tar", &arguments, source)
}

fn extract(archive: &Path, target: &Path) {
    let file = format!("--file={}", archive.display());
    let options = [
        "--extract",
        "--xattrs",
        "--xattrs-include=*",
        "--same-permissions",
        "--same-owner",
        "--numeric-owner",
    ];
    run("tar", &[&options[..], &[&file]].concat(), target);
}

#[test]
fn trees_equal_those_of_gnu_tar() {
    let source = tempfile::tempdir().unwrap();
    build(source.path());
    for options in [
        &["--format=posix"][..],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=gnu", "--no-xattrs"],
        &["--format=gnu", "--sparse", "--no-xattrs"],
        &["--format=oldgnu", "--sparse", "--no-xattrs", "--blocking-factor=1"],
    ] {
        let bytes = pack(source.path(), options);
        let world = World::new();
        let unpacked = world.unpack_bytes(&bytes).unwrap_or_else(|error| panic!("{options:?}: {error:?}"));
        assert_eq!(unpacked.diff_id, crate::Digest::of(&bytes));
        let theirs = tempfile::tempdir().unwrap();
        let (archive, target) = (theirs.path().join("tar"), theirs.path().join("root"));
        std::fs::write(&archive, &bytes).unwrap();
        std::fs::create_dir(&target).unwrap();
        extract(&archive, &target);
        world.facts().assert_equals(&facts::Tree::read(&target));
        if options[0] == "--format=posix" {
            world.facts().assert_equals(&facts::Tree::read(source.path()));
            let again = pack(
                &world.root(),
                &["--format=posix", "--sort=name", "--pax-option=delete=atime,delete=ctime"],
            );
            let original = pack(
                source.path(),
                &["--format=posix", "--sort=name", "--pax-option=delete=atime,delete=ctime"],
            );
            assert!(strip_process(&again) == strip_process(&original), "{options:?}");
        }
        if options.contains(&"--sparse") {
            use std::os::unix::fs::MetadataExt;
            let blocks = world.root().join("holes").metadata().unwrap().blocks();
            assert!(blocks * 512 < 1_000_000, "{options:?}: holes are filled ({blocks} blocks)");
        }
    }
}

/// GNU tar puts its process id into the names of extended headers (and so into their checksums).
fn strip_process(tar: &[u8]) -> Vec<u8> {
    let mut tar = tar.to_vec();
    for block in tar.chunks_exact_mut(512) {
        if block.windows(12).any(|w| w == b"/PaxHeaders/") || block.starts_with(b"./PaxHeaders") {
            block[..100].fill(0);
            block[148..156].fill(0);
            block[345..500].fill(0);
        }
    }
    tar
}

#[test]
fn ustar_prefixes_are_read() {
    let source = tempfile::tempdir().unwrap();
    let deep = "some-directory/".repeat(10);
    std::fs::create_dir_all(source.path().join(&deep)).unwrap();
    std::fs::write(source.path().join(&deep).join("file"), "deep").unwrap();
    let world = World::new();
    let bytes = run("tar", &["--create", "--format=ustar", "--mtime=@5", "--file=-", "."], source.path());
    world.unpack_bytes(&bytes).unwrap();
    assert_eq!(world.read(&format!("{deep}file")), b"deep");
}

/// A layer and its change as umoci (Go's archive/tar) writes them, whiteouts and all.
#[test]
fn layers_of_another_tool_are_understood() {
    let work = tempfile::tempdir().unwrap();
    let umoci = |arguments: &[&str]| run("umoci", arguments, work.path());
    umoci(&["init", "--layout", "oci"]);
    umoci(&["new", "--image", "oci:t"]);
    umoci(&["unpack", "--image", "oci:t", "b1"]);
    build(&work.path().join("b1/rootfs"));
    // Go's writer refuses such a name and passes over an empty value.
    let rootfs = work.path().join("b1/rootfs");
    rustix::fs::removexattr(rootfs.join("big"), "user.with=equals%").unwrap();
    rustix::fs::removexattr(rootfs.join("usr"), "user.empty").unwrap();
    // And umoci rounds to seconds.
    for (path, facts) in facts::Tree::read(&rootfs).0 {
        set_time(&rootfs.join(path), facts.mtime.0, 0);
    }
    umoci(&["repack", "--image", "oci:t", "b1"]);
    let first = World::new();
    first.unpack_bytes(&newest_layer(work.path())).unwrap();
    let mut expected = facts::Tree::read(&work.path().join("b1/rootfs"));
    let mut found = first.facts();
    for tree in [&mut expected, &mut found] {
        // It does not keep the root.
        tree.0.remove(Path::new(""));
    }
    found.assert_equals(&expected);

    umoci(&["unpack", "--image", "oci:t", "b2"]);
    let rootfs = work.path().join("b2/rootfs");
    std::fs::remove_file(rootfs.join("big")).unwrap();
    std::fs::remove_dir_all(rootfs.join("usr")).unwrap();
    std::fs::write(rootfs.join("var/new"), "new").unwrap();
    umoci(&["repack", "--image", "oci:t", "b2"]);
    let second = World::new();
    second.unpack_bytes(&newest_layer(work.path())).unwrap();
    let facts = second.facts();
    assert!(facts.get("big").is_whiteout() && facts.get("usr").is_whiteout());
    assert_eq!(facts.get("var/new").content, b"new");
}

/// The topmost layer, inflated.
fn newest_layer(work: &Path) -> Vec<u8> {
    let index: serde_json::Value = json(&work.join("oci/index.json"));
    let blob =
        |digest: &serde_json::Value| work.join("oci/blobs/sha256").join(&digest.as_str().unwrap()[7..]);
    let manifest: serde_json::Value = json(&blob(&index["manifests"][0]["digest"]));
    let layer = manifest["layers"].as_array().unwrap().last().unwrap();
    let mut tar = Vec::new();
    let blob = File::open(blob(&layer["digest"])).unwrap();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(blob), &mut tar).unwrap();
    tar
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
