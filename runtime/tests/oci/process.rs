//! What a process is given beside its program: scheduling, personality, filters that notify.

use std::io::{IoSliceMut, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use serde_json::{Value, json};

use crate::fixture::Bundle;

#[test]
fn scheduling_and_personality_are_set() {
    let bundle = Bundle::shell("uname -m; cat /proc/self/stat")
        .set("/process/scheduler", json!({ "policy": "SCHED_BATCH", "nice": 5 }))
        .set("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 }))
        .set("/linux/personality", json!({ "domain": "LINUX32" }));
    let output = bundle.run().success();
    let (machine, stat) = output.split_once('\n').unwrap();
    assert_eq!(machine, "i686");
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Fields 19 (nice) and 41 (policy) of proc_pid_stat(5).
    assert_eq!((fields[16], fields[38]), ("5", "3"));
}

#[test]
fn labels_that_the_kernel_can_not_give_are_refused() {
    let told = Bundle::new(&["true"]).set("/process/selinuxLabel", json!("a:b:c:d")).create().failure();
    assert!(told.contains("no such security module"), "{told}");
}

/// As soon as the container is created: the filter is no property of its process (runtime.md, Create).
#[test]
fn a_filter_can_notify_somebody() {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let hook = json!([{ "path": "/bin/touch", "args": ["touch", "/tmp/hook"] }]);
    let bundle = Bundle::new(&["id", "-u"])
        .set("/process/user", json!({ "uid": 1, "gid": 1 }))
        .set("/hooks", json!({ "startContainer": hook }));
    std::os::unix::fs::chown(bundle.inside("tmp"), Some(1), Some(1)).unwrap();
    let path = bundle.path().join("notify");
    let listener = UnixListener::bind(&path).unwrap();
    let bundle = bundle.set(
        "/linux/seccomp",
        json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": path,
            "listenerMetadata": "data",
            "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }]
        }),
    );
    let agent = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = vec![0u8; 8192];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received =
            recvmsg(&connection, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags).unwrap();
        let descriptors: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        let mut text = buffer[..received.bytes].to_vec();
        connection.read_to_end(&mut text).unwrap();
        (serde_json::from_slice::<Value>(&text).unwrap(), descriptors.len())
    });
    bundle.create().success();
    let (state, descriptors) = agent.join().unwrap();
    assert_eq!((&state["state"]["status"], bundle.status().as_str()), (&json!("creating"), "created"));
    bundle.verb(&["start", &bundle.id]).success();
    crate::fixture::eventually("it has run", || bundle.written() == "1\n");
    assert!(bundle.inside("tmp/hook").exists());
    assert_eq!((descriptors, &state["fds"], &state["metadata"]), (1, &json!(["seccompFd"]), &json!("data")));
    assert_eq!(state["state"]["id"], json!(bundle.id));
    assert!(state["pid"].as_i64().unwrap() > 1);
}

#[test]
fn filters_are_kept_and_found_again() {
    let profile = |errno: u32| {
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno }] })
    };
    let mut bundle = Bundle::shell("/bin/busybox mkdir /tmp/x").set("/linux/seccomp", profile(95));
    for _ in 0..2 {
        assert!(bundle.run().stderr.contains("Operation not supported"));
    }
    bundle.spec["linux"]["seccomp"] = profile(28);
    assert!(bundle.run().stderr.contains("No space left"));
    let kept = std::fs::read_dir(bundle.path().join("state/@seccomp")).unwrap().count();
    assert_eq!(kept, 2);
    assert!(bundle.verb(&["list", "-q"]).success().is_empty());
}

/// What no process can have is refused before anything runs.
#[test]
fn limits_and_capabilities_beyond_the_kernels_are_refused_at_the_creation() {
    let limit = |soft: u64, hard: u64| json!([{ "type": "RLIMIT_NOFILE", "soft": soft, "hard": hard }]);
    for (limits, problem) in
        [(limit(2, 1), "invalid argument"), (limit(u64::MAX, u64::MAX), "operation not permitted")]
    {
        let text = Bundle::new(&["true"]).set("/process/rlimits", limits).create().failure();
        assert!(text.contains("RLIMIT_NOFILE") && text.contains(problem), "{text}");
    }
    let only = json!(["CAP_KILL"]);
    let capabilities = json!({ "permitted": only, "effective": only, "inheritable": only });
    let text = Bundle::new(&["true"]).set("/process/capabilities", capabilities).create().failure();
    assert!(text.contains("not in the bounding set: operation not permitted"), "{text}");
}
