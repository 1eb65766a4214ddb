//! Clients that watch a container's output and write to its input.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use sampan_runtime::shim::protocol::{ErrorKind, Request, Response};

use crate::client::{Client, DEADLINE};
use crate::pod::{Pod, Variation, eventually};

/// An attachment: its connection, its input and the ends where output and errors come out.
struct Attached {
    client: Client,
    stdin: Option<File>,
    stdout: File,
    stderr: File,
}

fn attach(pod: &Pod) -> Attached {
    let client = pod.connect();
    let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
    let ((stdout, out), (stderr, err)) = (pipe(), pipe());
    client.send_with(&Request::Attach { id: "a".into() }, &[out.as_fd(), err.as_fd()]);
    let (answer, mut descriptors) = client.receive_with(DEADLINE).expect("in time").expect("an answer");
    assert_eq!(answer, Response::Attached);
    assert!(descriptors.len() <= 1);
    Attached {
        client,
        stdin: descriptors.pop().map(File::from),
        stdout: stdout.into(),
        stderr: stderr.into(),
    }
}

fn shell(pod: &Pod, script: &str, stdin: bool) {
    let variation = Variation { stdin, ..Default::default() };
    pod.run(&pod.connect(), "a", &["/bin/sh", "-c", script], variation);
}

/// As many bytes as `expected` has.
fn read(mut file: &File, expected: &str) {
    let mut text = vec![0; expected.len()];
    file.read_exact(&mut text).unwrap();
    assert_eq!(String::from_utf8_lossy(&text), expected);
}

fn rest(mut file: File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn all_who_are_attached_see_both_streams_and_their_end() {
    let pod = Pod::new();
    shell(&pod, "while read line; do echo got $line; echo err $line >&2; done; echo bye", true);
    let (mut one, two) = (attach(&pod), attach(&pod));
    one.stdin.as_mut().unwrap().write_all(b"x\n").unwrap();
    for attached in [&one, &two] {
        read(&attached.stdout, "got x\n");
        read(&attached.stderr, "err x\n");
    }
    // The input ends when the monitor and all who have attached have let go of it.
    one.client.done(&Request::CloseStdin { id: "a".into() });
    drop((one.stdin, two.stdin));
    assert_eq!(rest(one.stdout), "bye\n");
    assert_eq!(rest(two.stdout), "bye\n");
    assert_eq!(pod.lines("a").last().unwrap(), "stdout F bye");
}

#[test]
fn input_stays_open_when_a_client_goes() {
    let pod = Pod::new();
    shell(&pod, "while read line; do echo got $line; done; echo bye", true);
    for line in ["one", "two"] {
        let mut attached = attach(&pod);
        writeln!(attached.stdin.take().unwrap(), "{line}").unwrap();
        read(&attached.stdout, &format!("got {line}\n"));
    }
    assert_eq!(pod.connect().state().len(), 1);
    assert!(!pod.lines("a").contains(&"stdout F bye".to_owned()));
}

#[test]
fn a_client_that_does_not_read_blocks_nobody() {
    let pod = Pod::new();
    let attached = attach_to_flood(&pod);
    let seen = attach(&pod);
    // Read while it is written: the last line may be half there.
    let log = pod.path("a").join("log");
    let lines = || std::fs::read(&log).unwrap().iter().filter(|byte| **byte == b'\n').count();
    eventually("the container gets on", || lines() > 20_000);
    drop(seen);
    drop(attached);
}

fn attach_to_flood(pod: &Pod) -> Attached {
    shell(pod, "yes 0123456789012345678901234567890123456789 | head -n 30000; sleep 1000", false);
    attach(pod)
}

#[test]
fn without_a_pipe_there_is_no_input_and_without_a_log_there_is_output_all_the_same() {
    let pod = Pod::new();
    let variation = Variation { no_log: true, ..Default::default() };
    let request = pod.bundle("a", &["/bin/sh", "-c", "cat; echo out"], variation);
    let client = pod.connect();
    assert!(matches!(client.ask(&request), Response::Created { .. }));
    let attached = attach(&pod);
    assert!(attached.stdin.is_none());
    pod.start(&client, "a");
    assert_eq!(rest(attached.stdout), "out\n");
}

#[test]
fn senseless_attachments_are_refused() {
    let pod = Pod::new();
    let (reader, writer): (OwnedFd, OwnedFd) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let ask = |descriptors: &[_]| {
        let client = pod.connect();
        client.send_with(&Request::Attach { id: "a".into() }, descriptors);
        match client.receive() {
            Some(Response::Error { kind, .. }) => kind,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ask(&[writer.as_fd(), writer.as_fd()]), ErrorKind::NotFound);
    assert_eq!(ask(&[writer.as_fd()]), ErrorKind::InvalidArgument);
    pod.run_script("a", "exit", Variation::default());
    assert_eq!(ask(&[writer.as_fd(), writer.as_fd()]), ErrorKind::FailedPrecondition);
    drop(reader);
}

/// Whether the monitor sleeps: one that is told the same again and again never does.
fn rests(pod: &Pod) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pod.shim_pid())).unwrap();
    stat.rsplit(") ").next().unwrap().starts_with('S')
}

