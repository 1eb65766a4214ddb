//! Everything but a pull that changes the store, killed at every step that touches the disk.
//!
//! As in `crash`: this test's own binary under strace, killed at the Nth of these calls, N growing until it gets
//! through. What was there before has to be whole afterwards, and doing it again has to come to its end.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sampan_imagestore::{CheckSummary, Commit, Fault, Image, Progress, Reference, Store, UploadEvent};
use tokio::{runtime::Runtime, sync::mpsc};

use crate::{
    crash::{assert_sound, killed},
    images::{TestImage, assert_no_leftovers, entries, gzip, noise, options, simple, tar, zstd},
    push::Uploads,
    server::Registry,
};

/// Set for the process that is to be killed.
const ROOT: &str = "SAMPAN_TEST_KILL_IN";
const NAME: &str = "SAMPAN_TEST_KILL_WHAT";

/// All that changes the disk, but the writes of contents, which are many; those are in `WRITES`.
const CHANGES: &str = "rename,renameat,renameat2,fsync,fdatasync,syncfs,mkdir,mkdirat,mknodat,symlinkat,linkat,\
                       unlink,unlinkat,rmdir,fchmod,fsetxattr,ftruncate";
const WRITES: &str = "write,pwrite64,writev,copy_file_range,sendfile";

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn open(root: &Path) -> Store {
    Store::open(root, options()).unwrap()
}

fn image() -> TestImage {
    TestImage::new(vec![
        gzip(&tar(&[("a/b", b"1"), ("a/c", &noise(30_000, 91))])),
        zstd(&tar(&[("a/.wh.b", b""), ("e", &noise(20_000, 92))])),
    ])
}

fn pull(store: &Store, name: &str) -> Image {
    runtime().block_on(store.pull(&name.parse().unwrap(), None, Progress::none())).unwrap()
}

/// One thing that is done to a store.
struct Work {
    /// The test's name, by which the process to be killed finds it.
    test: &'static str,
    /// What is there before.
    prepare: fn(&Path, &str),
    /// What is killed, and done again afterwards.
    run: fn(&Path, &str),
    /// What holds of the files however far it came.
    sound: fn(&Path),
    /// Whether it has been done.
    check: fn(&Store, &Path),
}

impl Work {
    /// `step` says how far from one point to the next: every one, or fewer the further it gets.
    fn kill(&self, calls: &str, step: impl Fn(usize) -> usize) {
        if let Some(root) = std::env::var_os(ROOT) {
            return (self.run)(Path::new(&root), &std::env::var(NAME).unwrap());
        }
        let runtime = runtime();
        let registry = runtime.block_on(Registry::start());
        let _uploads = Uploads::at(&registry);
        registry.publish("app", "latest", &image());
        registry.publish("other", "latest", &simple(10_000, 93));
        let name = registry.name("app");
        let mut nth = 1;
        loop {
            let root = tempfile::tempdir().unwrap();
            (self.prepare)(root.path(), &name);
            let environment = [(ROOT, root.path().to_str().unwrap()), (NAME, &name)];
            let was_killed = killed(self.test, &environment, calls, nth);
            (self.sound)(root.path());
            let store = open(root.path());
            assert_eq!(store.faults(), [""; 0], "{} {nth}", self.test);
            if !was_killed {
                (self.check)(&store, root.path());
            }
            drop(store);
            (self.run)(root.path(), &name);
            let store = open(root.path());
            (self.check)(&store, root.path());
            store.collect().unwrap();
            assert_no_leftovers(root.path());
            if !was_killed {
                assert!(nth > 1, "{}: nothing was killed", self.test);
                return;
            }
            nth += step(nth);
        }
    }
}

/// Every one of the first forty, then fewer and fewer: most are the same write of another piece.
fn ever_fewer(nth: usize) -> usize {
    1 + nth / 40
}

/// Beside the store's own folders.
fn archive(root: &Path) -> PathBuf {
    root.join("archive.tar")
}

fn contents(root: &Path, image: &Image, layer: usize, file: &str) -> Vec<u8> {
    fs::read(crate::images::layer_directory(root, image, layer).join(file)).unwrap()
}

fn assert_is_the_image(store: &Store, root: &Path) {
    let known = store.images();
    let image = known.iter().find(|known| known.layers.len() == 2).expect("the image is there");
    assert_eq!(contents(root, image, 0, "a/c"), noise(30_000, 91));
    assert_eq!(contents(root, image, 1, "e"), noise(20_000, 92));
}

fn load(root: &Path, _: &str) {
    let store = open(root);
    store.load(fs::File::open(archive(root)).unwrap()).unwrap();
    store.settle().unwrap();
}

fn save_first(root: &Path, name: &str) {
    let elsewhere = tempfile::tempdir().unwrap();
    let store = open(elsewhere.path());
    pull(&store, name);
    let reference: Reference = "loaded:1".parse().unwrap();
    let image = store.images().remove(0);
    store.save(&[(image, vec![reference])], fs::File::create(archive(root)).unwrap()).unwrap();
}

