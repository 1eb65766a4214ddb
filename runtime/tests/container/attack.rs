//! Root file systems and volumes made to lead the runtime astray. Beside each lies a canary, and
//! whatever happens to the container, the canary stays as it is.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

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
    proc_that_is_a_volume_gets_no_writes,
    sockets_of_the_kernels_own_are_refused,
    masked_directories_and_files_tell_nothing,
    own_executable_is_out_of_reach,
    process_in_the_making_is_out_of_reach,
];

/// The first argument of this program when it is to be the runtime's file, executed in a container.
pub(crate) const LINGER: &str = "--linger";

/// The first argument of this program when it is to try what a container must not get.
pub(crate) const PROBE: &str = "--probe";

/// Sleeps for as long as a test takes at most.
pub(crate) fn linger() -> ! {
    std::thread::sleep(std::time::Duration::from_secs(60));
    std::process::exit(0)
}

/// A directory of the host that an attacker aims at.
pub(crate) struct Canary {
    dir: tempfile::TempDir,
    before: Vec<String>,
}

impl Canary {
    pub(crate) fn new() -> Canary {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("deep")).unwrap();
        fs::write(dir.path().join("file"), "content").unwrap();
        fs::set_permissions(dir.path().join("file"), fs::Permissions::from_mode(0o640)).unwrap();
        let before = describe(dir.path());
        Canary { dir, before }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn assert_untouched(&self) {
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

pub(crate) fn without_mounts_below(mut bundle: Bundle, path: &str) -> Bundle {
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
        assert!(
            message.starts_with(&format!("mount at /{name}: ")) && message.contains("symlink"),
            "{message}"
        );
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

/// CVE-2025-52881: whoever has /proc be a volume gets none of the writes that are meant for the kernel.
fn proc_that_is_a_volume_gets_no_writes() {
    let canary = Canary::new();
    // One is a link out of the volume, the other a file in it.
    let sysctls = [("kernel.shm_rmid_forced", "1"), ("kernel.shmmni", "100")];
    for (on_tmpfs, (sysctl, value)) in [false, true].into_iter().flat_map(|on| sysctls.map(|pair| (on, pair)))
    {
        let volume = tempfile::tempdir().unwrap();
        for directory in ["self/attr/apparmor", "thread-self/attr", "sys/net/ipv4", "sys/kernel"] {
            fs::create_dir_all(volume.path().join(directory)).unwrap();
        }
        for (link, target) in [
            ("sys/kernel/shm_rmid_forced", "file"),
            ("self/oom_score_adj", "file"),
            ("self/attr/exec", "file"),
            ("sys/net/ipv4/ip_forward", "deep"),
        ] {
            symlink(canary.path().join(target), volume.path().join(link)).unwrap();
        }
        fs::write(volume.path().join("sys/kernel/shmmni"), "").unwrap();
        let before = describe(volume.path());
        let mut bundle = without_mounts_below(Bundle::shell("cat /proc/sys/kernel/hostname"), "/proc");
        if on_tmpfs {
            // Copied up, the links are in a file system that nobody else sees.
            let at = bundle.inside("proc");
            fs::remove_dir(&at).unwrap();
            assert!(Command::new("cp").arg("-a").arg(volume.path()).arg(&at).status().unwrap().success());
            bundle = bundle.add_mount(mount("/proc", "tmpfs", "tmpfs", &["tmpcopyup"]));
        } else {
            bundle = bundle.add_mount(bind(volume.path(), "/proc", &[]));
        }
        let bundle =
            bundle.set("/linux/sysctl", json!({ sysctl: value })).set("/process/oomScoreAdj", json!(500));
        let outcome = bundle.run();
        assert!(!outcome.stdout.contains("inner"), "{outcome:?}");
        assert_eq!(describe(volume.path()), before);
        canary.assert_untouched();
    }
}

/// CVE-2026-31431: doors to the page cache and to the machine beneath, which no container needs.
fn sockets_of_the_kernels_own_are_refused() {
    let profile = sampan_runtime::seccomp::default_profile(&std::collections::HashSet::new());
    let bundle =
        Bundle::new(&["/bin/probe", PROBE]).set("/linux/seccomp", serde_json::to_value(&profile).unwrap());
    fs::copy("/proc/self/exe", bundle.inside("bin/probe")).unwrap();
    let refused = rustix::io::Errno::PERM;
    assert_eq!(bundle.output(), format!("38: {refused:?}, 40: {refused:?}, 1: made\n"));
}

/// Tries families of sockets.
pub(crate) fn probe() -> ! {
    let outcome = |family: u16| {
        let family = rustix::net::AddressFamily::from_raw(family);
        // AF_ALG and AF_VSOCK both have sequenced packets.
        match rustix::net::socket(family, rustix::net::SocketType::SEQPACKET, None) {
            Ok(_) => "made".to_owned(),
            Err(errno) => format!("{errno:?}"),
        }
    };
    println!("38: {}, 40: {}, 1: {}", outcome(38), outcome(40), outcome(1));
    std::process::exit(0)
}

/// Side channels that are directories are empty where they are masked, those that are files have nothing to say.
fn masked_directories_and_files_tell_nothing() {
    // As the agent masks thermal_throttle, which not every machine has.
    let directory = ["/sys/devices/system/cpu/cpu0/topology", "/sys/devices/system/cpu/cpu0/cache"];
    let directory = directory.into_iter().find(|path| Path::new(path).is_dir()).expect("a directory of cpu0");
    let mut bundle =
        Bundle::shell(&format!("ls -A {directory}; cat /proc/interrupts; echo x > {directory}/x"));
    bundle.spec["linux"]["maskedPaths"].as_array_mut().unwrap().push(json!(directory));
    let outcome = bundle.run();
    assert_eq!(outcome.stdout, "", "{outcome:?}");
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
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
