//! The whole of a cgroup's life: on this machine's own hierarchies, and on a directory that stands for version 2.

use std::process::{Child, Command};

use oci_spec::runtime::{
    LinuxBlockIoBuilder, LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder,
    LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, LinuxThrottleDeviceBuilder,
};

use super::*;
use crate::sys::before_exec;

/// A cgroup with a name of its own that is gone when the test ends, however it ends.
struct Scratch(Cgroup);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = format!("/sampan-test-{}-{name}/pod/container", std::process::id());
        Scratch(Cgroup::new(&path).unwrap())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let top = Cgroup::new(self.0.path.split('/').next().unwrap()).unwrap();
        let _ = top.kill();
        let _ = top.remove(Duration::from_secs(5));
    }
}

/// A process that entered `path` before it became `command`.
fn spawn_in(path: &str, exec: bool, command: &[&str]) -> Child {
    let hierarchies = Hierarchies::of_host().unwrap();
    let mut child = Command::new(command[0]);
    child.args(&command[1..]);
    let cgroup = Cgroup::within(hierarchies, path, exec).unwrap();
    before_exec(&mut child, move || cgroup.enter().map_err(std::io::Error::other));
    child.spawn().unwrap()
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < Duration::from_secs(10), "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn limits() -> LinuxResources {
    let memory =
        LinuxMemoryBuilder::default().limit(64 << 20).swap(64 << 20).reservation(32 << 20).build().unwrap();
    let cpu = LinuxCpuBuilder::default().shares(512u64).quota(50_000i64).period(100_000u64).build().unwrap();
    let pids = LinuxPidsBuilder::default().limit(50).build().unwrap();
    LinuxResourcesBuilder::default().memory(memory).cpu(cpu).pids(pids).devices(vec![]).build().unwrap()
}

#[test]
fn paths_that_leave_the_root_are_refused() {
    for path in ["", "/", "..", "/a/../b", "a//b", "/a/.", "a\nb"] {
        assert!(matches!(Cgroup::new(path), Err(Error::Path { .. })), "{path:?}");
    }
}

#[test]
fn limits_are_applied_and_read_back() {
    let scratch = Scratch::new("limits");
    let cgroup = &scratch.0;
    cgroup.create().unwrap();
    cgroup.create().expect("creating again is fine");
    cgroup.apply(&limits()).unwrap();
    let stats = cgroup.stats().unwrap();
    assert_eq!(stats.memory.limit_bytes, Some(64 << 20));
    assert_eq!(stats.pids.limit, Some(50));
    let memory = |limit: i64, swap: i64| {
        let memory = LinuxMemoryBuilder::default().limit(limit).swap(swap).build().unwrap();
        cgroup
            .apply(&LinuxResourcesBuilder::default().memory(memory).devices(vec![]).build().unwrap())
            .unwrap();
        cgroup.stats().unwrap().memory.limit_bytes
    };
    assert_eq!(memory(128 << 20, 192 << 20), Some(128 << 20), "raised above the old sum");
    assert_eq!(memory(32 << 20, 32 << 20), Some(32 << 20), "lowered below both");
    assert_eq!(memory(-1, -1), None);
}

#[test]
fn an_update_that_fails_half_way_changes_nothing() {
    let scratch = Scratch::new("rollback");
    let cgroup = &scratch.0;
    cgroup.create().unwrap();
    cgroup.apply(&limits()).unwrap();
    let before = settings(cgroup);
    let memory = LinuxMemoryBuilder::default().limit(128 << 20).swap(256 << 20).build().unwrap();
    let cpu = LinuxCpuBuilder::default().shares(2048u64).quota(80_000i64).build().unwrap();
    let update = || {
        let update = LinuxResourcesBuilder::default().devices(vec![]).memory(memory).cpu(cpu.clone());
        update.pids(LinuxPidsBuilder::default().limit(5).build().unwrap())
    };
    // No device has this number: the last thing that is set is refused by the kernel.
    let device = LinuxThrottleDeviceBuilder::default().major(4000).minor(1).rate(1u64).build().unwrap();
    let io = LinuxBlockIoBuilder::default().throttle_read_bps_device(vec![device]).build().unwrap();
    let error = cgroup.update(&update().block_io(io).build().unwrap()).unwrap_err();
    assert!(error.is_invalid_argument() && error.to_string().contains("4000:1"), "{error}");
    assert_eq!(settings(cgroup), before);

    cgroup.update(&update().build().unwrap()).unwrap();
    assert_eq!(cgroup.stats().unwrap().memory.limit_bytes, Some(128 << 20));
    assert_ne!(settings(cgroup), before);
}

