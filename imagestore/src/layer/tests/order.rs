//! What becomes of names that come twice, of whiteouts, and of times.

use super::*;

#[test]
fn last_entry_of_a_name_wins() {
    let world = World::new();
    let archive = Archive::new()
        .add(Item::file("a", b"first"))
        .add(Item::file("a", b"second").mode(0o600))
        .add(Item::symlink("b", "a"))
        .add(Item::file("b", b"no link"))
        .add(Item::directory("c/"))
        .add(Item::file("c/x", b"x"))
        .add(Item::symlink("c", "a"))
        .add(Item::file("d", b"d"))
        .add(Item::directory("d/"))
        .add(Item::file("d/y", b"y"));
    world.unpack(&archive).unwrap();
    let facts = world.facts();
    assert_eq!(facts.paths(), ["a", "b", "c", "d", "d/y"]);
    assert_eq!((&facts.get("a").content[..], facts.get("a").mode & 0o7777), (&b"second"[..], 0o600));
    assert_eq!(facts.get("b").content, b"no link");
    assert_eq!(facts.get("c").content, b"a");
}

#[test]
fn directory_over_a_directory_changes_metadata_only() {
    let world = World::new();
    let archive = Archive::new()
        .add(Item::directory("d").owner(5, 6))
        .add(Item::file("d/x", b"x"))
        .add(Item::directory("d").mode(0o1777).mtime(77));
    world.unpack(&archive).unwrap();
    let facts = world.facts();
    let d = facts.get("d");
    assert_eq!((d.mode & 0o7777, d.uid, d.gid, d.mtime.0), (0o1777, 0, 0, 77));
    assert_eq!(facts.paths(), ["d", "d/x"]);
}

#[test]
fn times_of_directories_survive_what_is_put_into_them() {
    let world = World::new();
    let mut archive = Archive::new()
        .add(Item::directory("./").mtime(1))
        .add(Item::directory("a").mtime(2))
        .add(Item::directory("a/b").mtime(3))
        .add(Item::file("a/b/x", b""))
        .add(Item::file("z", b"").mtime(9));
    // Much deeper than directories are held open.
    let mut path = "deep".to_owned();
    for depth in 0..100 {
        archive = archive.add(Item::directory(&path).mtime(1000 + depth));
        path.push_str("/d");
    }
    archive =
        archive.add(Item::file("a/b/y", b"")).add(Item::file("deep/d/d/x", b"")).add(Item::file(&path, b""));
    archive = archive.add(Item::symlink("link", "a/b")).add(Item::file("link/z", b""));
    archive = archive.add(Item::hard_link("a/h", "a/b/x"));
    world.unpack(&archive).unwrap();
    let facts = world.facts();
    for (path, time) in [("", 1), ("a", 2), ("a/b", 3), ("z", 9), ("deep", 1000), ("deep/d/d", 1002)] {
        assert_eq!(facts.get(path).mtime, (time, 0), "{path}");
    }
    assert_eq!(facts.get(path.strip_suffix("/d").unwrap()).mtime, (1099, 0));
    assert!(facts.0.contains_key(Path::new("a/b/z")));
}

#[test]
fn missing_parents_are_made_and_reported() {
    let world = World::new();
    let archive = Archive::new()
        .add(Item::file("a/b/c", b""))
        .add(Item::directory("a"))
        .add(Item::file("later/x", b""))
        .add(Item::file("later/y", b""));
    let unpacked = world.unpack(&archive).unwrap();
    let implied: Vec<_> = unpacked.implied.iter().map(|path| String::from_utf8_lossy(path)).collect();
    assert_eq!(implied, ["", "a/b", "later"]);
    assert_eq!(world.facts().get("a/b").mode, 0o040_755);
    let described = World::new().unpack(&Archive::new().add(Item::directory("./"))).unwrap();
    assert!(described.implied.is_empty());
}

#[test]
fn whiteouts_become_what_overlayfs_reads() {
    let world = World::new();
    let archive = Archive::new()
        .add(Item::file("d/.wh.gone", b""))
        .add(Item::file("e/x", b""))
        .add(Item::file("e/.wh..wh..opq", b""))
        .add(Item::file(".wh..wh.plnk/1.2", b"aufs"))
        .add(Item::file(".wh.top", b""));
    world.unpack(&archive).unwrap();
    let facts = world.facts();
    assert_eq!(facts.paths(), ["d", "d/gone", "e", "e/x", "top"]);
    assert!(facts.get("d/gone").is_whiteout() && facts.get("top").is_whiteout());
    assert!(facts.get("e").is_opaque() && !facts.get("d").is_opaque());
}

#[test]
fn late_opaque_marker_keeps_what_the_layer_brought() {
    let world = World::new();
    let archive = Archive::new()
        .add(Item::directory("d"))
        .add(Item::file("d/mine", b"mine"))
        .add(Item::file("d/.wh..wh..opq", b""))
        .add(Item::file("d/too", b""));
    world.unpack(&archive).unwrap();
    assert_eq!(world.facts().paths(), ["d", "d/mine", "d/too"]);
    assert!(world.facts().get("d").is_opaque());
}

