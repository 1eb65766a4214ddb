//! Further processes in a running container.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use sampan_runtime::cgroup::{Cgroup, Layout, layout};
use sampan_runtime::container::{ExecFailure, Report};
use sampan_runtime::seccomp;
use serde_json::json;

use crate::fixture::{Bundle, shell_process};

crate::cases![
    exec_joins_every_namespace,
    exec_tells_its_exit_code_and_output,
    exec_has_the_containers_files_and_limits,
    exec_applies_user_and_capabilities,
    exec_loads_the_containers_filter,
    exec_of_a_missing_program_is_told,
    exec_working_directory_is_confined,
    exec_has_only_stdio,
    exec_in_an_exited_container_fails,
    exec_is_killed_by_its_cgroup,
    malformed_exec_is_told,
];

fn sleeper() -> Bundle {
    let bundle = Bundle::new(&["sleep", "1000"]);
    for applet in ["pidof", "setsid"] {
        symlink("busybox", bundle.inside("bin").join(applet)).unwrap();
    }
    bundle
}

fn exec_joins_every_namespace() {
    let bundle = sleeper();
    let container = bundle.spawn().started();
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
    let expected = kinds.map(|kind| {
        let link = fs::read_link(format!("/proc/{}/ns/{kind}", container.process.child.pid));
        format!("{}\n", link.unwrap().display())
    });
    let script = kinds.map(|kind| format!("readlink /proc/self/ns/{kind}")).join(";");
    let outcome = container.exec(&shell_process(&script));
    assert_eq!(outcome.stdout, expected.concat(), "{}", outcome.stderr);
    assert_eq!(
        container.exec(&shell_process("cat /proc/1/comm; cat /proc/sys/kernel/hostname")).stdout,
        "sleep\ninner\n"
    );
    assert_eq!(
        fs::read_link("/proc/self/ns/pid_for_children").unwrap(),
        fs::read_link("/proc/self/ns/pid").unwrap()
    );
    container.kill();
}

fn exec_tells_its_exit_code_and_output() {
    let bundle = sleeper();
    let container = bundle.spawn().started();
    let outcome = container.exec(&shell_process("echo out; echo err >&2; exit 7"));
    assert_eq!((outcome.report, outcome.code), (Report::Executed, 7));
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(container.exec(&shell_process("kill -9 $$")).code, 128 + 9);
    container.kill();
}

fn exec_has_the_containers_files_and_limits() {
    let bundle = sleeper();
    let container = bundle.spawn().started();
    let outcome = container.exec(&shell_process("echo made > /made; cat /proc/self/cgroup"));
    assert_eq!(fs::read_to_string(bundle.inside("made")).unwrap(), "made\n");
    let expected = match layout().unwrap() {
        Layout::V2 => vec!["0::/exec-1"],
        Layout::V1 => vec![":memory:/", ":freezer:/exec-1"],
        Layout::Hybrid => vec![":memory:/", ":freezer:/exec-1", "0::/"],
    };
    for end in expected {
        assert!(outcome.stdout.lines().any(|line| line.ends_with(end)), "{}", outcome.stdout);
    }
    container.kill();
}

fn exec_applies_user_and_capabilities() {
    let bundle = sleeper();
    let container = bundle.spawn().started();
    let mut process = shell_process("cat /proc/self/status; pwd; echo $A");
    process["user"] = json!({ "uid": 5, "gid": 6, "additionalGids": [7] });
    process["cwd"] = json!("/tmp");
    process["env"] = json!(["PATH=/bin", "A=b"]);
    let output = container.exec(&process).stdout;
    for line in [
        "Uid:\t5\t5\t5\t5",
        "Gid:\t6\t6\t6\t6",
        "CapBnd:\t00000000000005fb",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(output.lines().any(|found| found == line), "{line} in {output}");
    }
    assert!(output.contains("Groups:\t7 "), "{output}");
    assert!(output.ends_with("/tmp\nb\n"), "{output}");
    let mut bare = shell_process("cat /proc/self/status");
    bare["capabilities"] = json!(null);
    let output = container.exec(&bare).stdout;
    assert!(
        output.contains("CapBnd:\t0000000000000000") && output.contains("CapEff:\t0000000000000000"),
        "{output}"
    );
    container.kill();
}

