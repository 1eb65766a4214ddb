//! Namespaces, names, cgroups: what a container shares with its surroundings and what not.

use std::fs;
use std::os::fd::AsFd;

use sampan_runtime::cgroup::{Cgroup, Layout, layout};
use sampan_runtime::container::{PidNamespace, Report};
use serde_json::json;

use crate::fixture::Bundle;

crate::cases![
    new_namespaces_differ_from_the_parents,
    absent_namespaces_are_the_parents,
    namespaces_are_joined_by_path,
    missing_namespace_path_is_an_error_that_names_it,
    mount_namespace_is_required,
    first_process_has_pid_1,
    pid_namespace_of_another_container_is_joined,
    parent_stays_in_its_own_pid_namespace,
    hostname_is_set_in_a_new_uts_namespace_only,
    sysctls_of_own_namespaces_are_set,
    other_sysctls_are_refused,
    container_sees_its_own_cgroup_only,
    limits_are_in_place,
    unsupported_requests_are_refused,
    empty_requests_are_no_requests,
    descendants_die_with_pid_1,
];

fn namespace(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_str().unwrap().to_owned()
}

fn new_namespaces_differ_from_the_parents() {
    let bundle = Bundle::shell("for n in mnt pid ipc uts cgroup; do readlink /proc/self/ns/$n; done");
    let output = bundle.output();
    assert_eq!(output.lines().count(), 5);
    for (kind, seen) in ["mnt", "pid", "ipc", "uts", "cgroup"].into_iter().zip(output.lines()) {
        assert!(seen.starts_with(kind) && seen != namespace(kind), "{kind}: {seen}");
    }
}

fn absent_namespaces_are_the_parents() {
    let bundle =
        Bundle::shell("readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; readlink /proc/self/ns/user")
            .without_namespace("ipc");
    let expected = ["net", "ipc", "user"].map(namespace).join("\n");
    assert_eq!(bundle.output().trim_end(), expected);
}

fn namespaces_are_joined_by_path() {
    let holder = Bundle::new(&["sleep", "1000"]);
    let container = holder.spawn().started();
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", container.process.child.pid);
    let mut bundle = Bundle::shell("readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts")
        .without_namespace("ipc")
        .without_namespace("uts");
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().unwrap();
    for kind in ["ipc", "uts"] {
        namespaces.push(json!({ "type": kind, "path": path(kind) }));
    }
    let expected = ["ipc", "uts"].map(|kind| fs::read_link(path(kind)).unwrap().to_str().unwrap().to_owned());
    assert_eq!(bundle.output().trim_end(), expected.join("\n"));
    container.kill();
}

fn missing_namespace_path_is_an_error_that_names_it() {
    let mut bundle = Bundle::new(&["true"]).without_namespace("ipc");
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({ "type": "ipc", "path": "/proc/none/ns/ipc" }));
    let (message, code) = bundle.failure();
    assert!(message.starts_with("ipc namespace /proc/none/ns/ipc: "), "{message}");
    assert_eq!(code, 128);
}

fn mount_namespace_is_required() {
    let (message, _) = Bundle::new(&["true"]).without_namespace("mount").failure();
    assert!(message.contains("mount namespace"), "{message}");
}

fn first_process_has_pid_1() {
    assert_eq!(Bundle::shell("echo $$").output(), "1\n");
    let mut inherited = Bundle::shell("echo $$");
    inherited = inherited.without_namespace("pid");
    let container = inherited.spawn_in(PidNamespace::Inherit);
    let pid = container.process.child.pid;
    assert_eq!(container.process.report(), Report::Ready);
    container.process.child.channel.start().unwrap();
    let outcome = container.finish(Report::Ready);
    assert_eq!(outcome.stdout.trim_end(), pid.to_string());
}

fn pid_namespace_of_another_container_is_joined() {
    let first = Bundle::new(&["sleep", "1000"]);
    let holder = first.spawn().started();
    let second = Bundle::shell("echo $$; cat /proc/1/comm").without_namespace("pid");
    let container = second.spawn_in(PidNamespace::Join(holder.process.child.pidfd.as_fd()));
    assert_eq!(container.process.report(), Report::Ready);
    container.process.child.channel.start().unwrap();
    let outcome = container.finish(Report::Ready);
    assert_eq!(outcome.stdout, "2\nsleep\n", "{}", outcome.stderr);
    holder.kill();
}

