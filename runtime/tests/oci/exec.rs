//! Further processes in a container, with and without a terminal.

use std::io::{IoSliceMut, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use serde_json::json;

use crate::fixture::{Bundle, eventually};

#[test]
fn exec_runs_a_program_and_gives_its_code() {
    let bundle = Bundle::new(&["sleep", "100"]).started();
    let done = bundle.exec(&["sh", "-c", "echo $0 $A; pwd; exit 7", "-x"]);
    assert_eq!((done.code, done.stdout.as_str()), (7, "-x\n/\n"));
    let id = bundle.id.as_str();
    let options = [
        "exec",
        "-e",
        "A=b",
        "--cwd",
        "/tmp",
        "-u",
        "5:6",
        "-g",
        "7",
        id,
        "sh",
        "-c",
        "echo $A; pwd; id -u; id -G",
    ];
    assert_eq!(bundle.verb(&options).success(), "b\n/tmp\n5\n6 7\n");
    let process = bundle.path().join("process.json");
    let text = json!({ "args": ["echo", "from a file"], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } });
    std::fs::write(&process, text.to_string().replace("echo", "/bin/busybox\",\"echo")).unwrap();
    assert_eq!(bundle.verb(&["exec", "--process", process.to_str().unwrap(), id]).success(), "from a file\n");
}

#[test]
fn exec_of_what_is_not_there_says_so() {
    let bundle = Bundle::new(&["sleep", "100"]).started();
    let done = bundle.exec(&["nope"]);
    assert_eq!(done.code, 255);
    assert!(done.stderr.contains("executable file not found in $PATH"), "{}", done.stderr);
    assert!(bundle.exec(&[]).failure().contains("cannot be empty"));
}

#[test]
fn a_detached_exec_lives_on_in_the_containers_cgroup() {
    let bundle = Bundle::new(&["sleep", "100"]).started();
    let pid_file = bundle.path().join("exec.pid");
    let out = std::fs::File::create(bundle.path().join("exec.out")).unwrap();
    let options = ["exec", "-d", "--pid-file", pid_file.to_str().unwrap(), &bundle.id, "sleep", "50"];
    let status = bundle.command(&options).stdout(out.try_clone().unwrap()).stderr(out).status().unwrap();
    assert!(status.success());
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    assert!(bundle.verb(&["ps", "-f", "json", &bundle.id]).success().contains(&pid));
}

/// The master end of a terminal, as a caller gets it.
fn master(listener: &UnixListener) -> std::fs::File {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (connection, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0u8; 64];
    recvmsg(&connection, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let fd: OwnedFd = descriptors.flatten().next().expect("a descriptor");
    fd.into()
}

/// Everything that is written to a terminal until its other end is closed.
fn read_all(mut terminal: std::fs::File) -> String {
    let mut text = Vec::new();
    let mut buffer = [0u8; 256];
    while let Ok(count @ 1..) = terminal.read(&mut buffer) {
        text.extend(&buffer[..count]);
    }
    String::from_utf8_lossy(&text).replace('\r', "")
}

#[test]
fn a_terminal_goes_to_the_callers_socket() {
    let bundle = Bundle::shell("tty; stty size; test /dev/console -ef /dev/pts/0 && echo same")
        .set("/process/terminal", json!(true))
        .set("/process/consoleSize", json!({ "height": 31, "width": 77 }));
    bundle.write();
    let path = bundle.path().join("console");
    let listener = UnixListener::bind(&path).unwrap();
    let (folder, socket) = (bundle.path().to_str().unwrap(), path.to_str().unwrap());
    bundle.verb(&["create", "-b", folder, "--console-socket", socket, &bundle.id]).success();
    let terminal = master(&listener);
    bundle.verb(&["start", &bundle.id]).success();
    assert_eq!(read_all(terminal), "/dev/pts/0\n31 77\nsame\n");
}

#[test]
fn an_exec_can_have_a_terminal_too() {
    for bundle in [Bundle::new(&["sleep", "100"]), Bundle::new(&["sleep", "100"]).mapped()] {
        let bundle = bundle.started();
        let path = bundle.path().join("console");
        let listener = UnixListener::bind(&path).unwrap();
        let socket = path.to_str().unwrap();
        let options = ["exec", "-t", "-d", "--console-socket", socket, &bundle.id, "sh", "-c", "tty; id -u"];
        bundle.verb(&options).success();
        assert_eq!(read_all(master(&listener)), "/dev/pts/0\n0\n");
    }
}

#[test]
fn terminals_and_sockets_go_together() {
    let bundle = Bundle::new(&["true"]).set("/process/terminal", json!(true));
    assert!(bundle.create().failure().contains("without setting console socket"));
    let bundle = Bundle::new(&["true"]);
    bundle.write();
    let folder = bundle.path().to_str().unwrap();
    let told = bundle.verb(&["create", "-b", folder, "--console-socket", "/nope", &bundle.id]).failure();
    assert!(told.contains("no terminal"), "{told}");
}

#[test]
fn descriptors_are_passed_on_only_when_asked() {
    let bundle = Bundle::shell("ls /proc/self/fd");
    bundle.write();
    let script = |options: &str| {
        let (state, folder) = (bundle.path().join("state"), bundle.path());
        let runtime = crate::fixture::RUNTIME;
        format!(
            "exec 3</dev/null 4</dev/null 9</dev/null; {runtime} --root {} run -b {} {options} {}",
            state.display(),
            folder.display(),
            bundle.id
        )
    };
    let run = |options: &str| {
        let output = std::process::Command::new("bash").args(["-c", &script(options)]).output().unwrap();
        crate::fixture::Done::of(output)
    };
    // ls itself has the directory open.
    assert_eq!(run("").success().lines().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    assert_eq!(run("--preserve-fds 2").success().lines().collect::<Vec<_>>(), ["0", "1", "2", "3", "4", "5"]);
    assert!(run("--preserve-fds 3").failure().contains("bad file descriptor"));
    eventually("all is gone", || bundle.verb(&["list", "-q"]).success().is_empty());
}
