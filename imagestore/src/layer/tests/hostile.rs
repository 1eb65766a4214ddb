//! Layers that mean harm. Each has one defined result; nothing beside the root ever changes
//! (`World::unpack` compares it each time).

use super::*;

fn refused(item: Item) -> Refusal {
    World::new().refusal(&Archive::new().add(item))
}

fn malformed(bytes: &[u8]) -> &'static str {
    match World::new().unpack_bytes(bytes) {
        Err(Error::Malformed { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_that_climb_are_refused() {
    for name in ["..", "../x", "a/../../x", "/../x", "./..", "a/.."] {
        assert_eq!(refused(Item::file(name, b"")), Refusal::Climbs, "{name}");
        assert_eq!(refused(Item::directory(name)), Refusal::Climbs, "{name}");
        assert_eq!(refused(Item::symlink(name, "x")), Refusal::Climbs, "{name}");
    }
    let by_extension = Archive::new().pax(&[("path", "../x")]).add(Item::file("x", b""));
    assert_eq!(World::new().refusal(&by_extension), Refusal::Climbs);
    let by_long_name = Archive::new().long(b'L', "../x").add(Item::file("x", b""));
    assert_eq!(World::new().refusal(&by_long_name), Refusal::Climbs);
    let error = World::new().unpack(&Archive::new().add(Item::file("a/../x", b""))).unwrap_err();
    assert_eq!(error.to_string(), "entry \"a/../x\": name climbs with \"..\"");
}

#[test]
fn absolute_names_lie_beneath_the_root() {
    let world = World::new();
    let canary = world.outside().join("etc/passwd");
    world.unpack(&Archive::new().add(Item::file(canary.to_str().unwrap(), b"mine"))).unwrap();
    assert_eq!(world.read(canary.strip_prefix("/").unwrap().to_str().unwrap()), b"mine");
}

#[test]
fn links_as_parents_lead_nowhere_else() {
    let world = World::new();
    let outside = world.outside();
    let outside = outside.to_str().unwrap();
    for target in [outside, "../outside", "../../../../../../../../etc", "/proc/self/cwd", "/"] {
        let world = World::new();
        let result = world.unpack(
            &Archive::new()
                .add(Item::symlink("parent", target))
                .add(Item::file("parent/etc/passwd", b"mine"))
                .add(Item::directory("parent/etc").mode(0o777)),
        );
        // What does not exist beneath the root is refused; the root itself is a place.
        match target {
            "/" => assert_eq!(world.read("etc/passwd"), b"mine"),
            _ => {
                assert!(matches!(result, Err(Error::Refused { refusal: Refusal::Parent, .. })), "{result:?}")
            }
        }
    }
    let nested = Archive::new()
        .add(Item::directory("a/b"))
        .add(Item::symlink("a/b/up", "../../../../../.."))
        .add(Item::symlink("chain", "a/b/up"))
        .add(Item::file("chain/passwd", b"mine"));
    world.unpack(&nested).unwrap();
    assert_eq!(world.read("passwd"), b"mine");
}

#[test]
fn link_over_an_open_directory_is_seen() {
    let world = World::new();
    let outside = world.outside();
    // The parent of the last entry is held open: a link in its place must be noticed.
    let archive = Archive::new()
        .add(Item::directory("d"))
        .add(Item::file("d/x", b"1"))
        .add(Item::symlink("d", outside.to_str().unwrap()))
        .add(Item::file("d/y", b"2"));
    assert_eq!(world.refusal(&archive), Refusal::Parent);
    let world = World::new();
    let archive = Archive::new()
        .add(Item::directory("real"))
        .add(Item::symlink("d", "real"))
        .add(Item::file("d/x", b"1"))
        .add(Item::directory("d"))
        .add(Item::file("d/y", b"2"));
    world.unpack(&archive).unwrap();
    assert_eq!(world.facts().paths(), ["d", "d/y", "real", "real/x"]);
}

#[test]
fn directory_on_the_way_may_be_replaced_through_a_loop() {
    let world = World::new();
    let archive = Archive::new()
        .add(Item::directory("x"))
        .add(Item::symlink("x/loop", ".."))
        .add(Item::file("x/loop/x", b"a file now"))
        .add(Item::file("x/loop/y", b""));
    assert_eq!(world.refusal(&archive), Refusal::Parent);
    assert_eq!(world.facts().paths(), ["x"]);
}

#[test]
fn entries_are_never_written_through_a_final_link() {
    let world = World::new();
    let outside = world.outside().join("etc/passwd");
    let target = outside.to_str().unwrap();
    let mut archive = Archive::new();
    for name in ["f", "d", "s", "n", "h"] {
        archive = archive.add(Item::symlink(name, target));
    }
    let archive = archive
        .add(Item::file("f", b"mine").mode(0o777).owner(1, 1))
        .add(Item::directory("d").mode(0o777).owner(1, 1))
        .pax(&[("SCHILY.xattr.trusted.mine", "x")])
        .add(Item::symlink("s", target).owner(1, 1).mtime(5))
        .pax(&[("SCHILY.xattr.trusted.mine", "x")])
        .add(Item { device: (1, 3), ..Item::new(b'3', "n") }.mode(0o4777).owner(1, 1))
        .add(Item::hard_link("hard", "h"));
    world.unpack(&archive).unwrap();
    let facts = world.facts();
    assert_eq!(facts.get("f").content, b"mine");
    assert_eq!(facts.get("d").mode, 0o040_777);
    assert_eq!((facts.get("s").uid, facts.get("s").mtime.0), (1, 5));
    assert_eq!(facts.get("s").attributes[&b"trusted.mine"[..]], b"x");
    assert_eq!(facts.get("n").mode, 0o024_777);
    // The link itself has two names now.
    assert_eq!(facts.get("hard").content, target.as_bytes());
    assert_eq!(facts.get("hard").first, Path::new("h").min(Path::new("hard")));
}

#[test]
fn hard_links_reach_only_what_the_layer_holds() {
    let world = World::new();
    let outside = world.outside();
    let canary = outside.join("etc/passwd");
    for target in [canary.to_str().unwrap(), "/etc/passwd", "missing", "a/missing", "", "/", "."] {
        assert_eq!(refused(Item::hard_link("x", target)), Refusal::HardLinkTarget, "{target}");
    }
    assert_eq!(refused(Item::hard_link("x", "../outside/etc/passwd")), Refusal::Climbs);
    let through = |target: &str| {
        Archive::new().add(Item::symlink("out", target)).add(Item::hard_link("x", "out/etc/passwd"))
    };
    for target in ["..", "../outside", outside.to_str().unwrap()] {
        assert_eq!(World::new().refusal(&through(target)), Refusal::HardLinkTarget, "{target}");
    }
    let directory = Archive::new().add(Item::directory("d")).add(Item::hard_link("x", "d"));
    assert_eq!(World::new().refusal(&directory), Refusal::HardLinkTarget);
    let whiteout = Archive::new().add(Item::file(".wh.w", b"")).add(Item::hard_link("x", "w"));
    assert_eq!(World::new().refusal(&whiteout), Refusal::HardLinkTarget);
}

#[test]
fn hard_link_to_itself_keeps_the_file() {
    let world = World::new();
    let archive = Archive::new()
        .add(Item::file("a", b"kept"))
        .add(Item::hard_link("a", "./a"))
        .add(Item::hard_link("b", "a"))
        .add(Item::hard_link("b", "a"))
        .add(Item::file("c", b"lost"))
        .add(Item::hard_link("c", "a"));
    world.unpack(&archive).unwrap();
    let facts = world.facts();
    for name in ["a", "b", "c"] {
        assert_eq!((&facts.get(name).content[..], facts.get(name).first.to_str()), (&b"kept"[..], Some("a")));
    }
}

#[test]
fn whiteouts_that_could_climb_are_refused() {
    for name in [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh..", "a/.wh...", ".wh.x/y"] {
        assert_eq!(refused(Item::file(name, b"")), Refusal::Whiteout, "{name}");
    }
}

#[test]
fn opaque_marker_does_not_follow_a_link_out() {
    let world = World::new();
    let outside = world.outside();
    let archive = Archive::new()
        .add(Item::symlink("d", outside.to_str().unwrap()))
        .add(Item::file("d/.wh..wh..opq", b""))
        .add(Item::file("d/.wh.etc", b""));
    assert_eq!(world.refusal(&archive), Refusal::Parent);
}

#[test]
fn attributes_of_overlayfs_are_refused() {
    for name in ["trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.opaque", "user.overlay."]
    {
        let key = format!("SCHILY.xattr.{name}");
        for item in [Item::file("x", b""), Item::directory("x"), Item::symlink("x", "y")] {
            let archive = Archive::new().pax(&[(&key, "y")]).add(item);
            assert_eq!(World::new().refusal(&archive), Refusal::OverlayAttribute, "{name}");
        }
    }
    for name in ["", "user.\0x"] {
        let archive = Archive::new().pax(&[(&format!("SCHILY.xattr.{name}"), "y")]).add(Item::file("x", b""));
        assert_eq!(World::new().refusal(&archive), Refusal::AttributeName);
    }
}

#[test]
fn whiteout_device_is_refused() {
    assert_eq!(refused(Item::device("x", 0, 0)), Refusal::WhiteoutDevice);
}

#[test]
fn names_and_targets_have_bounds() {
    let named = |name: &str| Archive::new().long(b'L', name).add(Item::file("x", b""));
    assert_eq!(World::new().refusal(&named(&"n".repeat(256))), Refusal::LongComponent);
    assert_eq!(World::new().refusal(&named(&"abc/".repeat(1025))), Refusal::LongPath);
    World::new().unpack(&named(&"n".repeat(255))).unwrap();
    let linked = |target: &str| Archive::new().long(b'K', target).add(Item::symlink("x", ""));
    World::new().unpack(&linked(&"abc/".repeat(1023))).unwrap();
    assert_eq!(World::new().refusal(&linked(&"abc/".repeat(1025))), Refusal::SymlinkTarget);
    assert_eq!(refused(Item::symlink("x", "")), Refusal::SymlinkTarget);
    // As deep as a path can say, which is deeper than directories are held open.
    let deep = "d/".repeat(2047) + "x";
    World::new().unpack(&named(&deep)).unwrap();
}

#[test]
fn root_is_a_directory_only() {
    for name in ["./", "/", "."] {
        assert_eq!(refused(Item::symlink(name, "/etc")), Refusal::Root, "{name}");
        assert_eq!(refused(Item::new(b'6', name)), Refusal::Root, "{name}");
    }
    let world = World::new();
    world.unpack(&Archive::new().add(Item::directory("./").mode(0o711).owner(1, 2).mtime(3))).unwrap();
    let facts = world.facts();
    let root = facts.get("");
    assert_eq!((root.mode, root.uid, root.gid, root.mtime), (0o040_711, 1, 2, (3, 0)));
}

#[test]
fn owners_out_of_range_are_refused() {
    for id in ["4294967295", "4294967296", "99999999999"] {
        for key in ["uid", "gid"] {
            let archive = Archive::new().pax(&[(key, id)]).add(Item::file("x", b""));
            assert_eq!(World::new().refusal(&archive), Refusal::Owner, "{key} {id}");
        }
    }
}

#[test]
fn file_as_parent_is_refused() {
    let archive = Archive::new().add(Item::file("a", b"")).add(Item::file("a/b", b""));
    assert_eq!(World::new().refusal(&archive), Refusal::Parent);
}

#[test]
fn unknown_types_are_refused() {
    for kind in [b'8', b'M', b'D', b'N', 0xff] {
        assert_eq!(refused(Item::new(kind, "x")), Refusal::Type, "{kind}");
    }
}

/// An archive inside a file's data must stay data, whatever sizes are claimed around it (CVE-2025-62518).
#[test]
fn sizes_cannot_move_the_next_header() {
    let inner = Archive::new().add(Item::file("smuggled", b"")).unfinished();
    let length = inner.len().to_string();
    // The extended header tells the true size, the header says none: readers that believe the header
    // would see the inner archive.
    let world = World::new();
    let archive = Archive::new()
        .pax(&[("size", &length)])
        .add(Item { size: Some(0), ..Item::file("outer", &inner) })
        .add(Item::file("after", b""));
    world.unpack(&archive).unwrap();
    assert_eq!(world.facts().paths(), ["after", "outer"]);
    // It does not count for the long name between it and the file.
    let world = World::new();
    let archive = Archive::new()
        .pax(&[("size", &length)])
        .long(b'L', "outer")
        .add(Item { size: Some(0), ..Item::file("short", &inner) })
        .add(Item::file("after", b""));
    world.unpack(&archive).unwrap();
    assert_eq!(world.facts().paths(), ["after", "outer"]);
    // What is no file has no data.
    let world = World::new();
    let archive = Archive::new()
        .add(Item { size: Some(512), ..Item::directory("d") })
        .add(Item { size: Some(512), ..Item::hard_link("f2", "f") })
        .raw(&[]);
    assert_eq!(world.refusal(&archive), Refusal::HardLinkTarget);
    let ambiguous = Archive::new().add(Item::file("d/", b"data"));
    assert_eq!(malformed(&ambiguous.bytes()), "a directory's name with a file's data");
    let twice = Archive::new().pax(&[("size", "1")]).pax(&[("path", "y")]).add(Item::file("x", b"1"));
    assert_eq!(malformed(&twice.bytes()), "two extended headers for one entry");
    for key in ["path", "size", "linkpath", "SCHILY.xattr.user.a", "GNU.sparse.major"] {
        let global = Archive::new().extended(b'g', &[(key, "1")]).add(Item::file("x", b"1"));
        assert_eq!(malformed(&global.bytes()), "global header changes names or sizes");
    }
}

#[test]
fn malformed_headers_are_told_apart() {
    let good = Archive::new().add(Item::file("a", b"data")).add(Item::file("b", b"data"));
    let mut flipped = good.bytes();
    flipped[0] ^= 1;
    assert_eq!(malformed(&flipped), "checksum does not match");
    let lone = good.clone().raw(&[0; 512]).add(Item::file("c", b""));
    assert_eq!(malformed(&lone.bytes()), "a single block of zeros");
    let pax = good.clone().pax(&[("path", "x")]);
    assert_eq!(malformed(&pax.bytes()), "extended header without an entry");
    assert_eq!(malformed(&pax.unfinished()), "extended header without an entry");
    let broken = Archive::new().add(Item { data: b"8 path=x\n".to_vec(), ..Item::new(b'x', "p") });
    assert_eq!(
        malformed(&broken.add(Item::file("x", b"")).bytes()),
        "extended header record has a wrong length"
    );
    let huge = Archive::new().add(Item { size: Some(1 << 30), ..Item::new(b'x', "p") });
    assert_eq!(malformed(&huge.bytes()), "extended header is over 1 MiB");
    assert_eq!(malformed(&[7; 512]), "checksum does not match");
}

#[test]
fn truncated_layers_are_told_by_where_they_end() {
    let bytes = Archive::new().add(Item::file("a", &[1; 2000])).unfinished();
    for length in [1, 100, 511, 513, 1000, 2500, bytes.len() - 1] {
        match World::new().unpack_bytes(&bytes[..length]) {
            Err(Error::Truncated { offset, .. }) => assert_eq!(offset, length as u64),
            other => panic!("{length}: {other:?}"),
        }
    }
    // Between two blocks where a header could follow, it is just an end without a mark.
    World::new().unpack_bytes(&bytes).unwrap();
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    for (map, realsize) in [
        ("2\n0\n10\n5\n10\n", "1000"),
        ("1\n0\n5000\n", "1000"),
        ("1\n0\n11\n", "1000"),
        ("2\n18446744073709551615\n10\n5\n10\n", "1000"),
        ("2\n0\n5\n3\n5\n", "1000"),
        ("2\n500\n5\n0\n5\n", "1000"),
        ("1\n995\n10\n", "1000"),
        ("99\n0\n10\n", "1000"),
        ("x\n", "1000"),
        ("111111111111111111111111111111111\n", "1000"),
        ("1\n0\n10\n", "99999999999999999999"),
        ("1\n0\n10\n", "18446744073709551615"),
    ] {
        let mut data = map.as_bytes().to_vec();
        data.resize(512, 0);
        data.extend_from_slice(&[7; 10]);
        let archive = Archive::new()
            .pax(&[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.name", "holes"),
                ("GNU.sparse.realsize", realsize),
            ])
            .add(Item::file("GNUSparseFile.0/holes", &data));
        assert_eq!(World::new().refusal(&archive), Refusal::Sparse, "{map:?}");
    }
}