#[test]
fn a_terminal_that_nobody_has_open_is_left_alone_until_somebody_opens_it_again() {
    let pod = Pod::new();
    let variation = Variation { terminal: true, ..Default::default() };
    let script = "echo one; exec </dev/null >/dev/null 2>&1; read line </tmp/go; seq 5000 >/dev/console; exec sleep 1000";
    let script = format!("mkfifo /tmp/go; {script}");
    pod.run(&pod.connect(), "a", &["/bin/sh", "-c", &script], variation);
    eventually("it has spoken", || pod.lines("a").len() == 1);
    let pid = pod.cgroup_of("a").pids().unwrap()[0];
    eventually("it has closed the terminal", || {
        std::fs::read_link(format!("/proc/{pid}/fd/1")).unwrap().ends_with("null")
    });
    eventually("the monitor rests", || rests(&pod));
    std::fs::write(format!("/proc/{pid}/root/tmp/go"), "go\n").unwrap();
    eventually("all of it is read", || pod.lines("a").len() == 5001);
    eventually("the monitor rests", || rests(&pod));
}

#[test]
fn a_terminals_master_that_outlives_its_container_disturbs_nobody() {
    let pod = Pod::new();
    let (client, events) = (pod.connect(), pod.subscribe());
    let variation = Variation { terminal: true, ..Default::default() };
    pod.run(&client, "a", &["/bin/sh", "-c", "exec sleep 1000"], variation);
    let attached = attach(&pod);
    client.done(&Request::Kill { id: "a".into(), signal: 9, all: false });
    assert_eq!(events.exit_of("a").code, 137);
    assert!(attached.stdin.is_some(), "the master");
    eventually("the monitor rests", || rests(&pod));
}

#[test]
fn a_terminal_is_one_of_the_container_and_is_typed_on_and_resized_by_its_master() {
    let pod = Pod::new();
    let variation = Variation { stdin: true, terminal: true, ..Default::default() };
    let script = "tty; stty size; read line; echo got $line; stty size; echo err >&2; exit 3";
    let request = pod.bundle("a", &["/bin/sh", "-c", script], variation);
    let (client, events) = (pod.connect(), pod.subscribe());
    assert!(matches!(client.ask(&request), Response::Created { .. }));
    let attached = attach(&pod);
    let mut master = attached.stdin.expect("the master");
    let resize = |rows, columns| {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, size).unwrap();
    };
    resize(24, 80);
    pod.start(&client, "a");
    read(&attached.stdout, "/dev/pts/0\r\n24 80\r\n");
    resize(50, 100);
    master.write_all(b"hello\n").unwrap();
    assert_eq!(rest(attached.stdout), "hello\r\ngot hello\r\n50 100\r\nerr\r\n");
    assert_eq!(events.exit_of("a").code, 3);
    assert_eq!(
        pod.lines("a")[2..],
        ["stdout F hello", "stdout F got hello", "stdout F 50 100", "stdout F err"]
    );
}
