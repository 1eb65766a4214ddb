//! Mounts that are really made, at a target in a temporary directory, and counted in the table of the kernel.

use std::fs;

use oci_spec::runtime::MountBuilder;

use super::*;

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
    MountBuilder::default().destination("/").typ(kind).source(source).options(options).build().unwrap()
}

/// How many mounts lie at `path`.
fn mounts_at(path: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.split(' ').nth(4) == path.to_str()).count()
}

#[test]
fn mounts_stack_at_the_target_and_are_undone_together() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&target).unwrap();
    fs::write(source.join("file"), "").unwrap();
    let mounts =
        [mount("tmpfs", "tmpfs", &["size=64k"]), mount("bind", source.to_str().unwrap(), &["rbind", "ro"])];
    mount_all(&mounts, &target, None).unwrap();
    assert_eq!(mounts_at(&target), 2);
    assert!(target.join("file").exists());
    assert_eq!(fs::write(target.join("x"), "").unwrap_err().raw_os_error(), Some(libc::EROFS));
    unmount(&target).unwrap();
    assert_eq!(mounts_at(&target), 0);
    assert!(!target.join("file").exists());
}

#[test]
fn nothing_to_unmount_is_fine() {
    let dir = tempfile::tempdir().unwrap();
    unmount(dir.path()).unwrap();
    unmount(&dir.path().join("none")).unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    unmount(&dir.path().join("file/below")).unwrap();
}

#[test]
fn unmount_does_not_follow_symlinks() {
    let dir = tempfile::tempdir().unwrap();
    let (target, link) = (dir.path().join("target"), dir.path().join("link"));
    fs::create_dir(&target).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    mount_all(&[mount("tmpfs", "tmpfs", &[])], &target, None).unwrap();
    let _ = unmount(&link);
    assert_eq!(mounts_at(&target), 1);
    unmount(&target).unwrap();
}

#[test]
fn failure_undoes_what_was_mounted_before() {
    let dir = tempfile::tempdir().unwrap();
    let mounts = [mount("tmpfs", "tmpfs", &[]), mount("bind", "/no/such/source", &["bind"])];
    let error = mount_all(&mounts, dir.path(), None).unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), "mount source /no/such/source");
    assert_eq!(mounts_at(dir.path()), 0);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let failure = |mount: Mount| mount_all(&[mount], dir.path(), None).unwrap_err().to_string();
    assert_eq!(failure(mount("overlay", "overlay", &["upperdir=/x"])), "overlay mount without lowerdir");
    assert_eq!(
        failure(mount("overlay", "overlay", &["lowerdir=/", "upperdir=/x"])),
        "overlay mount without workdir"
    );
    assert_eq!(failure(mount("tmpfs", "tmpfs", &["remount"])), "mount option \"remount\" is not supported");
    assert_eq!(
        failure(mount("nosuchfs", "none", &[])),
        format!("mount nosuchfs at {}", dir.path().display())
    );
}