const LOAD: Work = Work {
    test: "kills::a_load_at_every_change",
    prepare: save_first,
    run: load,
    sound: assert_sound,
    check: |store, root| {
        assert_is_the_image(store, root);
        assert!(store.find("loaded:1").unwrap().is_some());
    },
};

#[test]
fn a_load_at_every_change() {
    LOAD.kill(CHANGES, |_| 1);
}

#[test]
fn a_load_at_its_writes() {
    Work { test: "kills::a_load_at_its_writes", ..LOAD }.kill(WRITES, ever_fewer);
}

fn commit(root: &Path, name: &str) {
    let store = open(root);
    let parent = store.find(name).unwrap().expect("what it is made of");
    let reference: Reference = "made:1".parse().unwrap();
    store.commit(&parent, "key", &Commit::default(), &[reference]).unwrap();
    store.settle().unwrap();
}

#[test]
fn a_commit_at_every_change() {
    let work = Work {
        test: "kills::a_commit_at_every_change",
        prepare: |root, name| {
            let store = open(root);
            let image = pull(&store, name);
            store.settle().unwrap();
            store.snapshots().prepare("key", Some(image.chain_id())).unwrap();
            let upper = store.snapshots().directories("key").unwrap().upper;
            fs::create_dir(upper.join("made")).unwrap();
            fs::write(upper.join("made/file"), noise(50_000, 94)).unwrap();
        },
        run: commit,
        sound: assert_sound,
        check: |store, root| {
            let made = store.find("made:1").unwrap().expect("it was made");
            assert_eq!(made.layers.len(), 3);
            assert_eq!(contents(root, &made, 2, "made/file"), noise(50_000, 94));
            assert_is_the_image(store, root);
        },
    };
    work.kill(CHANGES, |_| 1);
}

#[test]
fn a_removal_with_its_collection_at_every_change() {
    let work = Work {
        test: "kills::a_removal_with_its_collection_at_every_change",
        prepare: |root, name| {
            let store = open(root);
            pull(&store, name);
            pull(&store, &name.replace("/app", "/other"));
            store.settle().unwrap();
        },
        run: |root, name| {
            let store = open(root);
            if let Some(image) = store.find(name).unwrap() {
                store.remove(&image.id).unwrap();
            }
            store.collect().unwrap();
        },
        sound: assert_sound,
        check: |store, root| {
            assert_eq!(store.images().len(), 1);
            assert_eq!(contents(root, &store.images()[0], 0, "data"), noise(10_000, 93));
            assert_eq!(entries(&root.join("content/blobs/sha256")).len(), 3);
            assert_eq!(entries(&root.join("snapshots/committed")).len(), 1);
        },
    };
    work.kill(CHANGES, |_| 1);
}

/// What a check says, each fault by its digest.
fn check(store: &Store, repair: bool) -> (CheckSummary, Vec<Fault>) {
    runtime().block_on(async {
        let (sender, mut found) = mpsc::channel(16);
        let collect = tokio::spawn(async move {
            let mut faults = Vec::new();
            while let Some(fault) = found.recv().await {
                faults.push(fault);
            }
            faults
        });
        let summary = store.check(repair, sender).await.unwrap();
        (summary, collect.await.unwrap())
    })
}

/// Beside the store's own folders: damaged blobs as they were made.
fn planted(root: &Path) -> PathBuf {
    root.join("planted")
}

const LAYER_DAMAGE: &str = "planted";

