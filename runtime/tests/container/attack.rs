//! Root file systems and volumes made to lead the runtime astray. Beside each lies a canary, and
//! whatever happens to the container, the canary stays as it is.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sampan_runtime::container::{PidNamespace, Report};
use serde_json::json;

use crate::fixture::{Bundle, bind, mount, shell_process};

crate::cases![
    symlinked_mount_targets_stay_inside,
    dot_dot_mount_targets_stay_inside,
    symlinked_proc_and_sys_are_refused,
    symlinked_dev_stays_inside,
    symlinked_masked_paths_stay_inside,
    symlinked_working_directory_stays_inside,
    volume_that_is_swapped_while_mounting_stays_inside,
    own_executable_is_out_of_reach,
    process_in_the_making_is_out_of_reach,
];

/// The first argument of this program when it is to be the one who swaps.
pub(crate) const COMPANION: &str = "--swap";

/// The first argument of this program when it is to be the runtime's file, executed in a container.
pub(crate) const LINGER: &str = "--linger";

/// Sleeps for as long as a test takes at most.
pub(crate) fn linger() -> ! {
    std::thread::sleep(std::time::Duration::from_secs(60));
    std::process::exit(0)
}

/// Exchanges two names in a directory until it is killed.
pub(crate) fn companion(arguments: &[String]) -> ! {
    let [directory, a, b] = arguments else { panic!("a directory and two names") };
    let directory = fs::File::open(directory).unwrap();
    loop {
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(&directory, a.as_str(), &directory, b.as_str(), flags).unwrap();
    }
}

/// A directory of the host that an attacker aims at.
struct Canary {
    dir: tempfile::TempDir,
    before: Vec<String>,
}

impl Canary {
    fn new() -> Canary {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("deep")).unwrap();
        fs::write(dir.path().join("file"), "content").unwrap();
        fs::set_permissions(dir.path().join("file"), fs::Permissions::from_mode(0o640)).unwrap();
        let before = describe(dir.path());
        Canary { dir, before }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn assert_untouched(&self) {
        assert_eq!(describe(self.path()), self.before);
    }
}

/// Every entry with what could have changed about it.
fn describe(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut ahead: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(path) = ahead.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let content = if stat.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
        found.push(format!(
            "{} {:o} {}:{} {} {}.{} {content}",
            path.display(),
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.ino(),
            stat.mtime(),
            stat.mtime_nsec()
        ));
        if stat.is_dir() {
            ahead.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found.sort();
    found
}

fn without_mounts_below(mut bundle: Bundle, path: &str) -> Bundle {
    let mounts = bundle.spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with(path));
    bundle
}

fn symlinked_mount_targets_stay_inside() {
    let canary = Canary::new();
    let data = tempfile::tempdir().unwrap();
    fs::write(data.path().join("x"), "data").unwrap();
    for target in [
        canary.path().to_owned(),
        Path::new("../../../../../..").join(canary.path().strip_prefix("/").unwrap()),
    ] {
        let bundle = Bundle::shell("cat /evil/made/x; echo written > /evil/made/y; cat /evil/file/bound")
            .add_mount(bind(data.path(), "/evil/made", &[]))
            .add_mount(mount("/evil/tmpfs", "tmpfs", "tmpfs", &[]))
            .add_mount(bind(&data.path().join("x"), "/evil/file/bound", &[]));
        symlink(&target, bundle.inside("evil")).unwrap();
        assert_eq!(bundle.output(), "datadata");
        assert!(
            bundle.inside(canary.path().strip_prefix("/").unwrap().to_str().unwrap()).join("made").is_dir()
        );
        canary.assert_untouched();
    }
}

fn dot_dot_mount_targets_stay_inside() {
    let canary = Canary::new();
    let destination = format!("/../../../..{}/deep/made", canary.path().display());
    let bundle = Bundle::new(&["true"]).add_mount(mount(&destination, "tmpfs", "tmpfs", &[]));
    bundle.output();
    canary.assert_untouched();
}

fn symlinked_proc_and_sys_are_refused() {
    let canary = Canary::new();
    for name in ["proc", "sys"] {
        let bundle = Bundle::new(&["true"]);
        fs::remove_dir(bundle.inside(name)).unwrap();
        symlink(canary.path(), bundle.inside(name)).unwrap();
        let (message, _) = bundle.failure();
        assert!(message.starts_with(&format!("mount destination /{name}: ")), "{message}");
        canary.assert_untouched();
    }
}

fn symlinked_dev_stays_inside() {
    let canary = Canary::new();
    for with_mounts in [true, false] {
        let mut bundle = Bundle::shell("ls /dev/null").set(
            "/linux/devices",
            json!([{ "path": "/dev/deep/node", "type": "c", "major": 1, "minor": 3, "uid": 7 }]),
        );
        if !with_mounts {
            bundle = without_mounts_below(bundle, "/dev");
        }
        fs::remove_dir(bundle.inside("dev")).unwrap();
        symlink(canary.path(), bundle.inside("dev")).unwrap();
        assert_eq!(bundle.output(), "/dev/null\n");
        canary.assert_untouched();
    }
}

