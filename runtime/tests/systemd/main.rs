//! Scopes made by a real systemd, for machines where it is the first process (`make test-vm`).
//!
//! A scope begins with the process that asks for it: this program, started again with `join`, asks and becomes a sleep.
//! Arguments that aren't options choose cases by a part of their name.

#![allow(clippy::print_stdout, reason = "this is a test runner")]

use std::os::unix::process::CommandExt;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use sampan_runtime::cgroup::{Cgroup, Error, Layout, layout};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

const CASES: &[(&str, fn())] = &[
    ("a_scope_has_its_limits_in_both_places", a_scope_has_its_limits_in_both_places),
    ("an_update_reaches_systemd_and_the_files", an_update_reaches_systemd_and_the_files),
    ("an_update_that_fails_leaves_the_old_limits", an_update_that_fails_leaves_the_old_limits),
    ("a_reload_of_systemd_changes_nothing", a_reload_of_systemd_changes_nothing),
    ("devices_are_filtered", devices_are_filtered),
    ("a_name_that_is_taken_is_an_error", a_name_that_is_taken_is_an_error),
    ("an_exec_below_the_scope_is_killed_alone", an_exec_below_the_scope_is_killed_alone),
    ("a_scope_that_was_killed_for_memory_leaves_nothing", a_scope_that_was_killed_for_memory_leaves_nothing),
    ("a_slice_of_several_levels_is_made", a_slice_of_several_levels_is_made),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, scope, resources, command @ ..] = arguments.as_slice()
        && mode == "join"
    {
        join(scope, resources, command);
    }
    assert!(PathBuf::from("/run/systemd/system").exists(), "systemd is not this machine's first process");
    let mut failed = Vec::new();
    for (name, case) in
        CASES.iter().filter(|(name, _)| arguments.iter().all(|part| name.contains(part.as_str())))
    {
        let outcome = catch_unwind(case);
        println!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
        if outcome.is_err() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("\nfailures: {failed:?}");
    ExitCode::FAILURE
}

/// What a container's first process does: makes the scope, limits it, enters it. Then becomes `command`.
fn join(scope: &str, resources: &str, command: &[String]) -> ! {
    let joined = || -> Result<(), Error> {
        let cgroup = Cgroup::new(scope)?;
        cgroup.create()?;
        cgroup.create()?;
        cgroup.apply(&serde_json::from_str(resources).expect("resources"))?;
        cgroup.enter()
    };
    if let Err(error) = joined() {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text += &format!(": {cause}");
            source = cause.source();
        }
        println!("{text}");
        std::process::exit(99);
    }
    panic!("exec: {}", Command::new(&command[0]).args(&command[1..]).exec());
}

/// A scope with a process in it, removed in the end however the case ends.
struct Scope {
    name: String,
    cgroup: Cgroup,
    child: Child,
}

impl Scope {
    fn new(name: &str, resources: Value) -> Scope {
        Scope::running(name, resources, &["sleep", "1000"])
    }

    fn running(name: &str, resources: Value, command: &[&str]) -> Scope {
        let name = format!("system.slice:sampan-test:{name}-{}", std::process::id());
        let child = Scope::join(&name, resources).args(command).spawn().unwrap();
        let scope = Scope { cgroup: Cgroup::new(&name).unwrap(), name, child };
        let program = format!("/proc/{}/comm", scope.child.id());
        eventually("the process has its scope and goes on", || {
            std::fs::read_to_string(&program).is_ok_and(|comm| comm.trim_end() == command[0])
        });
        scope
    }

    fn join(name: &str, resources: Value) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("join").arg(name).arg(resources.to_string());
        command
    }

    fn unit(&self) -> String {
        self.cgroup.path().rsplit('/').next().unwrap().to_owned()
    }

    fn shown(&self, property: &str) -> String {
        show(&self.unit(), property)
    }

    /// A control file, by its name in version 2 and in version 1.
    fn file(&self, v2: &str, v1: &str) -> String {
        let paths = self.cgroup.paths();
        let path = match paths.get("unified") {
            Some(path) => path.join(v2),
            None => paths[v1.split('.').next().unwrap()].join(v1),
        };
        std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .trim()
            .to_owned()
    }

    /// Whether a process in the scope can do `script`.
    fn can(&self, script: &str) -> bool {
        let script = format!(
            "for d in {}; do echo 0 >$d/cgroup.procs || exit 77; done; exec sh -c '{script}'",
            self.cgroup.paths().values().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
        );
        let status =
            Command::new("sh").args(["-c", &script]).stderr(std::process::Stdio::null()).status().unwrap();
        assert_ne!(status.code(), Some(77), "enter the scope");
        status.success()
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let killed = self.cgroup.kill();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let removed = self.cgroup.remove(DEADLINE);
        if std::thread::panicking() {
            return;
        }
        killed.unwrap();
        removed.unwrap();
        for path in self.cgroup.paths().values() {
            assert!(!path.exists(), "{} is left", path.display());
        }
        eventually("systemd forgets the scope", || self.shown("LoadState") == "not-found");
    }
}