/// Damages a layer's file, the manifest and the other layer's blob.
fn damage(root: &Path, name: &str) {
    let store = open(root);
    let image = pull(&store, name);
    store.settle().unwrap();
    fs::write(crate::images::layer_directory(root, &image, 0).join("a/c"), LAYER_DAMAGE).unwrap();
    fs::create_dir(planted(root)).unwrap();
    for digest in [&image.manifest, &image.layers[1].digest] {
        let path = root.join("content/blobs/sha256").join(digest.hex());
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(planted(root).join(digest.hex()), &bytes).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Every blob is whole or exactly what it was damaged to, and a check finds no other damage than was done.
fn assert_damaged_or_repaired(root: &Path) {
    let mut damaged = 0;
    for name in entries(&root.join("content/blobs/sha256")) {
        let bytes = fs::read(root.join("content/blobs/sha256").join(&name)).unwrap();
        let whole = sampan_imagestore::Digest::of(&bytes).hex() == name;
        assert!(whole || fs::read(planted(root).join(&name)).is_ok_and(|damage| damage == bytes), "{name}");
        damaged += usize::from(!whole);
    }
    let store = open(root);
    let image = store.images().remove(0);
    let mut layer = 0;
    // Without its blob there is nothing to compare a layer with.
    let (_, faults) = check(&store, false);
    for Fault { object, digest, path, problem, .. } in &faults {
        let done = match *object {
            "blob" => planted(root).join(digest.hex()).exists(),
            _ => digest == image.layers[0].chain_id.digest() && path == "a/c",
        };
        assert!(done, "{object} {digest} {path}: {problem}");
        layer += usize::from(*object != "blob");
    }
    assert_eq!(faults.len(), damaged + layer);
    let file = contents(root, &image, 0, "a/c");
    // Its size and its time are faults of their own.
    let expected = if layer > 0 { LAYER_DAMAGE.as_bytes().to_vec() } else { noise(30_000, 91) };
    assert_eq!(file, expected, "what checks as good is good");
}

#[test]
fn a_repair_at_every_change() {
    let work = Work {
        test: "kills::a_repair_at_every_change",
        prepare: damage,
        run: |root, _| {
            let store = open(root);
            let (summary, faults) = check(&store, true);
            assert_eq!(summary.faults, summary.repaired, "{faults:?}");
            store.settle().unwrap();
        },
        sound: assert_damaged_or_repaired,
        check: |store, root| {
            assert_is_the_image(store, root);
            assert_sound(root);
            assert_eq!(check(store, false).1, []);
        },
    };
    work.kill(CHANGES, |_| 1);
}

#[test]
fn a_push_at_every_change() {
    let work = Work {
        test: "kills::a_push_at_every_change",
        prepare: |root, name| {
            let store = open(root);
            pull(&store, name);
            store.settle().unwrap();
        },
        run: |root, name| {
            let store = open(root);
            let image = store.find(name).unwrap().unwrap();
            let to: Reference = name.replace("/app", "/copy").parse().unwrap();
            runtime().block_on(async {
                let (events, mut told) = mpsc::channel::<UploadEvent>(16);
                let drain = tokio::spawn(async move { while told.recv().await.is_some() {} });
                store.push(image, &to, None, events).await.unwrap();
                drain.await.unwrap();
            });
        },
        sound: assert_sound,
        check: |store, root| {
            assert_is_the_image(store, root);
            let digests = &store.images()[0].repo_digests;
            assert!(digests.iter().any(|name| name.contains("/copy@")), "{digests:?}");
        },
    };
    work.kill(CHANGES, |_| 1);
}

/// Set for the process whose disk fails: it is to say how the pull went, and not to panic over it.
const FAILING: &str = "SAMPAN_TEST_DISK_FAILS";

/// A pull in which the `nth` of these calls fails as a bad disk's do; whether the pull succeeded all the same.
#[allow(clippy::disallowed_methods)]
fn pull_from_a_bad_disk(root: &Path, name: &str, calls: &str, nth: usize) -> bool {
    let output = std::process::Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")])
        .args(["-e", &format!("inject={calls}:error=EIO:when={nth}")])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "kills::an_error_of_the_disk_is_told_and_nothing_counts_that_it_hit",
            "--nocapture",
        ])
        .env(FAILING, root)
        .env(NAME, name)
        .output()
        .expect("strace is installed");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{calls} {nth}: {said}");
    let failed = said.contains("outcome=failed");
    assert!(failed != said.contains("outcome=pulled"), "{said}");
    assert!(!failed || said.contains("Input/output error"), "{calls} {nth}: {said}");
    !failed
}

#[allow(clippy::print_stdout)]
fn pull_and_tell(root: &Path) {
    let reference: Reference = std::env::var(NAME).unwrap().parse().unwrap();
    let pulled = Store::open(root, options())
        .and_then(|store| runtime().block_on(store.pull(&reference, None, Progress::none())));
    match pulled {
        Ok(_) => println!("outcome=pulled"),
        Err(error) => println!("outcome=failed: {}", crate::images::text(&error)),
    }
}

#[test]
fn an_error_of_the_disk_is_told_and_nothing_counts_that_it_hit() {
    if let Some(root) = std::env::var_os(FAILING) {
        return pull_and_tell(Path::new(&root));
    }
    let running = runtime();
    let registry = running.block_on(Registry::start());
    registry.publish("app", "latest", &image());
    let name = registry.name("app");
    for calls in ["fsync,fdatasync,syncfs", "rename,renameat,renameat2", "mkdirat,mknodat,fchmod,fsetxattr"] {
        let mut failures = 0;
        for nth in 1.. {
            let root = tempfile::tempdir().unwrap();
            let pulled = pull_from_a_bad_disk(root.path(), &name, calls, nth);
            assert_sound(root.path());
            let store = open(root.path());
            assert_eq!(store.faults(), [""; 0], "{calls} {nth}");
            assert!(pulled || store.images().is_empty(), "{calls} {nth}: it was said to have failed");
            pull(&store, &name);
            assert_is_the_image(&store, root.path());
            assert_no_leftovers(root.path());
            failures += usize::from(!pulled);
            if pulled {
                break;
            }
        }
        assert!(failures > 0, "{calls}: nothing failed");
    }
}
