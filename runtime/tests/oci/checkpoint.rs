//! `checkpoint` and `restore`, by CRIU; and what is said where CRIU does not work.
//!
//! In the guest of `tests/vm` CRIU has to work; elsewhere `criu check` says which of the two is to be seen.

use std::fs;
use std::process::{Command, Stdio};

use crate::fixture::{Bundle, eventually};

/// Counts in its memory, into a file of its own; ends with 7 when it is asked to.
const COUNTER: &str = "exec </dev/null >/out 2>&1; trap 'exit 7' TERM; n=0;
    while :; do n=$((n + 1)); echo $n; sleep 0.1; done";

fn works() -> bool {
    let output = Command::new("criu").arg("check").output();
    let works = output.as_ref().is_ok_and(|output| output.status.success());
    let required = std::env::var_os("SAMPAN_TEST_CRIU").is_some_and(|value| value == "required");
    assert!(works || !required, "CRIU has to work here: {output:?}");
    works
}

/// What the counter has written, which is without a gap.
fn counted(bundle: &Bundle) -> usize {
    let text = fs::read_to_string(bundle.inside("out")).unwrap_or_default();
    let numbers: Vec<usize> = text.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len()), "{numbers:?}");
    numbers.len()
}

fn counts_on(bundle: &Bundle) {
    let before = counted(bundle);
    eventually("it counts on", || counted(bundle) > before + 2);
}

#[test]
fn a_container_goes_on_from_its_checkpoint() {
    let bundle = Bundle::shell(COUNTER).started();
    counts_on(&bundle);
    let (images, id) = (bundle.path().join("images").display().to_string(), bundle.id.clone());
    let checkpoint =
        |more: &[&str]| bundle.verb(&[&["checkpoint", "--image-path", &images], more, &[&id]].concat());
    if !works() {
        let told = checkpoint(&[]).failure();
        assert!(told.contains("criu"), "{told}");
        return counts_on(&bundle);
    }
    checkpoint(&["--leave-running"]).success();
    assert_eq!(bundle.status(), "running");
    counts_on(&bundle);

    fs::remove_dir_all(&images).unwrap();
    checkpoint(&[]).success();
    assert!(bundle.verb(&["state", &id]).failure().contains("does not exist"));
    let at = counted(&bundle);
    let path = bundle.path().display().to_string();
    let pid_file = bundle.path().join("pid").display().to_string();
    let restore = ["restore", "--image-path", &images, "--bundle", &path];
    let detached = bundle
        .command(&[&restore[..], &["--detach", "--pid-file", &pid_file, &id]].concat())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(detached.success());
    assert_eq!(bundle.status(), "running");
    counts_on(&bundle);
    assert!(counted(&bundle) > at);
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert!(bundle.cgroup().pids().unwrap().contains(&pid));
    assert_eq!(
        bundle.exec(&["cat", "/proc/self/cgroup"]).success(),
        bundle.exec(&["cat", "/proc/1/cgroup"]).success()
    );
    bundle.verb(&["kill", &id, "KILL"]).success();
    eventually("it stops", || bundle.status() == "stopped");
    bundle.verb(&["delete", &id]).success();

    // It goes back to where it was, and its file with it.
    let text = fs::read_to_string(bundle.inside("out")).unwrap();
    let first: String = text.lines().take(at).map(|line| format!("{line}\n")).collect();
    fs::write(bundle.inside("out"), first).unwrap();
    let mut attended =
        bundle.command(&[&restore[..], &[&id]].concat()).stdout(Stdio::null()).spawn().unwrap();
    eventually("it runs", || bundle.verb(&["state", &id]).code == 0 && bundle.status() == "running");
    counts_on(&bundle);
    bundle.verb(&["kill", &id, "TERM"]).success();
    assert_eq!(attended.wait().unwrap().code(), Some(7));
    assert!(bundle.verb(&["state", &id]).failure().contains("does not exist"));
}

#[test]
fn a_paused_container_stays_paused() {
    let bundle = Bundle::shell(COUNTER).started();
    counts_on(&bundle);
    bundle.verb(&["pause", &bundle.id]).success();
    let images = bundle.path().join("images").display().to_string();
    let done = bundle.verb(&["checkpoint", "--image-path", &images, "--leave-running", &bundle.id]);
    assert_eq!(done.code == 0, works(), "{done:?}");
    assert_eq!(bundle.status(), "paused");
    bundle.verb(&["resume", &bundle.id]).success();
    counts_on(&bundle);
}

#[test]
fn what_cannot_be_checkpointed_is_refused() {
    let bundle = Bundle::new(&["sleep", "100"]);
    let id = bundle.id.as_str();
    let refused = |verb: &[&str], text: &str| {
        let told = bundle.verb(verb).failure();
        assert!(told.contains(text), "{verb:?}: {told}");
    };
    refused(&["checkpoint", id], "container does not exist");
    bundle.create().success();
    refused(&["checkpoint", id], "it is created");
    bundle.verb(&["start", id]).success();
    refused(&["checkpoint", "--lazy-pages", id], "--lazy-pages is not supported");
    refused(&["checkpoint", "--manage-cgroups-mode", "x", id], "invalid manage-cgroups-mode");
    refused(&["restore", "--image-path", "/nonexistent", id], "/nonexistent");
    let shared = Bundle::shell("exec sleep 100");
    let namespaces = serde_json::json!([{ "type": "mount" }]);
    let shared = shared
        .set("/linux/namespaces", namespaces)
        .set("/mounts", serde_json::json!([]))
        .set("/linux/maskedPaths", serde_json::json!([]))
        .set("/linux/readonlyPaths", serde_json::json!([]))
        .started();
    let told = shared.verb(&["checkpoint", &shared.id]).failure();
    assert!(told.contains("no pid namespace"), "{told}");
}
