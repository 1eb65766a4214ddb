//! Namespaces, new and by path; mappings of ids; mounts that only the command line knows.

use std::fs;

use serde_json::{Value, json};

use crate::fixture::{Bundle, Done};

#[test]
fn a_user_namespace_maps_root_to_an_ordinary_user() {
    let bundle = Bundle::shell(
        "id -u; cat /proc/self/uid_map; touch /tmp/made; echo x > /dev/null; cat /proc/1/cmdline > /dev/null",
    )
    .mapped();
    let output = bundle.run().success();
    let words: Vec<&str> = output.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "65536"]);
    let made = fs::metadata(bundle.inside("tmp/made")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 100_000);
}

/// CVE-2025-47291: a user namespace takes nothing away from the limits.
#[test]
fn limits_hold_with_a_user_namespace() {
    let resources = json!({
        "pids": { "limit": 20 },
        "memory": { "limit": 64 << 20 },
        "cpu": { "quota": 50_000, "period": 100_000, "shares": 512 },
    });
    let bundle = Bundle::new(&["sleep", "100"]).mapped().set("/linux/resources", resources).started();
    assert_eq!(bundle.control("pids.max", "pids.max"), "20");
    assert_eq!(bundle.control("memory.max", "memory.limit_in_bytes"), "67108864");
    assert_eq!(bundle.control("cpu.max", "cpu.cfs_quota_us").split(' ').next(), Some("50000"));
    assert_eq!(bundle.exec(&["id", "-u"]).success(), "0\n");
    assert_eq!(bundle.control("pids.current", "pids.current"), "1");
    // They hold the processes in, and not only in name.
    let bomb = "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done; echo all";
    assert!(!bundle.exec(&["sh", "-c", bomb]).stdout.contains("all"));
}

/// Where the runtime may raise a limit, a container with users of its own has it too; where it may not, nothing is created.
#[test]
fn limits_are_raised_before_the_user_namespace_is_entered() {
    let own = rustix::process::getrlimit(rustix::process::Resource::Msgqueue).maximum.unwrap();
    let limit = json!([{ "type": "RLIMIT_MSGQUEUE", "soft": own + 1, "hard": own + 1 }]);
    let bundle = Bundle::new(&["cat", "/proc/self/limits"]).mapped().set("/process/rlimits", limit);
    let ours = rustix::thread::capabilities(None).unwrap().effective;
    if ours.contains(rustix::thread::CapabilitySet::SYS_RESOURCE) {
        assert!(bundle.run().success().contains(&(own + 1).to_string()));
        return;
    }
    let text = bundle.create().failure();
    assert!(text.contains("RLIMIT_MSGQUEUE") && text.contains("operation not permitted"), "{text}");
    assert!(bundle.verb(&["list", "-q"]).success().is_empty());
}

#[test]
fn a_time_namespace_has_its_own_clocks() {
    let bundle = Bundle::new(&["cat", "/proc/uptime"])
        .push("/linux/namespaces", json!({ "type": "time" }))
        .set("/linux/timeOffsets", json!({ "boottime": { "secs": 10_000_000 } }));
    let uptime: f64 = bundle.run().success().split(' ').next().unwrap().parse().unwrap();
    let own: f64 = fs::read_to_string("/proc/uptime").unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((uptime - own - 1e7).abs() < 60.0, "{uptime} {own}");
}

#[test]
fn namespaces_can_be_joined_by_path() {
    let holder = Bundle::new(&["sleep", "100"]).started();
    let pids = holder.verb(&["ps", "-f", "json", &holder.id]).success();
    let pid = pids.trim().trim_matches(['[', ']']).to_owned();
    let path = |name: &str| format!("/proc/{pid}/ns/{name}");
    let joined = json!([
        { "type": "mount" },
        { "type": "pid", "path": path("pid") },
        { "type": "network", "path": path("net") },
        { "type": "ipc", "path": path("ipc") },
        { "type": "uts", "path": path("uts") },
        { "type": "cgroup", "path": path("cgroup") },
    ]);
    let bundle = Bundle::shell(
        "for n in pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done; cat /proc/1/comm",
    )
    .set("/linux/namespaces", joined);
    let expected = ["pid", "net", "ipc", "uts", "cgroup"]
        .map(|name| format!("{}\n", fs::read_link(path(name)).unwrap().display()))
        .concat();
    assert_eq!(bundle.run().success(), format!("{expected}sleep\n"));
    let wrong = json!([{ "type": "mount" }, { "type": "network", "path": path("ipc") }]);
    assert!(
        Bundle::new(&["true"])
            .set("/linux/namespaces", wrong)
            .create()
            .failure()
            .contains("invalid argument")
    );
}

