//! The states of a container and what each verb makes of them.

use std::fs;

use sampan_runtime::cgroup::{Layout, layout};
use serde_json::{Value, json};

use crate::fixture::{Bundle, eventually};

#[test]
fn a_container_goes_from_created_over_running_to_stopped() {
    let bundle = Bundle::shell("echo hello; exec sleep 100");
    bundle.create().success();
    assert_eq!((bundle.status().as_str(), bundle.written().as_str()), ("created", ""));
    bundle.verb(&["start", &bundle.id]).success();
    assert_eq!(bundle.status(), "running");
    eventually("it writes", || bundle.written() == "hello\n");
    bundle.verb(&["kill", &bundle.id, "KILL"]).success();
    eventually("it stops", || bundle.status() == "stopped");
    bundle.verb(&["delete", &bundle.id]).success();
    let missing = bundle.verb(&["state", &bundle.id]).failure();
    assert!(missing.contains("does not exist"), "{missing}");
}

#[test]
fn verbs_refuse_what_the_state_does_not_allow() {
    let bundle = Bundle::new(&["sleep", "100"]).started();
    let refused = |verb: &[&str], text: &str| {
        let told = bundle.verb(verb).failure();
        assert!(told.contains(text), "{verb:?}: {told}");
    };
    let id = bundle.id.as_str();
    refused(&["start", id], "cannot start an already running container");
    refused(&["delete", id], "is not stopped: running");
    refused(&["resume", id], "container not paused");
    refused(&["create", "-b", bundle.path().to_str().unwrap(), id], "already exists");
    refused(&["kill", id, "NOPE"], "unknown signal");
    bundle.verb(&["kill", id, "9"]).success();
    eventually("it stops", || bundle.status() == "stopped");
    refused(&["kill", id, "9"], "container not running");
    refused(&["start", id], "stopped");
    refused(&["exec", id, "true"], "stopped container");
    bundle.verb(&["delete", id]).success();
    for verb in ["start", "state", "kill", "delete", "pause"] {
        refused(&[verb, id], "container does not exist");
    }
    bundle.verb(&["delete", "--force", id]).success();
}

#[test]
fn a_created_container_dies_of_a_signal_and_can_be_deleted() {
    let bundle = Bundle::new(&["sleep", "100"]);
    bundle.create().success();
    bundle.verb(&["kill", &bundle.id, "TERM"]).success();
    eventually("it stops", || bundle.status() == "stopped");
    bundle.verb(&["delete", &bundle.id]).success();
    bundle.create().success();
    bundle.verb(&["delete", &bundle.id]).success();
}

#[test]
fn run_gives_the_programs_exit_code_and_leaves_nothing() {
    let done = Bundle::shell("echo out; echo err >&2; exit 42").run();
    assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (42, "out\n", "err\n"));
    let done =
        Bundle::shell("kill -9 $$; sleep 1").set("/linux/namespaces", json!([{ "type": "mount" }])).run();
    assert_eq!(done.code, 137);
}

#[test]
fn the_configuration_counts_as_it_was_at_creation() {
    let bundle = Bundle::shell("echo first");
    bundle.create().success();
    fs::write(bundle.path().join("config.json"), "{}").unwrap();
    bundle.verb(&["start", &bundle.id]).success();
    eventually("it writes", || bundle.written() == "first\n");
}

#[test]
fn a_program_that_is_not_there_fails_the_creation_in_known_words() {
    for (program, text) in [
        ("nope", "exec: \"nope\": executable file not found in $PATH"),
        ("/nope", "exec: \"/nope\": no such file or directory"),
        ("/etc", "exec: \"/etc\": permission denied"),
    ] {
        let bundle = Bundle::new(&[program]);
        let log = bundle.path().join("log");
        bundle.write();
        let path = bundle.path().to_str().unwrap();
        let global =
            ["--log", log.to_str().unwrap(), "--log-format", "json", "create", "-b", path, &bundle.id];
        let told = bundle.verb(&global).failure();
        assert!(told.contains(text), "{told}");
        let logged = fs::read_to_string(&log).unwrap();
        let entry: Value = serde_json::from_str(logged.lines().last().unwrap()).unwrap();
        assert_eq!(entry["level"], "error");
        assert!(entry["msg"].as_str().unwrap().contains(text) && entry["time"].is_string(), "{entry}");
        assert!(bundle.verb(&["list", "-q"]).success().is_empty(), "nothing is left");
    }
}

