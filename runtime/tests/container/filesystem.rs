//! Mounts, devices, masked and read-only paths, the root file system.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};
use sampan_runtime::mount::MinimalNamespace;
use serde_json::json;

use crate::fixture::{Bundle, bind, mount, wait_for_threads};

crate::cases![
    default_mounts_have_their_options,
    bind_mounts_show_their_source,
    read_only_bind_mounts_refuse_writes,
    recursive_read_only_reaches_submounts,
    file_is_bound_on_a_file,
    missing_source_is_an_error_that_names_it,
    unknown_option_is_an_error_that_names_it,
    root_is_no_destination,
    later_mounts_cover_earlier_ones,
    masked_paths_are_empty,
    read_only_paths_refuse_writes,
    read_only_root_refuses_writes,
    devices_are_those_of_every_container,
    listed_devices_are_made,
    bound_dev_is_left_alone,
    nodes_of_the_image_are_not_trusted,
    host_mounts_are_gone,
    mounts_of_the_host_do_not_change,
    mounts_begin_as_those_of_the_given_namespace,
    the_minimal_namespace_has_what_containers_are_made_with_and_no_more,
    missing_root_is_an_error_that_names_it,
    parents_umask_does_not_matter,
];

fn default_mounts_have_their_options() {
    let output = Bundle::new(&["cat", "/proc/self/mounts"]).output();
    let options = |point: &str| {
        let line = output.lines().find(|line| line.split(' ').nth(1) == Some(point));
        line.unwrap_or_else(|| panic!("{point} in {output}")).to_owned()
    };
    assert!(options("/proc").contains("nosuid,nodev,noexec"));
    assert!(options("/sys").contains("ro,nosuid,nodev,noexec"));
    assert!(options("/dev").contains("nosuid") && options("/dev").contains("mode=755"));
    assert!(options("/dev/pts").contains("ptmxmode=666"));
    assert!(options("/dev/shm").contains("size=65536k"));
    assert!(options("/dev/mqueue").starts_with("mqueue"));
    assert!(options("/sys/fs/cgroup").contains("ro,nosuid,nodev,noexec"));
}

fn bind_mounts_show_their_source() {
    let data = tempfile::tempdir().unwrap();
    fs::write(data.path().join("file"), "from the host").unwrap();
    let bundle = Bundle::shell("cat /deep/er/data/file; echo back > /deep/er/data/answer").add_mount(bind(
        data.path(),
        "/deep/er/data",
        &["rw"],
    ));
    assert_eq!(bundle.output(), "from the host");
    assert_eq!(fs::read_to_string(data.path().join("answer")).unwrap(), "back\n");
}

fn read_only_bind_mounts_refuse_writes() {
    let data = tempfile::tempdir().unwrap();
    let bundle = Bundle::shell("touch /data/x; echo $?; cat /proc/self/mounts").add_mount(bind(
        data.path(),
        "/data",
        &["ro", "nosuid", "noexec"],
    ));
    let outcome = bundle.run();
    assert!(outcome.stderr.contains("Read-only") || outcome.stdout.starts_with("1"), "{outcome:?}");
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
    let line = outcome.stdout.lines().find(|line| line.contains(" /data ")).unwrap();
    assert!(line.contains(" ro,nosuid,noexec"), "{line}");
}

/// A tmpfs of the host, gone in the end.
struct HostMount(std::path::PathBuf);

