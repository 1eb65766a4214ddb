//! Paths that somebody exchanges while containers are made of them: as many starts as it takes for every order of
//! events to come up, and a canary that stays as it is.
//!
//! SAMPAN_TEST_ROUNDS says how many starts there are. Few when nothing is said: a thousand take a minute and a half.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use sampan_runtime::container::Report;
use serde_json::json;

use crate::attack::{Canary, without_mounts_below};
use crate::fixture::{Bundle, Outcome, bind, mount};

crate::cases![
    volume_that_is_swapped_while_two_containers_mount_it_stays_inside,
    null_device_that_is_swapped_is_no_mask,
    console_that_is_swapped_stays_inside,
    proc_sys_and_dev_that_are_swapped_stay_inside,
];

/// The first argument of this program when it is to be the one who swaps.
pub(crate) const COMPANION: &str = "--swap";

/// Exchanges pairs of names in a directory until it is killed.
pub(crate) fn companion(arguments: &[String]) -> ! {
    let [directory, names @ ..] = arguments else { panic!("a directory and names") };
    let directory = fs::File::open(directory).unwrap();
    let (pairs, _) = names.as_chunks();
    loop {
        for [a, b] in pairs {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(&directory, a.as_str(), &directory, b.as_str(), flags).unwrap();
        }
    }
}

/// Kills the companion in the end.
struct Swapper(Child);

impl Swapper {
    fn of(directory: &Path, names: &[&str]) -> Swapper {
        let mut command = Command::new("/proc/self/exe");
        Swapper(command.arg(COMPANION).arg(directory).args(names).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn rounds() -> usize {
    std::env::var("SAMPAN_TEST_ROUNDS").map_or(200, |rounds| rounds.parse().expect("a number"))
}

/// Those that came as far as their program. Some have to, or nothing was tried.
fn started(start: impl Fn(usize) -> Outcome) -> Vec<Outcome> {
    let all = (0..rounds()).map(start);
    let started: Vec<Outcome> = all.filter(|outcome| outcome.report == Report::Executed).collect();
    assert!(!started.is_empty(), "some of them are a success");
    started
}

/// CVE-2021-30465, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642 and, as mount points are made on the way,
/// CVE-2024-45310.
fn volume_that_is_swapped_while_two_containers_mount_it_stays_inside() {
    let canary = Canary::new();
    let volume = tempfile::tempdir().unwrap();
    fs::create_dir(volume.path().join("dir")).unwrap();
    symlink(canary.path(), volume.path().join("link")).unwrap();
    let container = || {
        let mut bundle = without_mounts_below(Bundle::new(&["true"]), "/sys")
            .add_mount(bind(volume.path(), "/volume", &[]))
            .add_mount(mount("/volume/dir/tmpfs", "tmpfs", "tmpfs", &[]))
            .add_mount(bind(volume.path(), "/volume/dir/bind", &[]))
            .set("/process/cwd", json!("/volume/dir/deep/cwd"));
        for list in ["maskedPaths", "readonlyPaths"] {
            let list = bundle.spec["linux"][list].as_array_mut().unwrap();
            list.extend([json!("/volume/dir"), json!("/volume/link/file")]);
        }
        bundle
    };
    let containers = [container(), container()];
    let swapper = Swapper::of(volume.path(), &["dir", "link"]);
    // The one is in the middle of its mounts when the other begins.
    started(|_| {
        let [first, second] = &containers;
        let under_way = first.spawn();
        let outcome = second.run();
        let report = under_way.process.report();
        if report == Report::Ready {
            under_way.process.child.channel.start().unwrap();
        }
        under_way.finish(report);
        outcome
    });
    drop(swapper);
    canary.assert_untouched();
}

/// CVE-2025-31133: what masks a file is the host's null device, whatever the image has at /dev/null.
fn null_device_that_is_swapped_is_no_mask() {
    let canary = Canary::new();
    let bundle = without_mounts_below(Bundle::new(&["stat", "-c", "%t:%T", "/proc/interrupts"]), "/dev");
    let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::from_raw_mode(0o666));
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(rustix::fs::CWD, bundle.inside("dev/null"), kind, mode, null).unwrap();
    fs::write(bundle.inside("dev/evil"), "").unwrap();
    let swapper = Swapper::of(&bundle.inside("dev"), &["null", "evil"]);
    for outcome in started(|_| bundle.run()) {
        assert_eq!(outcome.stdout, "1:3\n", "{outcome:?}");
    }
    drop(swapper);
    canary.assert_untouched();
}

/// CVE-2025-52565: the terminal is mounted in the container and nowhere else, whoever has a say in the name.
fn console_that_is_swapped_stays_inside() {
    // Its standard output is the terminal. A name that moves while it is looked at is looked at in vain.
    const LOOK: &str = "i=0; while [ $i -lt 1000 ]; do i=$((i+1)); for name in console link; do
        [ ! -c /dev/$name ] || { echo found >/tmp/out; exit; }; done; done; echo lost >/tmp/out";
    let canary = Canary::new();
    let bundle = without_mounts_below(Bundle::shell(LOOK), "/dev")
        .add_mount(mount("/dev/pts", "devpts", "devpts", &["newinstance", "ptmxmode=0666", "mode=0620"]))
        .set("/process/terminal", json!(true));
    fs::write(bundle.inside("dev/console"), "").unwrap();
    symlink(canary.path().join("file"), bundle.inside("dev/link")).unwrap();
    let swapper = Swapper::of(&bundle.inside("dev"), &["console", "link"]);
    started(|_| {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let outcome = bundle.run_with_console(theirs.as_fd());
        drop(ours);
        if outcome.report == Report::Executed && outcome.code == 0 {
            assert_eq!(fs::read_to_string(bundle.inside("tmp/out")).unwrap(), "found\n");
        }
        outcome
    });
    drop(swapper);
    canary.assert_untouched();
}

/// CVE-2025-54867, CVE-2025-62161, CVE-2025-62596.
fn proc_sys_and_dev_that_are_swapped_stay_inside() {
    let canary = Canary::new();
    let bundle = Bundle::new(&["true"]);
    for name in ["proc", "sys", "dev"] {
        symlink(canary.path(), bundle.inside(&format!("{name}-link"))).unwrap();
    }
    let names = ["proc", "proc-link", "sys", "sys-link", "dev", "dev-link"];
    let swapper = Swapper::of(&bundle.inside(""), &names);
    started(|_| bundle.run());
    drop(swapper);
    canary.assert_untouched();
}