/// As runc does: scripts look for the level.
#[test]
fn without_a_file_the_log_goes_to_standard_error() {
    let bundle = Bundle::new(&["true"]);
    let told = bundle.verb(&["kill", &bundle.id, "KILL"]).failure();
    assert!(told.starts_with("time=\"20") && told.contains(" level=error msg=\"container"), "{told}");
    let told = bundle.verb(&["--log-format", "json", "kill", &bundle.id]).failure();
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["level"], "error");
    let file = bundle.path().join("log");
    let told = bundle.verb(&["--log", file.to_str().unwrap(), "kill", &bundle.id]).failure();
    assert!(told.starts_with("container ") && told.lines().count() == 1, "{told}");
    assert!(fs::read_to_string(&file).unwrap().contains(" level=error "));
}

#[test]
fn configurations_that_are_wrong_are_refused_before_anything_is_made() {
    let cases: [(&str, Value, &str); 9] = [
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
        ("/ociVersion", json!("one"), "ociVersion"),
        ("/process/cwd", json!("relative"), "isn't absolute"),
        ("/process/rlimits", json!([{ "type": "RLIMIT_CORE" }, { "type": "RLIMIT_CORE" }]), "listed twice"),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_NOPE", "soft": 1, "hard": 1 }]),
            "config.json is not valid",
        ),
        ("/linux/namespaces", json!([{ "type": "mount" }, { "type": "mount" }]), "listed twice"),
        ("/hooks", json!({ "poststop": [{ "path": "relative" }] }), "not absolute"),
        ("/hooks", json!({ "createRuntime": [{ "path": "/x", "timeout": 0 }] }), "greater than zero"),
        ("/linux/intelRdt", json!({}), "intelRdt is not supported"),
    ];
    for (pointer, value, text) in cases {
        let bundle = Bundle::new(&["true"]).set(pointer, value);
        let told = bundle.create().failure();
        assert!(told.contains(text), "{pointer}: {told}");
        // A root that was named has to be there.
        let made = bundle.path().join("state").exists();
        assert!(!made || bundle.verb(&["list", "-q"]).success().is_empty());
    }
    for id in ["", "..", "a/b"] {
        let bundle = Bundle::new(&["true"]);
        bundle.write();
        bundle.verb(&["create", "-b", bundle.path().to_str().unwrap(), id]).failure();
    }
}

#[test]
fn a_container_without_a_process_can_be_created_but_not_started() {
    let bundle = Bundle::new(&[]).set("/process", Value::Null);
    bundle.create().success();
    assert!(bundle.verb(&["start", &bundle.id]).failure().contains("has no process"));
    assert_eq!(bundle.status(), "created");
}

#[test]
fn ambient_capabilities_that_cannot_be_are_a_warning() {
    let bundle =
        Bundle::shell("while read line; do case $line in CapAmb*) echo $line; esac; done </proc/self/status")
            .set("/process/capabilities/inheritable", json!(["CAP_KILL"]))
            .set("/process/capabilities/ambient", json!(["CAP_KILL", "CAP_CHOWN"]));
    let done = bundle.run();
    assert_eq!((done.code, done.stdout.trim()), (0, "CapAmb: 0000000000000020"), "{}", done.stderr);
    assert!(
        done.stderr.contains("level=warning msg=\"can't raise ambient capability CAP_CHOWN: "),
        "{}",
        done.stderr
    );
    assert!(!done.stderr.contains("CAP_KILL"), "{}", done.stderr);
}

#[test]
fn unknown_capabilities_are_a_warning_and_unknown_fields_nothing() {
    let bundle = Bundle::shell("echo ran")
        .push("/process/capabilities/bounding", json!("CAP_NEVER_HEARD_OF"))
        .set("/neverHeardOf", json!({ "a": 1 }));
    let done = bundle.run();
    assert_eq!((done.code, done.stdout.as_str()), (0, "ran\n"));
    let words = "level=warning msg=\"ignoring unknown or unavailable capabilities: [CAP_NEVER_HEARD_OF]\"";
    assert!(done.stderr.contains(words), "{}", done.stderr);
}

