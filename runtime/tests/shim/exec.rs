//! Processes that are run in a container beside its own.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use sampan_runtime::cgroup::{Layout, layout};
use sampan_runtime::shim::protocol::{ErrorKind, Request, Response};

use crate::client::Client;
use crate::pod::{Pod, Variation, eventually, memory_file, process};

fn sleeping(pod: &Pod) -> Client {
    let client = pod.connect();
    pod.run(&client, "a", &["/bin/sleep", "1000"], Variation::default());
    client
}

fn text(reader: OwnedFd) -> String {
    let mut text = String::new();
    File::from(reader).read_to_string(&mut text).unwrap();
    text
}

fn started(client: &Client) -> i32 {
    match client.receive() {
        Some(Response::ExecStarted { pid }) => pid,
        other => panic!("exec: {other:?}"),
    }
}

fn exec_directories(pod: &Pod) -> usize {
    let path = pod
        .cgroup_of("a")
        .paths()
        .into_iter()
        .find(|(name, _)| name == "freezer" || name == "unified")
        .unwrap()
        .1;
    let entries = std::fs::read_dir(path).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("exec-")).count()
}

/// How many cgroups stay for the next exec when one has ended by itself.
fn staying() -> usize {
    usize::from(layout().unwrap() == Layout::V2)
}

#[test]
fn an_exec_has_its_own_output_and_exit_code() {
    let pod = Pod::new();
    sleeping(&pod);
    let (client, output) = pod.exec("a", &["/bin/sh", "-c", "echo out; echo err >&2; hostname; exit 3"]);
    started(&client);
    assert_eq!(client.receive(), Some(Response::ExecExited { exit_code: 3 }));
    assert!(text(output).starts_with("out\nerr\n"));
    assert!(pod.lines("a").is_empty(), "nothing of it is in the container's log");
    eventually("its cgroup is gone, or is for others", || exec_directories(&pod) == staying());
}

#[test]
fn an_exec_sees_the_containers_processes() {
    let pod = Pod::new();
    sleeping(&pod);
    let (client, output) = pod.exec("a", &["/bin/ps", "-o", "pid,args"]);
    started(&client);
    assert_eq!(client.receive(), Some(Response::ExecExited { exit_code: 0 }));
    let text = text(output);
    assert!(text.contains("1 /bin/sleep 1000"), "{text}");
}

#[test]
fn closing_the_connection_kills_all_that_the_exec_made() {
    let pod = Pod::new();
    sleeping(&pod);
    let script = "setsid sleep 1001 & (setsid setsid sleep 1002 &) ; echo ready; sleep 1003";
    let (client, output) = pod.exec("a", &["/bin/sh", "-c", script]);
    started(&client);
    let mut output = File::from(output);
    output.read_exact(&mut [0; 6]).unwrap();
    // The shell itself becomes its last command.
    eventually("all are there", || {
        let sleeps = |pid: &i32| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep"))
        };
        pod.cgroup_of("a").pids().unwrap().iter().filter(|pid| sleeps(pid)).count() == 3
    });
    drop(client);
    eventually("only the container's own is left", || pod.cgroup_of("a").pids().unwrap().len() == 1);
    assert_eq!(output.read_to_end(&mut Vec::new()).unwrap(), 0, "nobody holds its output");
    eventually("its cgroup is gone", || exec_directories(&pod) == 0);
}

#[test]
fn what_an_exec_leaves_behind_by_its_own_end_lives_on() {
    let pod = Pod::new();
    sleeping(&pod);
    let (client, output) = pod.exec("a", &["/bin/sh", "-c", "sleep 1001 >/dev/null 2>&1 & echo $!"]);
    started(&client);
    assert_eq!(client.receive(), Some(Response::ExecExited { exit_code: 0 }));
    drop(client);
    text(output);
    eventually("its cgroup is gone, or is for others", || exec_directories(&pod) == staying());
    assert_eq!(pod.cgroup_of("a").pids().unwrap().len(), 2);
    // Who is killed in the same place does not take it along.
    let (client, _output) = pod.exec("a", &["/bin/sleep", "1002"]);
    started(&client);
    drop(client);
    eventually("its cgroup is gone", || exec_directories(&pod) == 0);
    assert_eq!(pod.cgroup_of("a").pids().unwrap().len(), 2);
}

#[test]
fn the_end_of_an_exec_is_told_though_somebody_holds_its_output() {
    let pod = Pod::new();
    sleeping(&pod);
    let (client, _output) = pod.exec("a", &["/bin/sh", "-c", "sleep 1001 & exit 4"]);
    started(&client);
    assert_eq!(client.receive(), Some(Response::ExecExited { exit_code: 4 }));
}

#[test]
fn a_program_that_is_missing_is_an_error() {
    let pod = Pod::new();
    sleeping(&pod);
    let (client, _output) = pod.exec("a", &["/nope"]);
    let Some(Response::Error { kind, message }) = client.receive() else { panic!("no error") };
    assert_eq!(kind, ErrorKind::InvalidArgument);
    assert!(message.contains("exec: \"/nope\": No such file or directory"), "{message}");
    eventually("its cgroup is gone", || exec_directories(&pod) == 0);
    // The connection is free again.
    assert_eq!(client.state().len(), 1);
}

#[test]
fn an_exec_needs_a_running_container_and_four_or_five_descriptors() {
    let pod = Pod::new();
    let client = pod.connect();
    let request = |id: &str| Request::Exec { id: id.to_owned(), exec: "x".to_owned() };
    assert_eq!(client.refused(&request("a")).0, ErrorKind::InvalidArgument);
    pod.create(&client, "a", &["/bin/true"], Variation::default());
    let (other, _output) = pod.exec("a", &["/bin/true"]);
    let Some(Response::Error { kind, .. }) = other.receive() else { panic!("no error") };
    assert_eq!(kind, ErrorKind::FailedPrecondition);
    let file = memory_file(&process(&["/bin/true"]));
    let many = vec![file.as_fd(); 6];
    client.send_with(&request("a"), &many);
    assert!(matches!(client.receive(), Some(Response::Error { kind: ErrorKind::InvalidArgument, .. })));
}

#[test]
fn the_end_of_the_container_ends_its_execs() {
    let pod = Pod::new();
    let (control, events) = (sleeping(&pod), pod.subscribe());
    let (client, _output) = pod.exec("a", &["/bin/sleep", "1001"]);
    started(&client);
    control.done(&Request::Kill { id: "a".into(), signal: 9, all: false });
    assert_eq!(client.receive(), Some(Response::ExecExited { exit_code: 137 }));
    assert_eq!(events.exit_of("a").code, 137);
    control.done(&Request::Forget { id: "a".into() });
}

#[test]
fn fifty_execs_leave_no_descriptor_and_at_most_one_cgroup() {
    let pod = Pod::new();
    let _control = sleeping(&pod);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", pod.shim_pid())).unwrap().count();
    let before = descriptors();
    for _ in 0..50 {
        let (client, _output) = pod.exec("a", &["/bin/true"]);
        started(&client);
        assert_eq!(client.receive(), Some(Response::ExecExited { exit_code: 0 }));
    }
    eventually("all is as it was", || descriptors() == before && exec_directories(&pod) == staying());
}