impl HostMount {
    fn tmpfs(path: std::path::PathBuf) -> HostMount {
        fs::create_dir_all(&path).unwrap();
        rustix::mount::mount("tmpfs", &path, "tmpfs", rustix::mount::MountFlags::empty(), c"").unwrap();
        HostMount(path)
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

fn recursive_read_only_reaches_submounts() {
    let data = tempfile::tempdir().unwrap();
    let _sub = HostMount::tmpfs(data.path().join("sub"));
    let script = "echo x > /data/top; echo x > /data/sub/file; exit 0";
    let outcome = Bundle::shell(script).add_mount(bind(data.path(), "/data", &["ro"])).run();
    assert_eq!(outcome.stderr.matches("Read-only").count(), 1, "{outcome:?}");
    fs::remove_file(data.path().join("sub/file")).unwrap();
    let outcome = Bundle::shell(script).add_mount(bind(data.path(), "/data", &["rro"])).run();
    assert_eq!(outcome.stderr.matches("Read-only").count(), 2, "{outcome:?}");
}

fn file_is_bound_on_a_file() {
    let data = tempfile::tempdir().unwrap();
    fs::write(data.path().join("hosts"), "127.0.0.1 bound\n").unwrap();
    let bundle =
        Bundle::new(&["cat", "/etc/hosts"]).add_mount(bind(&data.path().join("hosts"), "/etc/hosts", &[]));
    assert_eq!(bundle.output(), "127.0.0.1 bound\n");
    assert_eq!(fs::read_to_string(bundle.inside("etc/hosts")).unwrap(), "");
}

fn missing_source_is_an_error_that_names_it() {
    let (message, code) =
        Bundle::new(&["true"]).add_mount(bind("/no/such/source".as_ref(), "/data", &[])).failure();
    assert!(message.starts_with("mount source /no/such/source for /data: "), "{message}");
    assert!(message.contains("No such file or directory"), "{message}");
    assert_eq!(code, 128);
}

fn unknown_option_is_an_error_that_names_it() {
    let (message, _) =
        Bundle::new(&["true"]).add_mount(mount("/x", "tmpfs", "tmpfs", &["nonsense=1"])).failure();
    assert!(message.starts_with("mount tmpfs at /x: ") && message.contains("nonsense"), "{message}");
    let (message, _) = Bundle::new(&["true"]).add_mount(mount("/x", "nosuchfs", "none", &[])).failure();
    assert!(message.starts_with("mount nosuchfs at /x: fsopen"), "{message}");
}

fn root_is_no_destination() {
    for destination in ["/", "/..", "/bin/.."] {
        let (message, _) =
            Bundle::new(&["true"]).add_mount(mount(destination, "tmpfs", "tmpfs", &[])).failure();
        assert!(message.contains("the root itself"), "{message}");
    }
}

fn later_mounts_cover_earlier_ones() {
    let data = tempfile::tempdir().unwrap();
    fs::write(data.path().join("second"), "").unwrap();
    let bundle = Bundle::new(&["ls", "/data"])
        .add_mount(mount("/data", "tmpfs", "tmpfs", &[]))
        .add_mount(bind(data.path(), "/data", &[]));
    assert_eq!(bundle.output(), "second\n");
}

fn masked_paths_are_empty() {
    let mut bundle = Bundle::shell(
        "cat /proc/interrupts | wc -c; cat /masked/file | wc -c; ls -a /masked/dir | wc -l; touch /masked/dir/x; exit 0",
    );
    symlink("busybox", bundle.inside("bin/wc")).unwrap();
    symlink("busybox", bundle.inside("bin/touch")).unwrap();
    fs::create_dir_all(bundle.inside("masked/dir")).unwrap();
    fs::write(bundle.inside("masked/dir/secret"), "secret").unwrap();
    fs::write(bundle.inside("masked/file"), "secret").unwrap();
    let masked = bundle.spec["linux"]["maskedPaths"].as_array_mut().unwrap();
    masked.extend([
        json!("/masked/file"),
        json!("/masked/dir"),
        json!("/not/there"),
        json!("/masked/file/below"),
    ]);
    let outcome = bundle.run();
    assert_eq!(outcome.stdout, "0\n0\n2\n");
    assert!(outcome.stderr.contains("Read-only"), "{}", outcome.stderr);
}

fn read_only_paths_refuse_writes() {
    let mut bundle = Bundle::shell("echo 1 > /proc/sys/kernel/shmmni; echo 1 > /fixed/file; exit 0");
    fs::create_dir(bundle.inside("fixed")).unwrap();
    bundle.spec["linux"]["readonlyPaths"].as_array_mut().unwrap().push(json!("/fixed"));
    let outcome = bundle.run();
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 2, "{}", outcome.stderr);
}

fn read_only_root_refuses_writes() {
    let bundle = Bundle::shell("echo 1 > /file; echo 1 > /dev/shm/file && echo written; exit 0")
        .set("/root/readonly", json!(true));
    let outcome = bundle.run();
    assert!(outcome.stderr.contains("Read-only file system"), "{}", outcome.stderr);
    assert_eq!(outcome.stdout, "written\n");
    assert!(!bundle.inside("file").exists());
}

fn devices_are_those_of_every_container() {
    let bundle = Bundle::shell(
        "cd /dev; stat -c '%n %F %t:%T %a' *; echo text > null; for l in fd stdin stdout stderr ptmx; do readlink $l; done",
    );
    let output = bundle.output();
    for line in [
        "null character special file 1:3 666",
        "zero character special file 1:5 666",
        "full character special file 1:7 666",
        "random character special file 1:8 666",
        "urandom character special file 1:9 666",
        "tty character special file 5:0 666",
    ] {
        assert!(output.contains(line), "{line} in {output}");
    }
    assert!(
        output.ends_with("/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n"),
        "{output}"
    );
    let mut names: Vec<&str> =
        output.lines().filter_map(|line| line.split_once(' ').map(|(name, _)| name)).collect();
    names.sort_unstable();
    let expected = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(names.join(" "), expected, "and nothing else, no console without a terminal");
}

fn listed_devices_are_made() {
    let bundle = Bundle::shell("stat -c '%n %F %t:%T %a %u:%g' /dev/fuse /dev/deep/er/loop /dev/pipe").set(
        "/linux/devices",
        json!([
            { "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o600, "uid": 5, "gid": 6 },
            { "path": "/dev/deep/er/loop", "type": "b", "major": 7, "minor": 1 },
            { "path": "/dev/pipe", "type": "p" },
        ]),
    );
    assert_eq!(
        bundle.output(),
        "/dev/fuse character special file a:e5 600 5:6\n/dev/deep/er/loop block special file 7:1 666 0:0\n\
         /dev/pipe fifo 0:0 666 0:0\n"
    );
    let refused = Bundle::new(&["true"])
        .set("/linux/devices", json!([{ "path": "/dev/x", "type": "c", "major": -1, "minor": 0 }]));
    assert!(refused.failure().0.starts_with("device /dev/x: "));
}

fn bound_dev_is_left_alone() {
    let data = tempfile::tempdir().unwrap();
    let mut bundle = Bundle::new(&["ls", "/dev"]);
    bundle.spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    let bundle = bundle.add_mount(bind(data.path(), "/dev", &[]));
    assert_eq!(bundle.output(), "");
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
}

fn nodes_of_the_image_are_not_trusted() {
    let mut bundle = Bundle::new(&["true"]);
    bundle.spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    fs::write(bundle.inside("dev/null"), "").unwrap();
    let (message, _) = bundle.failure();
    assert_eq!(message, "device /dev/null: something else has its place");
}

fn host_mounts_are_gone() {
    let output = Bundle::new(&["cat", "/proc/self/mountinfo"]).output();
    let foreign = output.lines().filter(|line| {
        let point = line.split(' ').nth(4).unwrap();
        point != "/" && !["/proc", "/dev", "/sys"].iter().any(|own| point.starts_with(own))
    });
    assert_eq!(foreign.count(), 0, "{output}");
    assert_eq!(output.lines().filter(|line| line.split(' ').nth(4) == Some("/")).count(), 1, "{output}");
}

fn mounts_of_the_host_do_not_change() {
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let null = || {
        fs::metadata("/dev/null").map(|found| (found.uid(), found.gid(), found.mode(), found.rdev())).unwrap()
    };
    let null_before = null();
    for propagation in ["", "rslave", "rprivate", "rshared", "shared"] {
        let bundle = Bundle::new(&["true"]).set("/linux/rootfsPropagation", json!(propagation));
        bundle.output();
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before, "{propagation:?}");
    }
    assert_eq!(null(), null_before);
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
}

fn mounts_begin_as_those_of_the_given_namespace() {
    // One for each container: on version 1 systemd doesn't see that the scope of the first is empty.
    let bundle = || Bundle::new(&["true"]).set("/linux/maskedPaths", json!(["/proc/version"]));
    assert_eq!(bundle().output(), "");
    // Without the host's null device there is nothing to mask a file with.
    let without_null = in_own_mounts(|| {
        mount_here("tmpfs", "/dev");
        fs::File::open("/proc/thread-self/ns/mnt").unwrap()
    });
    let bundle = bundle();
    let (message, _) = bundle.failure_of(bundle.spawn_from(without_null.as_fd()));
    assert!(message.starts_with("mask /dev/null: "), "{message}");
}

fn the_minimal_namespace_has_what_containers_are_made_with_and_no_more() {
    // A mount that nobody needs, and that is not there.
    let data = tempfile::tempdir().unwrap();
    let table = in_own_mounts(|| {
        mount_here("tmpfs", data.path());
        let minimal = MinimalNamespace::make().unwrap();
        rustix::thread::move_into_thread_name_spaces(minimal.as_fd(), ThreadNameSpaceType::MOUNT).unwrap();
        fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
    });
    let points: Vec<&str> = table.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
    assert_eq!(points.iter().filter(|point| **point == "/").count(), 1, "{table}");
    for needed in ["/proc", "/sys", "/dev", "/sys/fs/cgroup"] {
        assert!(points.contains(&needed), "{needed} in {table}");
    }
    let foreign = |point: &&&str| {
        !matches!(**point, "/" | "/proc" | "/sys" | "/dev") && !point.starts_with("/sys/fs/cgroup")
    };
    assert_eq!(points.iter().find(foreign), None, "{table}");
    assert!(!table.contains("shared:") && !table.contains("master:"), "{table}");
}

/// In a thread with a mount namespace of its own, from which nothing gets out.
#[allow(deprecated, reason = "it is unsafe for the descriptors of threads only, and nothing of that is here")]
fn in_own_mounts<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::unshare(UnshareFlags::NEWNS).unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            body()
        });
        thread.join().unwrap()
    });
    wait_for_threads();
    result
}

fn mount_here(kind: &str, point: impl AsRef<Path>) {
    rustix::mount::mount(kind, point.as_ref(), kind, MountFlags::empty(), None).unwrap();
}

fn missing_root_is_an_error_that_names_it() {
    let bundle = Bundle::new(&["true"]).set("/root/path", json!("/no/such/root"));
    let (message, _) = bundle.failure();
    assert!(message.starts_with("root file system /no/such/root: "), "{message}");
}

fn parents_umask_does_not_matter() {
    let data = tempfile::tempdir().unwrap();
    let bundle = Bundle::shell("stat -c '%a' /dev/pts /dev/null /made/here /made /app")
        .set("/process/cwd", json!("/app"));
    let bundle = bundle.add_mount(bind(data.path(), "/made/here/data", &[]));
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let outcome = bundle.run();
    rustix::process::umask(before);
    assert_eq!(outcome.stdout, "755\n666\n755\n755\n755\n", "{outcome:?}");
}
