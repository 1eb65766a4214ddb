//! Unpacking while someone swaps a parent for a link to outside.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::*;

/// As many as the list of attacks asks for.
const ROUNDS: u32 = 1000;

#[test]
fn swapped_parent_leads_nowhere_else() {
    let world = World::new();
    let outside = world.outside();
    std::fs::create_dir(outside.join("sub")).unwrap();
    let before = facts::Tree::read(&outside);
    let root = world.root();
    let (real, link) = (root.join("d"), root.join("link"));
    let stop = AtomicBool::new(false);
    let mut archive = Archive::new();
    for round in 0..40 {
        archive = archive
            .add(Item::file(&format!("d/sub/{round}"), b"mine"))
            .add(Item::file("other/x", b""))
            .add(Item::directory("d/sub").mode(0o777).owner(5, 5))
            .add(Item::symlink(&format!("d/s{round}"), "x").owner(5, 5))
            .add(Item::hard_link(&format!("d/h{round}"), "other/x"))
            .add(Item::file("d/.wh.etc", b""));
    }
    let bytes = archive.bytes();
    let (mut unpacked, mut confined) = (0_u32, 0_u32);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = renameat_with(CWD, &real, CWD, &link, RenameFlags::EXCHANGE);
            }
        });
        for _ in 0..ROUNDS {
            std::fs::create_dir_all(real.join("sub")).ok();
            // Where the link leads: out of the root by any reading but the right one.
            std::os::unix::fs::symlink(&outside, &link).ok();
            match unpack(&bytes[..], world.root.as_fd()) {
                Ok(_) => unpacked += 1,
                Err(_) => confined += 1,
            }
            std::fs::remove_dir_all(root.join("other")).ok();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(facts::Tree::read(&outside), before);
    // Both happened, so that the race was run and not only set up.
    assert!(unpacked + confined == ROUNDS && confined > 0, "{unpacked} {confined}");
}
