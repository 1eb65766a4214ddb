//! Hooks: order, namespaces, state, failures.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::fixture::Bundle;

/// A hook that appends its name, status, pid and network namespace to a file of the host.
fn hook(bundle: &Bundle, name: &str) -> Value {
    let log = bundle.path().join("hooks.log");
    let script = format!(
        r#"read -r state; echo "{name} $(echo "$state" | sed 's/.*"status":"\([a-z]*\)".*/\1/') $X $(readlink /proc/self/ns/net)" >> {}"#,
        log.display()
    );
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["X=given", "PATH=/bin:/usr/bin"] }])
}

#[test]
fn hooks_run_in_order_in_their_namespaces_with_the_state() {
    let bundle = Bundle::shell("cat /started");
    let mut hooks = json!({});
    for name in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        hooks[name] = hook(&bundle, name);
    }
    hooks["startContainer"] =
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", "cat > /started"], "env": ["PATH=/bin"] }]);
    let bundle = bundle.set("/hooks", hooks);
    let state: Value = serde_json::from_str(&bundle.run().success()).unwrap();
    assert_eq!((state["status"].as_str(), state["pid"].as_i64()), (Some("created"), Some(1)));
    let log = fs::read_to_string(bundle.path().join("hooks.log")).unwrap();
    let lines: Vec<Vec<&str>> = log.lines().map(|line| line.split(' ').collect()).collect();
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    let seen: Vec<_> =
        lines.iter().map(|line| (line[0], line[1], line[3] == host.to_str().unwrap())).collect();
    assert_eq!(
        seen[..4],
        [
            ("prestart", "creating", true),
            ("createRuntime", "creating", true),
            ("createContainer", "creating", false),
            ("poststart", "running", true),
        ]
    );
    assert_eq!((seen[4].0, seen[4].1), ("poststop", "stopped"));
    assert!(lines.iter().all(|line| line[2] == "given"), "{log}");
}

#[test]
fn a_hook_of_the_container_begins_at_its_root() {
    let make = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo made > ./tmp/by-hook"] }]);
    let bundle = Bundle::new(&["cat", "/tmp/by-hook"]).set("/hooks", json!({ "createContainer": make }));
    assert_eq!(bundle.run().success(), "made\n");
}

#[test]
fn a_failing_hook_stops_the_creation_and_poststop_runs_all_the_same() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let bundle = Bundle::new(&["true"]);
        let mark = bundle.path().join("poststop");
        let bundle = bundle.set(
            "/hooks",
            json!({
                kind: [{ "path": "/bin/sh", "args": ["sh", "-c", "echo oops; exit 3"] }],
                "poststop": [{ "path": "/bin/false" }, { "path": "/bin/touch", "args": ["touch", mark] }]
            }),
        );
        let told = bundle.create().failure();
        assert!(
            told.contains(&format!("error running {kind} hook #0: /bin/sh: exit status 3: oops")),
            "{told}"
        );
        assert!(mark.exists(), "{kind}");
        assert!(bundle.verb(&["state", &bundle.id]).failure().contains("does not exist"));
    }
}

#[test]
fn failures_at_the_start_stop_the_container() {
    let failing = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "exit 1"] }]);
    let bundle = Bundle::new(&["sleep", "100"]).set("/hooks", json!({ "startContainer": failing }));
    bundle.create().success();
    assert!(bundle.verb(&["start", &bundle.id]).failure().contains("startContainer hook"));
    let bundle =
        Bundle::new(&["sleep", "100"]).set("/hooks", json!({ "poststart": [{ "path": "/bin/false" }] }));
    bundle.create().success();
    assert!(bundle.verb(&["start", &bundle.id]).failure().contains("poststart hook"));
    assert!(bundle.verb(&["state", &bundle.id]).failure().contains("does not exist"));
}

#[test]
fn a_hook_that_takes_too_long_is_killed() {
    let hooks =
        json!({ "createRuntime": [{ "path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1 }] });
    let told = Bundle::new(&["true"]).set("/hooks", hooks).create().failure();
    assert!(told.contains("longer than 1 s"), "{told}");
}

#[test]
fn a_hook_can_ask_for_the_state() {
    let bundle = Bundle::new(&["true"]);
    let script = bundle.path().join("ask");
    let text = format!(
        "#!/bin/sh\n{} --root {}/state state {} > {}/asked\n",
        crate::fixture::RUNTIME,
        bundle.path().display(),
        bundle.id,
        bundle.path().display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let bundle = bundle.set("/hooks", json!({ "createRuntime": [{ "path": script }] }));
    bundle.create().success();
    let asked = fs::read_to_string(bundle.path().join("asked")).unwrap();
    assert!(asked.contains("\"creating\""), "{asked}");
}
