//! Output on its way to the log.

use std::fs;
use std::process::Command;

use sampan_runtime::shim::protocol::{ErrorKind, Request};

use crate::pod::{Pod, Variation, eventually, log_lines};

#[test]
fn both_streams_come_in_lines_and_the_last_may_lack_its_end() {
    let pod = Pod::new();
    pod.run_script(
        "a",
        "echo out; sleep 0.1; echo err >&2; sleep 0.1; printf 'no end'",
        Variation::default(),
    );
    assert_eq!(pod.lines("a"), ["stdout F out", "stderr F err", "stdout F no end"]);
}

#[test]
fn long_lines_are_cut_into_partial_ones() {
    let pod = Pod::new();
    pod.run_script("a", "head -c 40000 /proc/self/exe >/dev/null; dd if=/bin/busybox bs=40000 count=1 2>/dev/null | tr -c x x; echo", Variation::default());
    let lines = pod.lines("a");
    let pieces: Vec<_> = lines.iter().map(|line| (&line[..8], line.len() - 9)).collect();
    assert_eq!(pieces, [("stdout P", 16384), ("stdout P", 16384), ("stdout F", 40000 - 2 * 16384)]);
}

#[test]
fn ten_megabytes_lose_nothing() {
    let pod = Pod::new();
    pod.run_script(
        "a",
        "yes 0123456789012345678901234567890123456789012345678 | head -c 10000000",
        Variation::default(),
    );
    let lines = pod.lines("a");
    assert_eq!(lines.len(), 200_000);
    assert!(lines.iter().all(|line| line == "stdout F 0123456789012345678901234567890123456789012345678"));
}

#[test]
fn what_a_container_wrote_last_is_in_the_log_when_its_end_is_told() {
    let pod = Pod::new();
    for round in 0..20 {
        let name = format!("c{round}");
        pod.run_script(&name, "seq 1000", Variation::default());
        assert_eq!(pod.lines(&name).len(), 1000);
    }
}

#[test]
fn a_rotated_log_goes_on_in_a_new_file() {
    let pod = Pod::new();
    let client = pod.connect();
    pod.run(
        &client,
        "a",
        &["/bin/sh", "-c", "while :; do echo tick; sleep 0.01; done"],
        Variation::default(),
    );
    let (log, old) = (pod.path("a/log"), pod.path("a/log.1"));
    eventually("there is output", || !pod.lines("a").is_empty());
    fs::rename(&log, &old).unwrap();
    client.done(&Request::ReopenLog { id: "a".into() });
    eventually("the new file has output", || !log_lines(&log).is_empty());
    let length = fs::metadata(&old).unwrap().len();
    eventually("more comes", || log_lines(&log).len() > 5);
    assert_eq!(fs::metadata(&old).unwrap().len(), length);
}

#[test]
fn a_failed_reopening_makes_no_file_and_keeps_the_old_one() {
    let pod = Pod::new();
    let (client, events) = (pod.connect(), pod.subscribe());
    let directory = pod.path("logs");
    fs::create_dir(&directory).unwrap();
    let log = directory.join("log");
    let variation = Variation { log: Some(log.clone()), ..Default::default() };
    pod.run(&client, "a", &["/bin/sh", "-c", "while :; do echo tick; sleep 0.01; done"], variation);
    let moved = pod.path("moved");
    fs::rename(&directory, &moved).unwrap();
    let (_, message) = client.refused(&Request::ReopenLog { id: "a".into() });
    assert!(message.contains("No such file"), "{message}");
    assert!(!directory.exists());
    let length = fs::metadata(moved.join("log")).unwrap().len();
    eventually("the old file grows", || fs::metadata(moved.join("log")).unwrap().len() > length);

    client.done(&Request::Kill { id: "a".into(), signal: 9, all: true });
    events.exit_of("a");
    fs::remove_file(moved.join("log")).unwrap();
    fs::rename(&moved, &directory).unwrap();
    assert_eq!(client.refused(&Request::ReopenLog { id: "a".into() }).0, ErrorKind::FailedPrecondition);
    assert!(!log.exists(), "an exited container's log is not made anew");
}

/// A small file system that is unmounted at the end.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Small {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(directory.path());
        assert!(mount.status().unwrap().success());
        Small(directory)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_neither_blocks_the_container_nor_spoils_the_log() {
    let small = Small::new();
    let pod = Pod::new();
    let (client, events) = (pod.connect(), pod.subscribe());
    let log = small.0.path().join("log");
    let script = "seq 100000; : > /tmp/done; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo after";
    let variation = Variation { log: Some(log.clone()), ..Default::default() };
    let pid = pod.run(&client, "a", &["/bin/sh", "-c", script], variation);
    eventually("the disk is full", || pod.log().contains("output is dropped"));
    let inside = |name: &str| std::path::PathBuf::from(format!("/proc/{pid}/root/tmp/{name}"));
    eventually("the container has written everything", || inside("done").exists());
    let before = log_lines(&log);
    assert!(before.len() > 100 && before.iter().all(|line| line.starts_with("stdout F ")));
    // Room again: the log goes on.
    fs::remove_file(&log).unwrap();
    client.done(&Request::ReopenLog { id: "a".into() });
    fs::write(inside("go"), "").unwrap();
    assert_eq!(events.exit_of("a").code, 0);
    assert_eq!(log_lines(&log).last().map(String::as_str), Some("stdout F after"));
    assert_eq!(pod.log().matches("output is dropped").count(), 1, "said once");
}

#[test]
fn without_a_log_output_goes_nowhere() {
    let pod = Pod::new();
    let exit =
        pod.run_script("a", "seq 100000; echo x >&2", Variation { no_log: true, ..Default::default() });
    assert_eq!(exit.code, 0);
    assert!(!pod.path("a/log").exists());
}

#[test]
fn a_log_that_cannot_be_opened_refuses_the_container() {
    let pod = Pod::new();
    let client = pod.connect();
    let variation = Variation { log: Some("/no/such/directory/log".into()), ..Default::default() };
    let (kind, message) = client.refused(&pod.bundle("a", &["/bin/true"], variation));
    assert_eq!(kind, ErrorKind::InvalidArgument);
    assert!(message.contains("/no/such/directory/log"), "{message}");
}