#[test]
fn state_and_lists_tell_what_callers_read() {
    let bundle = Bundle::new(&["sleep", "100"]).set("/annotations", json!({ "a.b": "c" }));
    let pid_file = bundle.path().join("pid");
    bundle.write();
    let out = || fs::File::create(bundle.path().join("out")).unwrap();
    let path = bundle.path().to_str().unwrap();
    let mut command =
        bundle.command(&["create", &bundle.id, "--bundle", path, "--pid-file", pid_file.to_str().unwrap()]);
    assert!(command.stdout(out()).stderr(out()).status().unwrap().success());
    let state: Value = serde_json::from_str(&bundle.verb(&["state", &bundle.id]).success()).unwrap();
    assert_eq!(state["pid"].to_string(), fs::read_to_string(&pid_file).unwrap());
    assert_eq!((state["id"].as_str(), state["bundle"].as_str()), (Some(bundle.id.as_str()), Some(path)));
    assert_eq!(state["annotations"], json!({ "a.b": "c" }));
    let list: Value = serde_json::from_str(&bundle.verb(&["list", "-f", "json"]).success()).unwrap();
    assert_eq!(list, json!([state]));
    assert!(bundle.verb(&["list"]).success().starts_with("ID "));
    let pids = bundle.verb(&["ps", "--format", "json", &bundle.id]).success();
    assert_eq!(pids.trim(), format!("[{}]", state["pid"]));
    assert_eq!(bundle.verb(&["ps", &bundle.id]).success().lines().count(), 2);
}

#[test]
fn a_container_can_be_paused_updated_and_measured() {
    let bundle = Bundle::new(&["sleep", "100"]).started();
    let id = bundle.id.as_str();
    bundle.verb(&["pause", id]).success();
    assert_eq!(bundle.status(), "paused");
    assert!(bundle.exec(&["true"]).failure().contains("paused container"));
    bundle.verb(&["resume", id]).success();
    assert_eq!(bundle.status(), "running");
    bundle.verb(&["update", "--pids-limit", "33", "--memory", "64m", id]).success();
    let resources = bundle.path().join("resources.json");
    fs::write(&resources, json!({ "cpu": { "shares": 512 }, "memory": { "limit": 0 } }).to_string()).unwrap();
    bundle.verb(&["update", "--resources", resources.to_str().unwrap(), id]).success();
    let event: Value = serde_json::from_str(&bundle.verb(&["events", "--stats", id]).success()).unwrap();
    assert_eq!((event["type"].as_str(), event["data"]["pids"]["limit"].as_u64()), (Some("stats"), Some(33)));
    assert_eq!(event["data"]["memory"]["usage"]["limit"], json!(64 << 20));
    bundle.verb(&["pause", id]).success();
    bundle.verb(&["delete", "--force", id]).success();
}

#[test]
fn debug_tells_the_steps_and_where_they_go() {
    let bundle = Bundle::new(&["true"]);
    bundle.write();
    let log = bundle.path().join("log");
    let (log, folder) = (log.to_str().unwrap(), bundle.path().to_str().unwrap());
    let run = ["--log", log, "--log-format", "json", "run", "--bundle", folder, &bundle.id];
    bundle.verb(&[&["--debug"], &run[..]].concat()).success();
    let steps = fs::read_to_string(log).unwrap();
    let steps: Vec<Value> = steps.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said = |words: &str| {
        steps.iter().any(|step| step["level"] == "debug" && step["msg"].as_str().unwrap().contains(words))
    };
    for words in ["is made from", "waits in cgroup", "executes the program", "are gone"] {
        assert!(said(words), "{words} in {steps:?}");
    }
    fs::remove_file(log).unwrap();
    bundle.verb(&run).success();
    assert_eq!(fs::read_to_string(log).unwrap(), "");
}

/// Callers add it where they want it; twice is refused.
#[test]
fn a_specification_has_a_cgroup_namespace_where_cgroups_are_unified() {
    let bundle = Bundle::new(&["true"]);
    let folder = bundle.path().join("begin");
    fs::create_dir(&folder).unwrap();
    bundle.verb(&["spec", "-b", folder.to_str().unwrap()]).success();
    let spec: Value = serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
    let own = namespaces.iter().filter(|namespace| namespace["type"] == "cgroup").count();
    assert_eq!(own, usize::from(layout().unwrap() == Layout::V2));
}

#[test]
fn every_verb_says_what_it_is_for() {
    let bundle = Bundle::new(&["true"]);
    assert!(bundle.verb(&["checkpoint", "-h"]).success().starts_with("Write the processes"));
    assert!(bundle.verb(&["restore", "-h"]).success().starts_with("Make a container whose processes"));
}

#[test]
fn features_and_version_need_nothing() {
    let bundle = Bundle::new(&["true"]);
    let features: Value = serde_json::from_str(&bundle.verb(&["features"]).success()).unwrap();
    assert_eq!(features["ociVersionMax"], "1.3.0");
    assert!(bundle.verb(&["--version"]).success().starts_with("sampan-runtime version "));
    assert!(bundle.verb(&["spec", "-b", "/nonexistent"]).failure().contains("no such file or directory"));
}
