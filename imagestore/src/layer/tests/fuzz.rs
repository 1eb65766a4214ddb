//! Bytes at random, and good archives with some bytes changed: an error or a layer, never a panic or an escape.

use proptest::prelude::*;

use super::*;

fn rich() -> Archive {
    Archive::new()
        .add(Item::directory("./"))
        .add(Item::directory("usr/bin").mode(0o2755).owner(0, 5))
        .add(Item::symlink("bin", "usr/bin"))
        .pax(&[("path", "bin/tool"), ("mtime", "1.5"), ("SCHILY.xattr.user.a", "b"), ("size", "4")])
        .add(Item::file("short", b"data"))
        .add(Item::hard_link("usr/bin/tool2", "bin/tool"))
        .long(b'L', "a/long/name")
        .add(Item::file("x", &[1; 600]))
        .add(Item::file("a/.wh.gone", b""))
        .add(Item::file("a/.wh..wh..opq", b""))
        .add(Item::device("null", 1, 3))
        .pax(&[("GNU.sparse.size", "100"), ("GNU.sparse.map", "0,2,50,2"), ("GNU.sparse.name", "holes")])
        .add(Item::file("holes", b"abcd"))
        .add(Item::new(b'6', "fifo"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let _ = World::new().unpack_bytes(&bytes);
    }

    #[test]
    fn mutated_archives_never_escape(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        reseal in any::<bool>(),
        cut in any::<prop::sample::Index>(),
        shorten in any::<bool>(),
    ) {
        let mut bytes = rich().bytes();
        let headers: Vec<usize> =
            (0..bytes.len()).step_by(512).filter(|at| &bytes[at + 257..at + 262] == b"ustar").collect();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
            if reseal && headers.contains(&(at / 512 * 512)) {
                let start = at / 512 * 512;
                let mut block: [u8; 512] = bytes[start..start + 512].try_into().unwrap();
                archive::seal(&mut block);
                bytes[start..start + 512].copy_from_slice(&block);
            }
        }
        if shorten {
            bytes.truncate(cut.index(bytes.len()));
        }
        let world = World::new();
        if let Ok(unpacked) = world.unpack_bytes(&bytes) {
            prop_assert_eq!(unpacked.diff_id, crate::Digest::of(&bytes));
        }
    }

    #[test]
    fn any_names_stay_beneath_the_root(
        names in prop::collection::vec(("(\\.\\.?|/|a|b|\\.wh\\.|\\.wh\\.\\.wh\\.\\.opq){1,5}", 0_u8..6, "(\\.\\./|/|a|b){0,4}"), 1..12)
    ) {
        let mut archive = Archive::new();
        for (name, kind, link) in names {
            archive = archive.add(Item { link: link.into(), ..Item::new(b"012567"[usize::from(kind)], name) });
        }
        let _ = World::new().unpack(&archive);
    }
}
