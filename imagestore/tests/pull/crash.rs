//! A pull that is killed, at every step that touches the disk.
//!
//! The process that is killed is this test's own binary under strace, which kills it as it enters the Nth system call
//! of a kind; N grows until the pull gets through. After each, the next process has to find nothing damaged, and to
//! bring the pull to its end.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
};

use sampan_imagestore::{Digest, Progress, Reference, Store};

use crate::{
    images::{Setup, TestImage, entries, gzip, layer_directory, noise, options, plain, tar, zstd},
    server::Registry,
};

/// Set for the process that is to be killed: where it pulls to, and what.
const ROOT: &str = "SAMPAN_TEST_PULL_TO";
const NAME: &str = "SAMPAN_TEST_PULL_WHAT";

/// The calls that change what is on the disk, in groups that are counted apart.
const CALLS: [&str; 5] = [
    "rename,renameat,renameat2",
    "fsync,fdatasync,syncfs,fadvise64",
    "mkdir,mkdirat,mknodat,symlinkat,linkat,unlink,unlinkat,fchmod,fsetxattr,ftruncate",
    // Every file that is made or opened, with those of the process's own start.
    "openat,openat2",
    // With those into the registry's socket.
    "write,pwrite64,writev",
];

fn image() -> TestImage {
    TestImage::new(vec![
        gzip(&tar(&[("a/b", b"1"), ("a/c", &noise(70_000, 1)), ("d", b"2")])),
        zstd(&tar(&[("a/.wh.b", b""), ("e", &noise(40_000, 2))])),
        plain(&tar(&[("f", b"3"), ("f", b"4")])),
    ])
}

/// The part of the process that is killed.
fn pull_to(root: &Path) {
    let reference: Reference = std::env::var(NAME).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = Store::open(root, options()).unwrap();
    runtime.block_on(store.pull(&reference, None, Progress::none())).unwrap();
    store.settle().unwrap();
}

/// Runs a test of this binary in that environment, and kills it at the `nth` of these calls; false if it got through
/// before.
#[allow(clippy::disallowed_methods)]
pub(crate) fn killed(test: &str, environment: &[(&str, &str)], calls: &str, nth: usize) -> bool {
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")])
        .args(["-e", &format!("inject={calls}:signal=SIGKILL:when={nth}")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .envs(environment.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("strace is installed");
    match (status.code(), status.signal()) {
        (Some(0), _) => false,
        (_, Some(9)) => true,
        _ => panic!("{test} was not killed and failed: {calls} {nth}: {status}"),
    }
}

/// Whether everything that counts is what its name says.
pub(crate) fn assert_sound(root: &Path) {
    let blobs = root.join("content/blobs/sha256");
    if !blobs.exists() {
        return;
    }
    for name in entries(&blobs) {
        let bytes = fs::read(blobs.join(&name)).unwrap();
        assert_eq!(Digest::of(&bytes).hex(), name, "a blob with other bytes");
    }
}

fn kill_everywhere(test: &str, calls: &str) {
    if let Some(root) = std::env::var_os(ROOT) {
        return pull_to(Path::new(&root));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let registry = runtime.block_on(Registry::start());
    let image = image();
    registry.publish("app", "latest", &image);
    let name = registry.name("app");
    let mut nth = 1;
    loop {
        let root = tempfile::tempdir().unwrap();
        let environment = [(ROOT, root.path().to_str().unwrap()), (NAME, &name)];
        let was_killed = killed(test, &environment, calls, nth);
        assert_sound(root.path());
        let store = Store::open(root.path(), options()).unwrap();
        assert_eq!(store.faults(), [""; 0], "{calls} {nth}");
        let known = store.images().len();
        assert!(known == 1 || was_killed);
        let pulled = runtime.block_on(store.pull(&name.parse().unwrap(), None, Progress::none())).unwrap();
        assert_eq!(store.images().len(), 1);
        let read =
            |layer, file: &str| fs::read(layer_directory(root.path(), &pulled, layer).join(file)).unwrap();
        assert_eq!(read(0, "a/c"), noise(70_000, 1), "{calls} {nth}");
        assert_eq!((read(0, "a/b"), read(0, "d")), (b"1".to_vec(), b"2".to_vec()), "{calls} {nth}");
        assert_eq!((read(1, "e"), read(2, "f")), (noise(40_000, 2), b"4".to_vec()), "{calls} {nth}");
        let setup = Setup { root, store, registry: registry.clone() };
        setup.assert_holds(5, 3);
        if !was_killed {
            // Each thread counts for itself, and which does what is not always the same.
            assert!(nth > 1, "{calls}: nothing was killed");
            return;
        }
        // Every one of the first forty, then fewer: most are the same write of another piece.
        nth += if calls == CALLS[4] { 1 + nth / 40 } else { 1 };
    }
}

#[test]
fn at_every_rename() {
    kill_everywhere("crash::at_every_rename", CALLS[0]);
}

#[test]
fn at_every_sync() {
    kill_everywhere("crash::at_every_sync", CALLS[1]);
}

#[test]
fn at_every_change_of_a_directory() {
    kill_everywhere("crash::at_every_change_of_a_directory", CALLS[2]);
}

#[test]
fn at_every_file_that_is_opened() {
    kill_everywhere("crash::at_every_file_that_is_opened", CALLS[3]);
}

#[test]
fn at_its_writes() {
    kill_everywhere("crash::at_its_writes", CALLS[4]);
}