#[test]
fn mounts_can_map_ids() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("f"), "").unwrap();
    std::os::unix::fs::chown(source.path().join("f"), Some(5), Some(6)).unwrap();
    let mount = |options: &[&str]| json!({ "destination": "/tmp/m", "type": "none", "source": source.path(), "options": options });
    let mut own = mount(&["bind", "idmap"]);
    own["uidMappings"] = json!([{ "containerID": 0, "hostID": 1000, "size": 100 }]);
    own["gidMappings"] = json!([{ "containerID": 0, "hostID": 2000, "size": 100 }]);
    let bundle = Bundle::new(&["stat", "-c", "%u:%g", "/tmp/m/f"]).push("/mounts", own);
    assert_eq!(bundle.run().success(), "1005:2006\n");
    // With a user namespace and no mapping of its own, the container sees the files as they are.
    let bundle =
        Bundle::new(&["stat", "-c", "%u:%g", "/tmp/m/f"]).mapped().push("/mounts", mount(&["bind", "idmap"]));
    assert_eq!(bundle.run().success(), "5:6\n");
    let bundle = Bundle::new(&["true"]).push("/mounts", mount(&["bind", "idmap"]));
    assert!(bundle.create().failure().contains("idmap takes mappings"));
}

#[test]
fn tmpfs_can_begin_with_what_was_there_and_be_closed_later() {
    let bundle = Bundle::shell("cat /etc/d/sub/f; readlink /etc/d/l; (echo x > /etc/d/g) 2>/dev/null || echo closed")
        .push("/mounts", json!({ "destination": "/etc/d", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "size=1m"] }))
        .push("/mounts", json!({ "destination": "/etc/d", "options": ["remount", "bind", "ro"] }));
    fs::create_dir_all(bundle.inside("etc/d/sub")).unwrap();
    fs::write(bundle.inside("etc/d/sub/f"), "kept\n").unwrap();
    std::os::unix::fs::symlink("/nowhere", bundle.inside("etc/d/l")).unwrap();
    assert_eq!(bundle.run().success(), "kept\n/nowhere\nclosed\n");
}

#[test]
fn sources_of_bind_mounts_are_relative_to_the_bundle() {
    let bundle = Bundle::new(&["cat", "/tmp/f"])
        .push("/mounts", json!({ "destination": "tmp/f", "source": "beside", "options": ["bind", "ro"] }));
    fs::write(bundle.path().join("beside"), "found\n").unwrap();
    assert_eq!(bundle.run().success(), "found\n");
}

/// Who owns a file that is bound from a mount before, as seen in the container.
fn owner_in_a_second_mount(bundle: Bundle, mapping: Option<Value>) -> String {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("sub")).unwrap();
    fs::write(source.path().join("sub/f"), "").unwrap();
    let first = json!({ "destination": "/tmp/a", "source": source.path(), "options": ["bind"] });
    let mut second = json!({ "destination": "/tmp/b", "source": "rootfs/tmp/a/sub", "options": ["rbind"] });
    if let Some(mapping) = mapping {
        second["uidMappings"] = mapping.clone();
        second["gidMappings"] = mapping;
    }
    bundle.push("/mounts", first).push("/mounts", second).run().success()
}

/// As with runc: mounts are made in their order, and a path of the host below the container's root leads to them.
#[test]
fn sources_of_bind_mounts_can_be_mounts_before_them() {
    let bundle = || Bundle::new(&["stat", "-c", "%u:%g", "/tmp/b/f"]);
    assert_eq!(owner_in_a_second_mount(bundle(), None), "0:0\n");
    assert_eq!(owner_in_a_second_mount(bundle().mapped(), None), "65534:65534\n");
}