#[test]
fn whiteout_and_entry_of_one_name_both_hold() {
    let world = World::new();
    let archive = Archive::new()
        // Whiteout first: the entry stays, and hides the lower layers'.
        .add(Item::file(".wh.file1", b""))
        .add(Item::file("file1", b"1"))
        .add(Item::file(".wh.dir1", b""))
        .add(Item::directory("dir1"))
        .add(Item::file(".wh.dir2", b""))
        .add(Item::file("dir2/x", b""))
        // Whiteout last: the same.
        .add(Item::file("file3", b"3"))
        .add(Item::file(".wh.file3", b""))
        .add(Item::directory("dir3"))
        .add(Item::file("dir3/x", b""))
        .add(Item::file(".wh.dir3", b""))
        .add(Item::file(".wh.twice", b""))
        .add(Item::file(".wh.twice", b""));
    world.unpack(&archive).unwrap();
    let facts = world.facts();
    assert_eq!(facts.paths(), ["dir1", "dir2", "dir2/x", "dir3", "dir3/x", "file1", "file3", "twice"]);
    assert_eq!((&facts.get("file1").content[..], &facts.get("file3").content[..]), (&b"1"[..], &b"3"[..]));
    for directory in ["dir1", "dir2", "dir3"] {
        assert!(facts.get(directory).is_opaque(), "{directory}");
    }
    assert!(facts.get("twice").is_whiteout());
}

#[test]
fn modes_and_owners_are_exact() {
    let world = World::new();
    let archive = Archive::new()
        .add(Item::file("suid", b"x").mode(0o4755))
        .add(Item::file("suid-other", b"x").mode(0o6755).owner(7, 8))
        .add(Item::file("open", b"x").mode(0o666))
        .add(Item::file("none", b"x").mode(0))
        .add(Item::directory("mail").mode(0o2775).owner(0, 8))
        .add(Item::file("mail/root", b"x"))
        .add(Item::directory("mail/sub"))
        .add(Item::symlink("mail/link", "x"))
        .add(Item { mode: 0o666, device: (1, 3), ..Item::new(b'3', "mail/null") })
        .add(Item::file("mail/implied/x", b""))
        .add(Item::symlink("theirs", "x").owner(9, 10))
        .add(Item { mode: 0o4666, ..Item::new(b'6', "fifo") }.owner(3, 4))
        .add(Item { device: (8, 300), mode: 0o660, ..Item::new(b'4', "disk") });
    world.unpack(&archive).unwrap();
    let facts = world.facts();
    for (path, mode, uid, gid) in [
        ("suid", 0o104_755, 0, 0),
        ("suid-other", 0o106_755, 7, 8),
        ("open", 0o100_666, 0, 0),
        ("none", 0o100_000, 0, 0),
        ("mail", 0o042_775, 0, 8),
        ("mail/root", 0o100_644, 0, 0),
        ("mail/sub", 0o040_755, 0, 0),
        ("mail/link", 0o120_777, 0, 0),
        ("mail/null", 0o020_666, 0, 0),
        ("mail/implied", 0o040_755, 0, 0),
        ("mail/implied/x", 0o100_644, 0, 0),
        ("theirs", 0o120_777, 9, 10),
        ("fifo", 0o014_666, 3, 4),
        ("disk", 0o060_660, 0, 0),
    ] {
        let found = facts.get(path);
        assert_eq!((found.mode, found.uid, found.gid), (mode, uid, gid), "{path}");
    }
    assert_eq!(facts.get("mail/null").rdev, rustix::fs::makedev(1, 3));
    assert_eq!(facts.get("disk").rdev, rustix::fs::makedev(8, 300));
}

#[test]
fn extended_header_says_more_than_the_header() {
    let world = World::new();
    let long = format!("dir/{}", "n".repeat(255));
    let target = "t".repeat(300);
    let archive = Archive::new()
        .extended(b'g', &[("comment", "hello"), ("uid", "4")])
        .pax(&[("path", &long), ("uid", "3000000000"), ("gid", "70"), ("mtime", "-1.25"), ("size", "2")])
        .add(Item { size: Some(0), ..Item::file("short", b"ab") })
        .pax(&[("SCHILY.xattr.user.a", "line\nfeed"), ("SCHILY.xattr.security.capability", CAPABILITY)])
        .add(Item::file("with", b"").owner(5, 5))
        .pax(&[("linkpath", &target)])
        .add(Item::symlink("link", "short"))
        .long(b'L', &"l".repeat(200))
        .add(Item::file("short", b"gnu"));
    world.unpack(&archive).unwrap();
    let facts = world.facts();
    let first = facts.get(&long);
    assert_eq!((first.uid, first.gid, first.mtime), (3_000_000_000, 70, (-2, 750_000_000)));
    assert_eq!(first.content, b"ab");
    let with = facts.get("with");
    assert_eq!(with.attributes[&b"user.a"[..]], b"line\nfeed");
    assert_eq!(with.attributes[&b"security.capability"[..]], CAPABILITY.as_bytes());
    assert_eq!(with.uid, 4);
    assert_eq!(facts.get("link").content, target.as_bytes());
    assert_eq!(facts.get(&"l".repeat(200)).content, b"gnu");
}

/// cap_net_raw+ep, revision 2.
const CAPABILITY: &str = "\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[test]
fn sockets_and_labels_are_passed_over() {
    let world = World::new();
    let archive = Archive::new()
        .add(Item { mode: 0o140_755, ..Item::file("socket", b"some data") })
        .add(Item::new(b'V', "label"))
        .add(Item::file("after", b"x"));
    assert_eq!(world.unpack(&archive).unwrap().inodes, 1);
    assert_eq!(world.facts().paths(), ["after"]);
}
