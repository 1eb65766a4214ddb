//! What an image may try with its paths. Beside each root lies a canary, by which it shows whether anything outside was
//! touched.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

/// A root, and beside it a canary that nothing may change.
struct Tree {
    dir: tempfile::TempDir,
    root: OwnedFd,
}

impl Tree {
    fn new() -> Tree {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        let root = sys::mount::open_directory(&dir.path().join("root")).unwrap();
        Tree { dir, root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("root").join(name)
    }

    fn assert_outside_untouched(&self) {
        assert_eq!(fs::read_dir(self.dir.path().join("outside")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 2);
    }
}

#[test]
fn missing_directories_and_files_are_made() {
    let tree = Tree::new();
    directory(&tree.root, Path::new("/a/b/c")).unwrap();
    file(&tree.root, Path::new("/a/x/file")).unwrap();
    assert!(tree.path("a/b/c").is_dir());
    assert!(tree.path("a/x/file").is_file());
    directory(&tree.root, Path::new("/a/b/c")).unwrap();
}

#[test]
fn dot_dot_stays_inside() {
    let tree = Tree::new();
    directory(&tree.root, Path::new("../../outside/x")).unwrap();
    assert!(tree.path("outside/x").is_dir());
    tree.assert_outside_untouched();
}

#[test]
fn symlinks_to_outside_are_taken_as_inside() {
    let tree = Tree::new();
    symlink(tree.dir.path().join("outside"), tree.path("absolute")).unwrap();
    symlink("../outside", tree.path("relative")).unwrap();
    directory(&tree.root, Path::new("/absolute/made")).unwrap();
    file(&tree.root, Path::new("/relative/made")).unwrap();
    tree.assert_outside_untouched();
    assert!(tree.path("outside/made").is_file());
}

#[test]
fn dangling_symlinks_have_their_target_made() {
    let tree = Tree::new();
    fs::create_dir(tree.path("var")).unwrap();
    symlink("/run", tree.path("var/run")).unwrap();
    directory(&tree.root, Path::new("/var/run/lock")).unwrap();
    assert!(tree.path("run/lock").is_dir());
    assert!(tree.path("var/run").is_symlink());
}

#[test]
fn circular_symlinks_end() {
    let tree = Tree::new();
    symlink("b", tree.path("a")).unwrap();
    symlink("a", tree.path("b")).unwrap();
    let error = directory(&tree.root, Path::new("/a/x")).unwrap_err();
    assert_eq!(error.errno(), Errno::LOOP);
}

#[test]
fn file_in_the_way_of_a_directory_is_an_error() {
    let tree = Tree::new();
    fs::write(tree.path("file"), "").unwrap();
    for path in ["/file", "/file/below"] {
        assert_eq!(directory(&tree.root, Path::new(path)).unwrap_err().errno(), Errno::NOTDIR);
    }
}

#[test]
fn plain_paths_have_no_symlink() {
    let tree = Tree::new();
    fs::create_dir(tree.path("real")).unwrap();
    symlink("real", tree.path("proc")).unwrap();
    assert!(open_plain(&tree.root, Path::new("/real"), OFlags::PATH).is_ok());
    assert_eq!(open_plain(&tree.root, Path::new("/proc"), OFlags::PATH).unwrap_err().errno(), Errno::LOOP);
}

#[test]
fn find_tells_absence_from_failure() {
    let tree = Tree::new();
    fs::write(tree.path("file"), "").unwrap();
    assert!(find(&tree.root, Path::new("/none")).unwrap().is_none());
    assert!(find(&tree.root, Path::new("/file/below")).unwrap().is_none());
    assert!(find(&tree.root, Path::new("/file")).unwrap().is_some());
}

/// Somebody exchanges a directory of ours for a symlink while we make things below it.
#[test]
fn swapped_directories_do_not_lead_outside() {
    let tree = Tree::new();
    fs::create_dir(tree.path("dir")).unwrap();
    symlink(tree.dir.path().join("outside"), tree.path("link")).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let (a, b, flag) = (Path::new("dir"), Path::new("link"), rustix::fs::RenameFlags::EXCHANGE);
                rustix::fs::renameat_with(&tree.root, a, &tree.root, b, flag).unwrap();
            }
        });
        for number in 0..1000 {
            let _ = directory(&tree.root, Path::new(&format!("/dir/{number}/below")));
            let _ = file(&tree.root, Path::new(&format!("/link/{number}/file")));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    tree.assert_outside_untouched();
}