#[test]
fn mounts_can_map_ids_of_mounts_before_them() {
    let mapping = json!([{ "containerID": 0, "hostID": 1000, "size": 100 }]);
    let bundle = Bundle::new(&["stat", "-c", "%u:%g", "/tmp/b/f"]);
    assert_eq!(owner_in_a_second_mount(bundle, Some(mapping)), "1000:1000\n");
}

/// Where the container's process looks for it itself, a symlink of the container's leads nowhere else.
#[test]
fn a_source_below_the_root_of_a_container_with_users_stays_there() {
    let bundle = Bundle::new(&["ls", "/tmp/m"]).mapped();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "").unwrap();
    let inside = bundle.inside(outside.path().strip_prefix("/").unwrap().to_str().unwrap());
    fs::create_dir_all(&inside).unwrap();
    fs::write(inside.join("own"), "").unwrap();
    std::os::unix::fs::symlink(outside.path(), bundle.inside("link")).unwrap();
    let source = bundle.inside("link");
    let bundle =
        bundle.push("/mounts", json!({ "destination": "/tmp/m", "source": source, "options": ["bind"] }));
    assert_eq!(bundle.run().success(), "own\n");
}

#[test]
fn network_devices_come_along_with_their_addresses() {
    let bundle = Bundle::shell("ip -o addr show dev inner; ip -o link show dev kept")
        .set("/linux/netDevices", json!({ "sampan-a": { "name": "inner" }, "kept": {} }));
    std::os::unix::fs::symlink("busybox", bundle.inside("bin/ip")).unwrap();
    bundle.write();
    let (path, root) = (bundle.path().to_str().unwrap(), bundle.path().join("state"));
    // In a namespace of its own, so that the machine's devices are out of reach.
    let script = format!(
        "ip link add sampan-a type veth peer name kept && ip addr add 10.1.2.3/24 dev sampan-a &&
         ip addr add fd00::7/64 nodad dev sampan-a && ip link set sampan-a up &&
         {} --root {} run --bundle {path} {id} && ip -o link",
        crate::fixture::RUNTIME,
        root.display(),
        id = bundle.id
    );
    let output = std::process::Command::new("unshare").args(["--net", "sh", "-c", &script]).output().unwrap();
    let output = Done::of(output).success();
    for text in ["inet 10.1.2.3/24", "inet6 fd00::7/64", "kept"] {
        assert!(output.contains(text), "{text}: {output}");
    }
    assert!(output.lines().find(|line| line.contains("kept")).unwrap().contains("UP"), "{output}");
    assert!(!output.contains("sampan-a"), "it has gone from where it was: {output}");

    let missing = Bundle::new(&["true"]).set("/linux/netDevices", json!({ "nosuchdevice": {} }));
    let told = missing.create().failure();
    assert!(told.contains("network device nosuchdevice") && told.contains("no such device"), "{told}");
    let wrong = Bundle::new(&["true"]).set("/linux/netDevices", json!({ "lo": { "name": "a/b" } }));
    assert!(wrong.create().failure().contains("no name of a network device"));
    let shared = Bundle::new(&["true"])
        .set("/linux/netDevices", json!({ "lo": {} }))
        .set("/linux/namespaces", json!([{ "type": "mount" }, { "type": "pid" }]));
    assert!(shared.create().failure().contains("without a network namespace"));
}

#[test]
fn a_root_that_is_a_slave_has_its_master_and_any_other_none() {
    for (word, has_master) in [("slave", true), ("rslave", true), ("private", false), ("shared", false)] {
        let bundle =
            Bundle::new(&["cat", "/proc/self/mountinfo"]).set("/linux/rootfsPropagation", json!(word));
        bundle.write();
        // Where mounts are shared, as systemd has them.
        let run = bundle.command(&["run", "--bundle", bundle.path().to_str().unwrap(), &bundle.id]);
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "--propagation", "shared"]).arg(run.get_program()).args(run.get_args());
        let table = Done::of(command.stdin(std::process::Stdio::null()).output().unwrap()).success();
        let root = table.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
        assert_eq!(root.contains(" master:"), has_master, "{word}: {root}");
        assert_eq!(root.contains(" shared:"), word == "shared", "{word}: {root}");
    }
}