fn show(unit: &str, property: &str) -> String {
    let output = Command::new("systemctl").args(["show", "--value", "-p", property, unit]).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_v2() -> bool {
    layout().unwrap() == Layout::V2
}

fn resources(value: Value) -> LinuxResources {
    serde_json::from_value(value).unwrap()
}

fn limits() -> Value {
    json!({
        "memory": { "limit": 64 << 20 },
        "cpu": { "shares": 512, "quota": 12_345, "period": 100_000, "cpus": "0" },
        "pids": { "limit": 50 },
    })
}

fn a_scope_has_its_limits_in_both_places() {
    let scope = Scope::new("limits", limits());
    assert_eq!(scope.shown("Slice"), "system.slice");
    assert_eq!(scope.shown("Delegate"), "yes");
    assert_eq!(scope.shown("ActiveState"), "active");
    assert_eq!(scope.shown("ControlGroup"), format!("/{}", scope.cgroup.path()));
    assert_eq!(scope.shown(if is_v2() { "MemoryMax" } else { "MemoryLimit" }), (64 << 20).to_string());
    assert_eq!(scope.shown("TasksMax"), "50");
    assert_eq!(scope.shown("CPUQuotaPerSecUSec"), "130ms", "rounded up to a percent");
    assert_eq!(scope.file("cpu.max", "cpu.cfs_quota_us").split(' ').next(), Some("12345"), "exact");
    assert_eq!(scope.file("memory.max", "memory.limit_in_bytes"), (64 << 20).to_string());
    assert_eq!(scope.file("cpuset.cpus", "cpuset.cpus"), "0");
    if is_v2() {
        assert_eq!(scope.shown("AllowedCPUs"), "0");
        assert_eq!(scope.shown("CPUWeight"), scope.file("cpu.weight", ""));
    } else {
        assert_eq!(scope.shown("CPUShares"), "512");
    }
    let stats = scope.cgroup.stats().unwrap();
    assert_eq!((stats.memory.limit_bytes, stats.pids.limit), (Some(64 << 20), Some(50)));
    assert_eq!(scope.cgroup.pids().unwrap(), [scope.child.id() as i32]);
}

fn an_update_reaches_systemd_and_the_files() {
    let scope = Scope::new("update", limits());
    let update =
        json!({ "memory": { "limit": 32 << 20 }, "cpu": { "quota": 70_001 }, "pids": { "limit": 7 } });
    scope.cgroup.update(&resources(update)).unwrap();
    assert_eq!(scope.shown(if is_v2() { "MemoryMax" } else { "MemoryLimit" }), (32 << 20).to_string());
    assert_eq!(scope.shown("TasksMax"), "7");
    assert_eq!(scope.file("memory.max", "memory.limit_in_bytes"), (32 << 20).to_string());
    assert_eq!(scope.file("cpu.max", "cpu.cfs_quota_us").split(' ').next(), Some("70001"));
    assert_eq!(scope.file("pids.max", "pids.max"), "7");
}

fn an_update_that_fails_leaves_the_old_limits() {
    let scope = Scope::new("rollback", limits());
    let device = json!([{ "major": 4000, "minor": 1, "rate": 1 }]);
    let update = json!({ "pids": { "limit": 7 }, "blockIO": { "throttleReadBpsDevice": device } });
    assert!(scope.cgroup.update(&resources(update)).unwrap_err().is_invalid_argument());
    assert_eq!((scope.shown("TasksMax").as_str(), scope.file("pids.max", "pids.max").as_str()), ("50", "50"));
}

fn a_reload_of_systemd_changes_nothing() {
    let scope = Scope::new("reload", limits());
    let files = || {
        [("memory.max", "memory.limit_in_bytes"), ("pids.max", "pids.max"), ("cpuset.cpus", "cpuset.cpus")]
            .map(|(v2, v1)| scope.file(v2, v1))
    };
    let before = files();
    assert!(Command::new("systemctl").arg("daemon-reload").status().unwrap().success());
    assert_eq!(files(), before);
    assert!(!scope.can("true >/dev/kmsg"), "devices are filtered still");
    assert!(scope.can("true >/dev/null"));
}

fn devices_are_filtered() {
    let rule =
        |access: &str| json!([{ "allow": true, "type": "c", "major": 1, "minor": 11, "access": access }]);
    let scope = Scope::new("devices", json!({ "devices": rule("r") }));
    assert!(scope.can("true </dev/kmsg") && !scope.can("true >/dev/kmsg"));
    assert_eq!(scope.shown("DevicePolicy"), "strict");
    scope.cgroup.update(&resources(json!({ "devices": rule("w") }))).unwrap();
    assert!(!scope.can("true </dev/kmsg") && scope.can("true >/dev/kmsg"));
    let all = json!([{ "allow": true, "access": "rwm" }]);
    scope.cgroup.update(&resources(json!({ "devices": all }))).unwrap();
    assert!(scope.can("true </dev/kmsg") && scope.can("true >/dev/kmsg"));
}

fn a_name_that_is_taken_is_an_error() {
    let scope = Scope::new("taken", json!({}));
    let second = Scope::join(&scope.name, json!({})).args(["sleep", "1000"]).output().unwrap();
    let text = String::from_utf8(second.stdout).unwrap();
    assert_eq!(second.status.code(), Some(99), "{text}");
    assert!(text.contains(&scope.unit()) && text.contains("UnitExists"), "{text}");
    assert_eq!(scope.cgroup.pids().unwrap(), [scope.child.id() as i32]);
}

fn an_exec_below_the_scope_is_killed_alone() {
    let scope = Scope::new("exec", json!({}));
    let exec = Cgroup::new_exec(&format!("{}/exec-1", scope.name)).unwrap();
    assert!(!exec.is_scope() && exec.path().starts_with(scope.cgroup.path()));
    exec.create().unwrap();
    let path = match exec.paths().get("unified") {
        Some(path) => path.clone(),
        None => exec.paths()["freezer"].clone(),
    };
    let script = format!("echo 0 >{}/cgroup.procs; exec sleep 1000", path.display());
    let mut probe = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    eventually("the process is there", || exec.pids().unwrap() == [probe.id() as i32]);
    exec.kill().unwrap();
    probe.wait().unwrap();
    exec.remove(DEADLINE).unwrap();
    assert_eq!(scope.cgroup.pids().unwrap(), [scope.child.id() as i32]);
}

fn a_scope_that_was_killed_for_memory_leaves_nothing() {
    let limit = json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
    let mut scope = Scope::running("oom", limit, &["sh", "-c", "sleep 1; a=x; while :; do a=$a$a; done"]);
    let mut events = scope.cgroup.oom_events().unwrap();
    assert!(!scope.child.wait().unwrap().success());
    // systemd removes the empty scope when it likes; until then the count is there.
    match events.take() {
        Ok(kills) => assert!(kills >= 1),
        Err(error) => assert!(error.is_not_found(), "{error}"),
    }
    scope.child = Command::new("true").spawn().unwrap();
}

fn a_slice_of_several_levels_is_made() {
    let name = format!("sampan-test{}-inner.slice:sampan-test:deep", std::process::id());
    let mut child = Scope::join(&name, limits()).args(["sleep", "1000"]).spawn().unwrap();
    let cgroup = Cgroup::new(&name).unwrap();
    eventually("the scope is there", || cgroup.pids().is_ok_and(|pids| pids == [child.id() as i32]));
    let unit = cgroup.path().rsplit('/').next().unwrap().to_owned();
    assert_eq!(show(&unit, "ControlGroup"), format!("/{}", cgroup.path()));
    eventually("it has its limits", || cgroup.stats().is_ok_and(|stats| stats.pids.limit == Some(50)));
    cgroup.kill().unwrap();
    child.wait().unwrap();
    cgroup.remove(DEADLINE).unwrap();
    let slice = format!("sampan-test{}.slice", std::process::id());
    assert!(Command::new("systemctl").args(["stop", &slice]).status().unwrap().success());
}