fn exec_loads_the_containers_filter() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }]
    });
    for compiled in [true, false] {
        let mut bundle = sleeper();
        if compiled {
            let program = seccomp::compile(&serde_json::from_value(profile.clone()).unwrap()).unwrap();
            fs::write(bundle.path().join("seccomp.bpf"), program.to_bytes()).unwrap();
        } else {
            bundle = bundle.set("/linux/seccomp", profile.clone());
        }
        let container = bundle.spawn().started();
        let outcome = container.exec(&shell_process("mkdir /x"));
        assert!(outcome.stderr.contains("not supported"), "{outcome:?}");
        container.kill();
    }
}

fn exec_of_a_missing_program_is_told() {
    let bundle = sleeper();
    let container = bundle.spawn().started();
    let mut process = shell_process("");
    process["args"] = json!(["/nope"]);
    let outcome = container.exec(&process);
    let Report::Failed { message, exec } = outcome.report else { panic!("{outcome:?}") };
    assert!(message.starts_with("exec: \"/nope\": No such file or directory"), "{message}");
    assert_eq!((exec, outcome.code), (Some(ExecFailure::NotFound), 127));
    container.kill();
}

fn exec_working_directory_is_confined() {
    let bundle = sleeper();
    let container = bundle.spawn().started();
    for path in (0..12).map(|number| format!("/proc/self/fd/{number}")).chain(["/proc/1/cwd".to_owned()]) {
        let mut process = shell_process("pwd");
        process["cwd"] = json!(path);
        let outcome = container.exec(&process);
        assert!(matches!(outcome.report, Report::Failed { exec: None, .. }), "{path}: {outcome:?}");
    }
    let mut process = shell_process("pwd");
    process["cwd"] = json!("/not/there");
    let Report::Failed { message, .. } = container.exec(&process).report else { panic!("no failure") };
    assert!(message.starts_with("working directory /not/there"), "{message}");
    container.kill();
}

fn exec_has_only_stdio() {
    let bundle = sleeper();
    let container = bundle.spawn().started();
    let mut process = shell_process("");
    process["args"] = json!(["sleep", "1000"]);
    let process = container.exec_start(&process);
    assert_eq!(process.report(), Report::Executed);
    assert_eq!(process.descriptors(), ["0", "1", "2"]);
    // Pid 1 of a namespace ends only after all others in it were reaped.
    drop(process);
    container.kill();
}

fn exec_in_an_exited_container_fails() {
    let bundle = Bundle::new(&["true"]);
    let container = bundle.spawn().started();
    assert!(container.process.has_exited(Duration::from_secs(30)));
    // Its namespaces ended with it.
    let error = container.try_exec(&shell_process("true")).err().expect("nothing to join");
    assert_eq!(error.to_string(), "enter the pid namespace");
    assert_eq!(
        fs::read_link("/proc/self/ns/pid_for_children").unwrap(),
        fs::read_link("/proc/self/ns/pid").unwrap()
    );
}

fn exec_is_killed_by_its_cgroup() {
    let bundle = sleeper();
    let container = bundle.spawn().started();
    let process = container.exec_start(&shell_process("setsid sleep 1000 & sleep 1000 & wait"));
    assert_eq!(process.report(), Report::Executed);
    let cgroup = Cgroup::new_exec(&format!("{}/exec-1", bundle.cgroup)).unwrap();
    let since = std::time::Instant::now();
    while cgroup.pids().unwrap().len() < 3 {
        assert!(since.elapsed() < Duration::from_secs(30), "its processes are there");
        std::thread::sleep(Duration::from_millis(2));
    }
    cgroup.kill().unwrap();
    assert_eq!(process.finish(Report::Executed).code, 128 + 9);
    cgroup.remove(Duration::from_secs(30)).unwrap();
    assert!(!container.process.has_exited(Duration::ZERO));
    container.kill();
}

fn malformed_exec_is_told() {
    let bundle = sleeper();
    let container = bundle.spawn().started();
    let Report::Failed { message, .. } = container.exec(&json!({ "user": 7 })).report else {
        panic!("no failure")
    };
    assert!(message.starts_with("process.json is not a valid OCI configuration"), "{message}");
    container.kill();
}