fn symlinked_masked_paths_stay_inside() {
    let canary = Canary::new();
    let mut bundle = Bundle::new(&["true"]);
    symlink(canary.path(), bundle.inside("link")).unwrap();
    for list in ["maskedPaths", "readonlyPaths"] {
        bundle.spec["linux"][list].as_array_mut().unwrap().extend([
            json!("/link"),
            json!("/link/file"),
            json!("/../link"),
        ]);
    }
    bundle.output();
    canary.assert_untouched();
}

fn symlinked_working_directory_stays_inside() {
    let canary = Canary::new();
    let bundle = Bundle::shell("echo x > made; pwd").set("/process/cwd", json!("/link/deep"));
    symlink(canary.path(), bundle.inside("link")).unwrap();
    assert_eq!(bundle.output().trim_end(), canary.path().join("deep").to_str().unwrap());
    canary.assert_untouched();
}

/// Kills the companion in the end.
struct Swapper(Child);

impl Drop for Swapper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn volume_that_is_swapped_while_mounting_stays_inside() {
    const STARTS: usize = 200;
    let canary = Canary::new();
    let volume = tempfile::tempdir().unwrap();
    fs::create_dir(volume.path().join("dir")).unwrap();
    symlink(canary.path(), volume.path().join("link")).unwrap();
    let companion = Command::new("/proc/self/exe")
        .arg(COMPANION)
        .arg(volume.path())
        .args(["dir", "link"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let _swapper = Swapper(companion);
    let mut bundle = without_mounts_below(Bundle::new(&["true"]), "/sys")
        .add_mount(bind(volume.path(), "/volume", &[]))
        .add_mount(mount("/volume/dir/tmpfs", "tmpfs", "tmpfs", &[]))
        .add_mount(bind(volume.path(), "/volume/dir/bind", &[]))
        .set("/process/cwd", json!("/volume/dir/deep/cwd"));
    for list in ["maskedPaths", "readonlyPaths"] {
        bundle.spec["linux"][list]
            .as_array_mut()
            .unwrap()
            .extend([json!("/volume/dir"), json!("/volume/link/file")]);
    }
    let started = (0..STARTS).filter(|_| bundle.run().report == Report::Executed).count();
    canary.assert_untouched();
    assert!(started > 0, "some of them are a success");
}

/// A program that begins with `#!/proc/self/exe` has the kernel execute the runtime's own file in
/// the container, where others can open it. They find it on a read-only mount.
fn own_executable_is_out_of_reach() {
    let flags = || rustix::fs::statvfs("/proc/self/exe").unwrap().f_flag;
    assert!(flags().contains(rustix::fs::StatVfsMountFlags::RDONLY));
    let stat = || {
        let stat = fs::metadata("/proc/self/exe").unwrap();
        (stat.len(), stat.ino(), stat.mtime_nsec(), stat.ctime_nsec())
    };
    let before = stat();
    let bundle = Bundle::new(&["sleep", "1000"]);
    fs::write(bundle.inside("bin/evil"), format!("#!/proc/self/exe {LINGER}\n")).unwrap();
    fs::set_permissions(bundle.inside("bin/evil"), fs::Permissions::from_mode(0o755)).unwrap();
    let container = bundle.spawn().started();
    let mut process = shell_process("");
    process["args"] = json!(["/bin/evil"]);
    let evil = container.exec_start(&process);
    assert_eq!(evil.report(), Report::Executed);
    let exe = format!("/proc/{}/exe", evil.inner_pid());
    // Truncation is what tells a read-only mount from a file that is merely being executed.
    let outcome = container.exec(&shell_process(&format!(
        "(: > {exe}) || (exec 9< {exe}; : > /proc/self/fd/9) || (mount -o remount,rw,bind {exe}); exit 0"
    )));
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 2, "{}", outcome.stderr);
    assert_eq!(stat(), before);
    // Pid 1 of a namespace ends only after all others in it were reaped.
    drop(evil);
    container.kill();
}

/// A process that is being set up has the runtime's memory, privileges and channel.
fn process_in_the_making_is_out_of_reach() {
    let first = Bundle::new(&["sleep", "1000"]);
    let holder = first.spawn().started();
    let second = Bundle::new(&["sleep", "1000"]).without_namespace("pid");
    let container = second.spawn_in(PidNamespace::Join(holder.process.child.pidfd.as_fd()));
    assert_eq!(container.process.report(), Report::Ready);
    let look = shell_process(
        "readlink /proc/2/exe; readlink /proc/2/root; readlink /proc/2/fd/0; cat /proc/2/environ",
    );
    let before = holder.exec(&look);
    assert_eq!(before.stdout, "", "{}", before.stderr);
    container.process.child.channel.start().unwrap();
    assert_eq!(container.process.report(), Report::Executed);
    let after = holder.exec(&look);
    assert!(after.stdout.starts_with("/bin/busybox\n"), "as soon as it is the container's: {after:?}");
    drop(container);
    holder.kill();
}
