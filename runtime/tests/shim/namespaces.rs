//! The shim as the holder of the pod's namespaces, and the ways in which containers see pids.

use std::fs;

use sampan_runtime::shim::protocol::{ErrorKind, PidMode, Request, Response};

use crate::client::Client;
use crate::pod::{Pod, Variation, eventually};

fn namespace(pid: i32, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().to_string_lossy().into_owned()
}

fn own(kind: &str) -> String {
    namespace(std::process::id() as i32, kind)
}

#[test]
fn containers_share_the_pods_namespaces_and_its_name() {
    let pod = Pod::with(&["--hostname", "a-pod", "--sysctl", "net.ipv4.ip_unprivileged_port_start=80"]);
    let client = pod.connect();
    let script = "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; sleep 1000";
    let pid = pod.run(&client, "a", &["/bin/sh", "-c", script], Variation::default());
    for kind in ["net", "uts", "ipc"] {
        assert_ne!(namespace(pod.shim_pid(), kind), own(kind), "{kind}");
        assert_eq!(namespace(pid, kind), namespace(pod.shim_pid(), kind), "{kind}");
    }
    for kind in ["mnt", "pid", "cgroup"] {
        assert_eq!(namespace(pod.shim_pid(), kind), own(kind), "the shim stays in the host's {kind}");
        assert_ne!(namespace(pid, kind), own(kind), "{kind}");
    }
    eventually("it has spoken", || pod.lines("a").len() == 2);
    assert_eq!(pod.lines("a"), ["stdout F a-pod", "stdout F 80"]);
}

#[test]
fn a_pod_on_the_hosts_network_keeps_the_hosts_name() {
    let pod = Pod::with(&["--host-network", "--host-ipc", "--hostname", "ignored"]);
    pod.connect();
    for kind in ["net", "uts", "ipc"] {
        assert_eq!(namespace(pod.shim_pid(), kind), own(kind), "{kind}");
    }
}

#[test]
fn a_pod_that_cannot_be_made_says_why_and_ends() {
    let mut pod = Pod::with(&["--sysctl", "kernel.core_pattern=|/bin/sh"]);
    let client = Client::connect_silently(&pod.path("shim.sock"));
    if let Some(Response::Error { kind, message }) = client.receive() {
        assert_eq!(kind, ErrorKind::InvalidArgument);
        assert!(message.contains("kernel.core_pattern"), "{message}");
    }
    assert!(!pod.wait().success());
    assert!(pod.log().contains("not in a namespace of the pod"), "{}", pod.log());
}

fn with(pid: PidMode) -> Variation {
    Variation { pid, ..Default::default() }
}

#[test]
fn containers_see_pids_as_they_are_told_to() {
    let pod = Pod::with(&["--shared-pid"]);
    let client = pod.connect();
    let private = pod.run(&client, "private", &["/bin/sleep", "1000"], with(PidMode::Private));
    let first = pod.run(&client, "first", &["/bin/sleep", "1000"], with(PidMode::Pod));
    let second = pod.run(&client, "second", &["/bin/sleep", "1000"], with(PidMode::Pod));
    let host = pod.run(&client, "host", &["/bin/sleep", "1000"], with(PidMode::Host));
    let guest =
        pod.run(&client, "guest", &["/bin/ps", "-o", "pid,args"], with(PidMode::Target("private".into())));
    assert_eq!(namespace(first, "pid"), namespace(second, "pid"));
    assert_ne!(namespace(first, "pid"), own("pid"));
    assert_ne!(namespace(private, "pid"), namespace(first, "pid"));
    assert_eq!(namespace(host, "pid"), own("pid"));
    assert_ne!(guest, private);
    eventually("the guest has looked around", || pod.lines("guest").len() >= 3);
    assert!(pod.lines("guest").iter().any(|line| line.contains("1 /bin/sleep 1000")));
}

/// Who is in the monitor's cgroup beside it, but for those that are only yet to be reaped.
fn firsts_of(pod: &Pod) -> Vec<i32> {
    let alive = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        *pid != pod.shim_pid() && status.contains("State:") && !status.contains("State:\tZ")
    };
    pod.cgroup_of("monitor").pids().unwrap().into_iter().filter(alive).collect()
}

#[test]
fn a_pods_first_process_ends_with_its_monitor_whatever_ended_that() {
    for users in [&[][..], &["--uid-map", "0:70000:65536", "--gid-map", "0:70000:65536"]] {
        let mut pod = Pod::with(&[&["--shared-pid"], users].concat());
        pod.connect();
        assert_eq!(firsts_of(&pod).len(), 1);
        pod.shim.kill().unwrap();
        pod.wait();
        eventually("it is gone", || firsts_of(&pod).is_empty());
    }
}

#[test]
fn a_pod_that_cannot_be_made_leaves_no_first_process() {
    let mut pod = Pod::with(&["--shared-pid", "--sysctl", "kernel.msgmax=many"]);
    assert!(!pod.wait().success());
    assert!(pod.log().contains("kernel.msgmax=many"), "{}", pod.log());
    eventually("it is gone", || firsts_of(&pod).is_empty());
}

#[test]
fn a_shared_namespace_needs_one_to_share() {
    let pod = Pod::new();
    let client = pod.connect();
    for mode in [PidMode::Pod, PidMode::Target("none".into())] {
        let request = pod.bundle("a", &["/bin/true"], with(mode));
        assert_eq!(client.refused(&request).0, ErrorKind::FailedPrecondition);
    }
}

#[test]
fn the_rest_of_a_container_goes_with_its_first_process_even_in_a_shared_namespace() {
    let pod = Pod::with(&["--shared-pid"]);
    let (client, events) = (pod.connect(), pod.subscribe());
    pod.run(&client, "other", &["/bin/sleep", "1000"], with(PidMode::Pod));
    pod.run(
        &client,
        "a",
        &["/bin/sh", "-c", "setsid sleep 1001 & sleep 0.2; echo last; exit 6"],
        with(PidMode::Pod),
    );
    assert_eq!(events.exit_of("a").code, 6);
    assert_eq!(pod.lines("a"), ["stdout F last"]);
    eventually("nobody is left", || pod.cgroup_of("a").pids().unwrap().is_empty());
    assert_eq!(client.state().len(), 2);
    assert_eq!(pod.cgroup_of("other").pids().unwrap().len(), 1);
    client.done(&Request::Forget { id: "a".into() });
}

#[test]
fn orphans_of_the_pod_are_reaped() {
    let pod = Pod::with(&["--shared-pid"]);
    let client = pod.connect();
    for (name, mode) in [("pod", PidMode::Pod), ("host", PidMode::Host), ("private", PidMode::Private)] {
        let script = "(sleep 0.05 &) ; (setsid sleep 0.05 &) ; sleep 1000";
        pod.run(&client, name, &["/bin/sh", "-c", script], with(mode));
        if name == "private" {
            // There pid 1 is the container's own, which is a shell that has to reap.
            continue;
        }
        let cgroup = pod.cgroup_of(name);
        eventually("the orphans are gone", || cgroup.stats().unwrap().pids.current <= 2);
    }
}
