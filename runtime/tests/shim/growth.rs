//! A monitor that has done a lot holds no more than one that has done little.
//!
//! SAMPAN_TEST_EXECS says how many processes are run in a container; 2,000 when nothing is said.

#![allow(clippy::print_stdout, reason = "figures for whoever asks for many")]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use sampan_runtime::shim::protocol::{Request, Response};

use crate::pod::{Pod, Variation, eventually, memory_file, process};

/// As much as an allocator may keep for itself.
const SLACK_KIB: u64 = 128;

/// What a process has that is in no file, in KiB.
fn own_memory(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn execs_leave_a_monitors_memory_and_descriptors_where_they_were() {
    let count: usize =
        std::env::var("SAMPAN_TEST_EXECS").map_or(2000, |count| count.parse().expect("a number"));
    let pod = Pod::new();
    let client = pod.connect();
    pod.run(&client, "a", &["/bin/sleep", "100000"], Variation::default());
    let null: OwnedFd = fs::File::open("/dev/null").unwrap().into();
    let exec = || {
        let process = memory_file(&process(&["/bin/true"]));
        let request = Request::Exec { id: "a".to_owned(), exec: "test".to_owned() };
        client.send_with(&request, &[process.as_fd(), null.as_fd(), null.as_fd(), null.as_fd()]);
        assert!(matches!(client.receive(), Some(Response::ExecStarted { .. })));
        assert_eq!(client.receive(), Some(Response::ExecExited { exit_code: 0 }));
    };
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", pod.shim_pid())).unwrap().count();
    for _ in 0..count / 20 {
        exec();
    }
    let before = (own_memory(pod.shim_pid()), descriptors());
    for _ in 0..count {
        exec();
    }
    let after = own_memory(pod.shim_pid());
    println!("{count} execs: {} KiB before, {after} KiB after", before.0);
    assert!(after <= before.0 + SLACK_KIB, "{} KiB before, {after} KiB after", before.0);
    // Fewer, where the last of the first execs was still being cleared away.
    eventually("no descriptor is left", || descriptors() <= before.1);
    assert_eq!(client.state().len(), 1);
}