fn parent_stays_in_its_own_pid_namespace() {
    assert_eq!(
        fs::read_link("/proc/self/ns/pid_for_children").unwrap(),
        fs::read_link("/proc/self/ns/pid").unwrap()
    );
}

fn hostname_is_set_in_a_new_uts_namespace_only() {
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(Bundle::shell("cat /proc/sys/kernel/hostname").output(), "inner\n");
    let shared = Bundle::shell("cat /proc/sys/kernel/hostname").without_namespace("uts");
    assert_eq!(shared.output(), before);
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
}

fn sysctls_of_own_namespaces_are_set() {
    let bundle = Bundle::shell("cat /proc/sys/kernel/shmmni /proc/sys/fs/mqueue/msg_max")
        .set("/linux/sysctl", json!({ "kernel.shmmni": "1234", "fs/mqueue/msg_max": "12" }));
    assert_eq!(bundle.output(), "1234\n12\n");
}

fn other_sysctls_are_refused() {
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    for (name, value) in [
        ("kernel.core_pattern", "|/bin/evil"),
        ("net.ipv4.ip_forward", "1"),
        ("kernel.shmmni", "1\n2"),
        ("kernel/shmmni/../core_pattern", "x"),
        ("a+b", "1"),
    ] {
        let (message, _) = Bundle::new(&["true"]).set("/linux/sysctl", json!({ name: value })).failure();
        assert!(message.contains("is not allowed"), "{message}");
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), before);
}

fn container_sees_its_own_cgroup_only() {
    let unified = layout().unwrap() == Layout::V2;
    let directory = if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" };
    let bundle = Bundle::shell(&format!(
        "cat /proc/self/cgroup; cat {directory}/pids.max; ls {directory}; \
         echo 1 > {directory}/pids.max; mkdir {directory}/x; echo x > /sys/fs/cgroup/release_agent; exit 0",
    ));
    let outcome = bundle.run();
    let own = if unified { vec!["0::/"] } else { vec![":pids:/", ":memory:/"] };
    for end in own {
        assert!(outcome.stdout.lines().any(|line| line.ends_with(end)), "{}", outcome.stdout);
    }
    assert!(outcome.stdout.contains("\n64\n"), "{}", outcome.stdout);
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 3, "{}", outcome.stderr);
    assert!(!outcome.stdout.contains("release_agent"), "{}", outcome.stdout);
}

fn limits_are_in_place() {
    let bundle = Bundle::new(&["sleep", "1000"])
        .set("/linux/resources", json!({ "pids": { "limit": 7 }, "memory": { "limit": 64 << 20 } }));
    let container = bundle.spawn().started();
    let stats = Cgroup::new(&bundle.cgroup).unwrap().stats().unwrap();
    assert_eq!((stats.pids.limit, stats.memory.limit_bytes), (Some(7), Some(64 << 20)));
    assert_eq!(Cgroup::new(&bundle.cgroup).unwrap().pids().unwrap(), [container.process.child.pid]);
    container.kill();
}

fn unsupported_requests_are_refused() {
    let mut user = Bundle::new(&["true"]);
    user.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    assert_eq!(user.failure().0, "a user namespace is not supported");
    for (pointer, value) in [
        ("/hooks", json!({ "poststop": [{ "path": "/bin/true" }] })),
        ("/process/apparmorProfile", json!("no-such-profile")),
        ("/linux/uidMappings", json!([{ "hostID": 1, "containerID": 0, "size": 1 }])),
    ] {
        let (message, code) = Bundle::new(&["true"]).set(pointer, value).failure();
        // The kernel has no AppArmor, or no such profile.
        let reason = ["is not supported", "is not loaded; load it with apparmor_parser"];
        assert!(reason.iter().any(|reason| message.ends_with(reason)), "{message}");
        assert_eq!(code, 128);
    }
}

fn empty_requests_are_no_requests() {
    let bundle = Bundle::new(&["true"])
        .set("/hooks", json!({ "prestart": [] }))
        .set("/linux/uidMappings", json!([]))
        .set("/process/apparmorProfile", json!("unconfined"));
    bundle.output();
}

fn descendants_die_with_pid_1() {
    let bundle = Bundle::shell("sleep 1000 & sleep 1000 & exec sleep 1000");
    let container = bundle.spawn().started();
    container.kill();
    assert!(Cgroup::new(&bundle.cgroup).unwrap().pids().unwrap().is_empty());
}