/// What the files of the limits above say.
fn settings(cgroup: &Cgroup) -> Vec<String> {
    let names = [
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.max",
        "memory.swap.max",
        "cpu.shares",
        "cpu.weight",
        "cpu.cfs_quota_us",
        "cpu.max",
        "pids.max",
        "io.max",
    ];
    let paths: std::collections::BTreeSet<_> = cgroup.paths().into_values().collect();
    let files = paths.iter().flat_map(|path| names.map(|name| path.join(name)));
    files.filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

#[test]
fn devices_are_denied_unless_named_and_updates_replace_the_list() {
    let scratch = Scratch::new("devices");
    let cgroup = &scratch.0;
    cgroup.create().unwrap();
    let mut unnamed = LinuxResources::default();
    unnamed.set_devices(None);
    cgroup.apply(&unnamed).unwrap();
    let can = |script: &str| spawn_in(cgroup.path(), false, &["sh", "-c", script]).wait().unwrap().success();
    assert!(can("head -c1 /dev/zero >/dev/null"));
    assert!(!can("true 2>/dev/null >/dev/kmsg"));
    let rule = LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::C).major(1).minor(11);
    let rules = LinuxResourcesBuilder::default().devices(vec![rule.access("w").build().unwrap()]);
    cgroup.update(&rules.build().unwrap()).unwrap();
    assert!(can("true >/dev/kmsg"));
    cgroup.update(&unnamed).unwrap();
    assert!(can("true >/dev/kmsg"), "an update without rules leaves them");
}

