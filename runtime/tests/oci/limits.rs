//! What a container may use: limits at its start and by `update`, devices, keyrings, cgroups of an exec.

use std::fs;
use std::path::Path;

use sampan_runtime::cgroup::{Layout, layout};
use serde_json::{Value, json};

use crate::fixture::{Bundle, eventually};

/// A rule for /dev/kmsg, which containers don't have by themselves.
fn with_kmsg() -> Bundle {
    Bundle::new(&["sleep", "100"])
        .set("/linux/devices", json!([{ "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11 }]))
        .set(
            "/linux/resources",
            json!({ "devices": [{ "allow": false, "access": "rwm" },
                { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "rw" }] }),
        )
}

#[test]
fn an_update_of_limits_leaves_the_devices_alone() {
    let bundle = with_kmsg().started();
    let open = ["sh", "-c", "exec 3>/dev/kmsg && echo opened"];
    assert_eq!(bundle.exec(&open).success(), "opened\n");
    bundle.verb(&["update", "--pids-limit", "33", &bundle.id]).success();
    assert_eq!(bundle.exec(&open).success(), "opened\n");
    assert_eq!(bundle.control("pids.max", "pids.max"), "33");
    let without = Bundle::new(&["sleep", "100"])
        .set("/linux/devices", json!([{ "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11 }]))
        .started();
    assert!(without.exec(&open).failure().contains("not permitted"), "the rules count");
}

/// config-linux.md, PIDs: 0 is a limit, -1 is none, and what is not there changes nothing.
#[test]
fn a_container_of_no_tasks_can_not_fork() {
    let max = |pids: Value| {
        let bundle =
            Bundle::new(&["sleep", "100"]).set("/linux/resources", json!({ "pids": pids })).started();
        bundle.control("pids.max", "pids.max")
    };
    assert_eq!(max(json!({ "limit": 0 })), "1");
    assert_eq!(max(json!({ "limit": -1 })), "max");
    assert_eq!(max(json!({})), max(Value::Null));
    let bundle = Bundle::new(&["sleep", "100"]).started();
    bundle.verb(&["update", "--pids-limit", "0", &bundle.id]).success();
    assert_eq!(bundle.control("pids.max", "pids.max"), "1");
    bundle.verb(&["update", "--memory", "64000000", &bundle.id]).success();
    assert_eq!(bundle.control("pids.max", "pids.max"), "1");
}

/// What only helps to make the container doesn't count.
#[test]
fn a_container_with_users_can_be_limited_to_one_task() {
    let one = json!({ "pids": { "limit": 1 } });
    Bundle::new(&["true"]).mapped().set("/linux/resources", one).run().success();
}

#[test]
fn mounts_can_map_ids_for_a_container_of_one_task() {
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let source = tempfile::tempdir().unwrap();
    Bundle::new(&["true"])
        .set("/linux/resources", json!({ "pids": { "limit": 1 } }))
        .push(
            "/mounts",
            json!({ "destination": "/tmp/m", "source": source.path(), "options": ["bind", "idmap"],
                "uidMappings": mapping, "gidMappings": mapping }),
        )
        .run()
        .success();
}

#[test]
fn an_update_that_fails_leaves_every_limit() {
    let bundle =
        Bundle::new(&["sleep", "100"]).set("/linux/resources", json!({ "pids": { "limit": 20 } })).started();
    let resources = bundle.path().join("resources.json");
    let device = json!([{ "major": 4000, "minor": 1, "rate": 1 }]);
    let wanted = json!({ "pids": { "limit": 7 }, "blockIO": { "throttleReadBpsDevice": device } });
    fs::write(&resources, wanted.to_string()).unwrap();
    bundle.verb(&["update", "--resources", resources.to_str().unwrap(), &bundle.id]).failure();
    assert_eq!(bundle.control("pids.max", "pids.max"), "20");
}

#[test]
fn huge_pages_that_can_not_be_limited_are_an_error() {
    let limits = json!({ "hugepageLimits": [{ "pageSize": "3MB", "limit": 3 << 20 }] });
    let bundle = Bundle::new(&["true"]).set("/linux/resources", limits.clone());
    assert!(bundle.create().failure().contains("hugetlb"));
    let bundle = Bundle::new(&["sleep", "100"]).started();
    let resources = bundle.path().join("resources.json");
    fs::write(&resources, limits.to_string()).unwrap();
    let told = bundle.verb(&["update", "-r", resources.to_str().unwrap(), &bundle.id]).failure();
    assert!(told.contains("hugetlb"), "{told}");
}

#[test]
fn options_of_old_callers_are_taken_and_those_of_rdt_refused() {
    let bundle = Bundle::new(&["sleep", "100"]).started();
    let old = ["update", "--kernel-memory", "64m", "--kernel-memory-tcp", "-1", &bundle.id];
    bundle.verb(&old).success();
    bundle.verb(&["update", "--l3-cache-schema", "", &bundle.id]).success();
    let told = bundle.verb(&["update", "--l3-cache-schema", "L3:0=f", &bundle.id]).failure();
    assert!(told.contains("intelRdt is not supported"), "{told}");
}

#[test]
fn statistics_tell_what_the_controllers_know() {
    let bundle = Bundle::new(&["sleep", "100"])
        .set("/linux/resources", json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 20 } }))
        .started();
    let figures = || {
        let event = bundle.verb(&["events", "--stats", &bundle.id]).success();
        serde_json::from_str::<Value>(&event).unwrap()["data"].take()
    };
    let data = figures();
    assert_eq!(data["pids"], json!({ "current": 1, "limit": 20 }));
    let usage = &data["memory"]["usage"];
    assert_eq!(usage["limit"], json!(64 << 20));
    assert!(usage["usage"].as_u64().unwrap() > 0 && usage["failcnt"].is_u64(), "{usage}");
    // The kernel counts them on each processor, and adds up every two seconds.
    eventually("there are page faults", || figures()["memory"]["raw"]["pgfault"].as_u64().unwrap() > 0);
    match layout().unwrap() {
        Layout::V2 => assert!(data["cpu"]["psi"]["some"]["total"].is_u64() || data["cpu"]["psi"].is_null()),
        _ => assert!(usage["max"].as_u64() >= usage["usage"].as_u64() && data["cpu"]["psi"].is_null()),
    }
}

/// As runc does it: a program that keeps keys in its session keyring must not keep them in that of the host.
#[test]
fn a_container_has_a_session_keyring_of_its_own() {
    let id = |keys: &str| {
        let session = keys.lines().find(|line| line.contains("_ses")).map(str::to_owned);
        session.and_then(|line| line.split(' ').next().map(str::to_owned))
    };
    // The list has what the reader may see: its session's keyring among it.
    let keyring = |bundle: Bundle, options: &[&str]| {
        bundle.write();
        let mut verb = vec!["run", "--bundle", bundle.path().to_str().unwrap()];
        verb.extend(options);
        verb.push(&bundle.id);
        let keys = bundle.verb(&verb).success();
        (keys.contains(&format!("_ses.{}", bundle.id)), id(&keys))
    };
    let bundle = || {
        let mut bundle = Bundle::new(&["cat", "/proc/keys"]);
        bundle.spec["linux"]["maskedPaths"] = json!([]);
        bundle
    };
    let (first, _) = keyring(bundle(), &[]);
    assert!(first, "it is named after the container");
    let (second, _) = keyring(bundle(), &["--no-new-keyring"]);
    assert!(!second);
    let (mapped, _) = keyring(bundle().mapped(), &[]);
    assert!(mapped);
    let mut running = Bundle::new(&["sleep", "100"]);
    running.spec["linux"]["maskedPaths"] = json!([]);
    let running = running.started();
    let keys = running.exec(&["cat", "/proc/keys"]).success();
    let named: Vec<&str> = keys.lines().filter(|line| line.contains(&running.id)).collect();
    assert_eq!(named.len(), 1, "an exec joins the keyring that is there: {keys}");
}

/// Packet filters and systemd tell processes apart by the unified hierarchy.
#[test]
fn a_container_is_in_the_unified_hierarchy_wherever_there_is_one() {
    let bundle = Bundle::new(&["sleep", "100"]).started();
    let (root, path) = match layout().unwrap() {
        Layout::V1 => return assert!(!Path::new("/sys/fs/cgroup/unified").exists()),
        Layout::Hybrid => ("/sys/fs/cgroup/unified", bundle.cgroup().path().to_owned()),
        Layout::V2 => ("/sys/fs/cgroup", bundle.cgroup().path().to_owned()),
    };
    let listed = || fs::read_to_string(Path::new(root).join(&path).join("cgroup.procs"));
    assert_eq!(listed().unwrap().lines().count(), 1);
    bundle.exec(&["sh", "-c", "sleep 100 >/dev/null 2>&1 &"]).success();
    assert_eq!(listed().unwrap().lines().count(), 2, "an exec is with it");
    bundle.verb(&["delete", "--force", bundle.id.as_str()]).success();
    assert!(listed().is_err(), "it is removed");
}

#[test]
fn an_exec_can_be_put_into_cgroups_below_the_containers() {
    let bundle = Bundle::new(&["sleep", "100"]).started();
    let mut paths: Vec<_> = bundle.cgroup().paths().into_iter().collect();
    paths.dedup_by(|a, b| a.1 == b.1);
    for (_, path) in &paths {
        fs::create_dir(path.join("sub")).unwrap();
        // An empty set takes nobody in, on version 1.
        for file in ["cpuset.cpus", "cpuset.mems"]
            .iter()
            .filter(|file| path.join("tasks").exists() && path.join(file).exists())
        {
            fs::write(path.join("sub").join(file), fs::read(path.join(file)).unwrap()).unwrap();
        }
    }
    let seen = |options: &[&str]| {
        let mut arguments = vec!["exec"];
        arguments.extend(options);
        arguments.extend([bundle.id.as_str(), "cat", "/proc/self/cgroup"]);
        bundle.verb(&arguments)
    };
    let whole = seen(&["--cgroup", "sub"]).success();
    assert!(paths.len() <= whole.lines().filter(|line| line.ends_with("/sub")).count(), "{whole}");
    assert!(seen(&["--cgroup", "none"]).failure().contains("adding pid to cgroup"));
    assert!(seen(&["--cgroup", "../.."]).failure().contains("leads out"));
    if layout().unwrap() != Layout::V2 {
        let some = seen(&["--cgroup", "pids,memory:sub", "--cgroup", "cpu:sub"]).success();
        for line in some.lines().filter(|line| !line.contains(":name=") && !line.starts_with("0:")) {
            let expected = ["pids", "memory", "cpu"]
                .iter()
                .any(|name| line.split(':').nth(1).unwrap().split(',').any(|c| c == *name));
            assert_eq!(line.ends_with("/sub"), expected, "{line}");
        }
        assert!(seen(&["--cgroup", "nope:sub"]).failure().contains("unknown controller"));
    }
}

/// As mount(8) has it: what is named counts, and the rest stays as the source has it.
#[test]
fn options_of_a_bind_mount_clear_what_the_source_has() {
    let source = tempfile::tempdir().unwrap();
    let status = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "ro,nosuid,nodev,noexec", "tmpfs"])
        .arg(source.path())
        .status();
    assert!(status.unwrap().success());
    let options = |options: &[&str]| {
        let mut all = vec!["rbind"];
        all.extend(options);
        let bundle = Bundle::new(&["cat", "/proc/self/mountinfo"])
            .push("/mounts", json!({ "destination": "/tmp/m", "source": source.path(), "options": all }));
        let table = bundle.run().success();
        let line = table.lines().find(|line| line.split(' ').nth(4) == Some("/tmp/m")).unwrap();
        line.split(' ').nth(5).unwrap().to_owned()
    };
    let (kept, cleared) = (options(&["nodev"]), options(&["rw", "exec", "suid", "dev"]));
    let unmounted = std::process::Command::new("umount").arg(source.path()).status();
    assert!(unmounted.unwrap().success());
    assert_eq!((kept.as_str(), cleared.as_str()), ("ro,nosuid,nodev,noexec,relatime", "rw,relatime"));
}