#[test]
fn frozen_tasks_stand_still_until_thawed_and_can_be_killed() {
    let scratch = Scratch::new("freeze");
    let cgroup = &scratch.0;
    cgroup.create().unwrap();
    let script = "while :; do :; done";
    let mut child = spawn_in(cgroup.path(), false, &["sh", "-c", script]);
    let usage = || cgroup.stats().unwrap().cpu.usage_ns;
    eventually("the loop runs", || usage() > 1_000_000);
    assert!(!cgroup.is_frozen().unwrap());
    cgroup.freeze_within(true, Duration::from_secs(10)).unwrap();
    assert!(cgroup.is_frozen().unwrap());
    let (first, second) = (usage(), {
        std::thread::sleep(Duration::from_millis(30));
        usage()
    });
    assert_eq!(first, second, "no task runs");
    cgroup.freeze_within(false, Duration::from_secs(10)).unwrap();
    eventually("the loop runs again", || usage() > second + 1_000_000);
    cgroup.freeze_within(true, Duration::from_secs(10)).unwrap();
    cgroup.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn details_agree_with_the_statistics() {
    let scratch = Scratch::new("details");
    let cgroup = &scratch.0;
    cgroup.create().unwrap();
    cgroup.apply(&limits()).unwrap();
    spawn_in(cgroup.path(), false, &["sh", "-c", "i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done"])
        .wait()
        .unwrap();
    let details = cgroup.details().unwrap();
    assert_eq!(details.memory_usage.limit, Some(64 << 20));
    assert!(details.memory.contains_key("pgfault") && details.cpu.contains_key("nr_periods"));
    assert_eq!(details.pressure, cgroup.pressure().unwrap().map(|_| details.pressure.unwrap()));
}

#[test]
fn a_limit_that_no_kernel_takes_names_file_and_value() {
    let scratch = Scratch::new("refused");
    scratch.0.create().unwrap();
    let cpu = LinuxCpuBuilder::default().cpus("4095").build().unwrap();
    let resources = LinuxResourcesBuilder::default().cpu(cpu).devices(vec![]).build().unwrap();
    let error = scratch.0.apply(&resources).unwrap_err();
    assert!(error.to_string().contains("\"4095\"") && error.to_string().contains("cpuset.cpus"), "{error}");
}

#[test]
fn processes_are_listed_with_those_of_sub_cgroups_and_killed() {
    let scratch = Scratch::new("kill");
    let cgroup = &scratch.0;
    cgroup.create().unwrap();
    let exec = Cgroup::new_exec(&format!("{}/exec-1", cgroup.path())).unwrap();
    exec.create().unwrap();
    let mut main = spawn_in(cgroup.path(), false, &["sleep", "1000"]);
    let mut probe = spawn_in(exec.path(), true, &["setsid", "sh", "-c", "sleep 1000 & sleep 1000"]);
    eventually("the exec's processes are listed", || exec.pids().unwrap().len() >= 2);
    assert!(cgroup.pids().unwrap().len() >= 3);
    assert!(cgroup.stats().unwrap().pids.current >= 3);

    exec.kill().unwrap();
    probe.wait().unwrap();
    exec.remove(Duration::from_secs(5)).unwrap();
    assert_eq!(cgroup.pids().unwrap(), [main.id() as i32], "the container itself is untouched");

    assert!(matches!(cgroup.remove(Duration::from_millis(20)), Err(Error::Busy { .. })));
    cgroup.kill().unwrap();
    main.wait().unwrap();
    cgroup.remove(Duration::from_secs(5)).unwrap();
    assert!(cgroup.paths().values().all(|path| !path.exists()));
    assert!(cgroup.pids().unwrap().is_empty());
    cgroup.remove(Duration::ZERO).expect("a missing cgroup is removed already");
    assert!(Cgroup::new(cgroup.path()).unwrap().stats().unwrap_err().is_not_found());
}

#[test]
fn what_an_exec_leaves_behind_moves_to_the_container() {
    let scratch = Scratch::new("dissolve");
    scratch.0.create().unwrap();
    let exec = Cgroup::new_exec(&format!("{}/exec-1", scratch.0.path())).unwrap();
    exec.create().unwrap();
    let mut left = spawn_in(exec.path(), true, &["sleep", "1000"]);
    eventually("the process is there", || !exec.pids().unwrap().is_empty());
    exec.dissolve().unwrap();
    exec.remove(Duration::from_secs(5)).unwrap();
    assert_eq!(scratch.0.pids().unwrap(), [left.id() as i32]);
    scratch.0.kill().unwrap();
    left.wait().unwrap();
}

#[test]
fn a_fork_bomb_is_killed_whole() {
    let scratch = Scratch::new("bomb");
    let cgroup = &scratch.0;
    cgroup.create().unwrap();
    let pids = LinuxPidsBuilder::default().limit(60).build().unwrap();
    cgroup.apply(&LinuxResourcesBuilder::default().pids(pids).devices(vec![]).build().unwrap()).unwrap();
    let script = "f() { f 2>/dev/null & f 2>/dev/null & }; f 2>/dev/null; sleep 1000";
    let mut bomb = Command::new("sh");
    bomb.args(["-c", script]).stderr(std::process::Stdio::null());
    let inside = Cgroup::new(cgroup.path()).unwrap();
    before_exec(&mut bomb, move || inside.enter().map_err(std::io::Error::other));
    let mut bomb = bomb.spawn().unwrap();
    eventually("the bomb fills its cgroup", || cgroup.stats().unwrap().pids.current >= 20);
    cgroup.kill().unwrap();
    bomb.wait().unwrap();
    cgroup.remove(Duration::from_secs(5)).unwrap();
}

#[test]
fn a_fork_bomb_of_an_exec_is_killed_whole() {
    let scratch = Scratch::new("exec-bomb");
    scratch.0.create().unwrap();
    let pids = LinuxPidsBuilder::default().limit(60).build().unwrap();
    scratch.0.apply(&LinuxResourcesBuilder::default().pids(pids).devices(vec![]).build().unwrap()).unwrap();
    let exec = Cgroup::new_exec(&format!("{}/exec-1", scratch.0.path())).unwrap();
    exec.create().unwrap();
    // Some that stay, since a bomb whose forks all fail is over.
    let some = "i=0; while [ $i -lt 30 ]; do sleep 1000 & i=$((i + 1)); done";
    let script = &format!("{some}; f() {{ f 2>/dev/null & f 2>/dev/null & }}; f 2>/dev/null; sleep 1000");
    let mut bomb = spawn_in(exec.path(), true, &["sh", "-c", script]);
    eventually("the bomb fills its cgroup", || exec.pids().unwrap().len() >= 20);
    exec.kill().unwrap();
    bomb.wait().unwrap();
    exec.remove(Duration::from_secs(5)).unwrap();
}

#[test]
fn usage_grows_with_work_and_kept_files_notice_removal() {
    let scratch = Scratch::new("usage");
    let cgroup = &scratch.0;
    cgroup.create().unwrap();
    let before = cgroup.stats().unwrap();
    let mut child =
        spawn_in(cgroup.path(), false, &["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"]);
    child.wait().unwrap();
    let after = cgroup.stats().unwrap();
    assert!(after.cpu.usage_ns > before.cpu.usage_ns && after.memory.page_faults > before.memory.page_faults);
    cgroup.remove(Duration::from_secs(5)).unwrap();
    assert!(cgroup.stats().unwrap_err().is_not_found());
}

#[test]
fn memory_bomb_is_counted() {
    let scratch = Scratch::new("oom");
    let cgroup = &scratch.0;
    cgroup.create().unwrap();
    let memory = LinuxMemoryBuilder::default().limit(8 << 20).build().unwrap();
    cgroup.apply(&LinuxResourcesBuilder::default().memory(memory).devices(vec![]).build().unwrap()).unwrap();
    assert_eq!(cgroup.oom_kills().unwrap(), 0);
    let mut events = cgroup.oom_events().unwrap();
    assert_eq!(events.take().unwrap(), 0);
    let status =
        spawn_in(cgroup.path(), false, &["sh", "-c", "a=x; while :; do a=$a$a; done"]).wait().unwrap();
    assert!(!status.success());
    assert!(cgroup.oom_kills().unwrap() >= 1);
    let mut poll = [rustix::event::PollFd::new(&events, events.awaited())];
    let second = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut poll, Some(&second)).unwrap(), 1, "the descriptor wakes");
    assert!(events.take().unwrap() >= 1);
    assert_eq!(events.take().unwrap(), 0, "each kill is told once");
    assert!(cgroup.stats().unwrap().memory.oom_kills >= 1);
}

#[test]
fn version_2_creates_outermost_first_and_hands_controllers_down() {
    let root = tempfile::tempdir().unwrap();
    let level = |path: &str, enabled: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("cgroup.controllers"), "cpu memory pids").unwrap();
        std::fs::write(path.join("cgroup.subtree_control"), enabled).unwrap();
    };
    level("", "cpu memory pids");
    level("sampan", "");
    let hierarchies = Arc::new(Hierarchies { v1: Vec::new(), unified: Some(root.path().to_owned()) });
    let cgroup = Cgroup::within(hierarchies.clone(), "/sampan/pod", false).unwrap();
    cgroup.create().unwrap();
    assert!(root.path().join("sampan/pod").is_dir());
    let enabled = std::fs::read_to_string(root.path().join("sampan/cgroup.subtree_control")).unwrap();
    assert_eq!(enabled, "+cpu +memory +pids");
    assert_eq!(cgroup.paths(), BTreeMap::from([("unified".to_owned(), root.path().join("sampan/pod"))]));
    // A plain directory has neither limits nor processes.
    assert!(cgroup.pids().unwrap().is_empty());
    assert!(cgroup.directory().unwrap().is_some());
    Cgroup::within(hierarchies, "sampan", false).unwrap().processes_path();
}
