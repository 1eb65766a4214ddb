//! Who a process is, what it may, what it gets, and how it fails.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use sampan_runtime::container::{ExecFailure, Report};
use sampan_runtime::seccomp;
use serde_json::{Value, json};

use crate::fixture::Bundle;

crate::cases![
    exit_codes_and_signals_are_told,
    nothing_runs_before_the_start,
    lost_parent_ends_the_waiting_child,
    default_capabilities_are_exact,
    capabilities_that_the_runtime_lacks_are_left_out,
    inheritable_and_ambient_come_only_when_asked,
    no_capabilities_asked_means_none,
    no_new_privs_is_as_asked,
    user_and_groups_are_set,
    users_out_of_range_are_refused,
    user_can_reopen_its_stdout,
    umask_is_set,
    missing_working_directory_is_made,
    working_directory_is_confined,
    environment_is_exact,
    program_is_found_in_path,
    missing_program_is_told,
    file_that_is_no_program_is_told,
    script_without_its_interpreter_is_told,
    rlimits_are_set,
    rlimit_beyond_reach_is_an_error_that_names_it,
    oom_score_is_set_or_tolerated,
    seccomp_filter_is_loaded,
    seccomp_profile_is_compiled_when_there_is_no_program,
    broken_seccomp_program_is_refused,
    signals_are_at_their_defaults,
    only_stdio_is_open,
    malformed_configuration_is_told,
];

fn status(bundle: &Bundle) -> String {
    bundle.output()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t")).unwrap()
}

fn exit_codes_and_signals_are_told() {
    assert_eq!(Bundle::shell("exit 42").run().code, 42);
    // Its own pid 1 ignores signals that it doesn't handle, but not from outside.
    let bundle = Bundle::new(&["sleep", "1000"]);
    assert_eq!(bundle.spawn().started().kill().code, 128 + 9);
}

fn nothing_runs_before_the_start() {
    let bundle = Bundle::shell("echo ran > /ran");
    let container = bundle.spawn();
    assert_eq!(container.process.report(), Report::Ready);
    assert!(!container.process.has_exited(Duration::from_millis(50)));
    assert!(!bundle.inside("ran").exists());
    container.process.child.channel.start().unwrap();
    assert_eq!(container.finish(Report::Ready).code, 0);
    assert!(bundle.inside("ran").exists());
}

fn lost_parent_ends_the_waiting_child() {
    let bundle = Bundle::shell("echo ran > /ran");
    let container = bundle.spawn();
    assert_eq!(container.process.report(), Report::Ready);
    container.process.lose_channel();
    assert!(!bundle.inside("ran").exists());
}

fn default_capabilities_are_exact() {
    let status = status(&Bundle::new(&["cat", "/proc/self/status"]));
    // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE
    for (set, value) in [
        ("CapBnd", "00000000000005fb"),
        ("CapPrm", "00000000000005fb"),
        ("CapEff", "00000000000005fb"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
    ] {
        assert_eq!(field(&status, set), value, "{set}");
    }
}

fn capabilities_that_the_runtime_lacks_are_left_out() {
    let all: Vec<Value> =
        ["CAP_CHOWN", "CAP_SYS_RESOURCE", "CAP_SYS_ADMIN", "CAP_KILL", "CAP_CHECKPOINT_RESTORE"]
            .map(Value::from)
            .to_vec();
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = u64::from_str_radix(field(&own, "CapPrm"), 16).unwrap();
    let bundle = Bundle::new(&["cat", "/proc/self/status"])
        .set("/process/capabilities", json!({ "bounding": all, "permitted": all, "effective": all }));
    let status = status(&bundle);
    let asked = 1 | 1 << 5 | 1 << 21 | 1 << 24 | 1 << 40;
    assert_eq!(u64::from_str_radix(field(&status, "CapEff"), 16).unwrap(), asked & own);
    assert_eq!(u64::from_str_radix(field(&status, "CapBnd"), 16).unwrap(), asked & own);
}

fn inheritable_and_ambient_come_only_when_asked() {
    let set = json!(["CAP_NET_BIND_SERVICE"]);
    let sets =
        json!({ "bounding": set, "permitted": set, "effective": set, "inheritable": set, "ambient": set });
    let bundle = Bundle::new(&["cat", "/proc/self/status"])
        .set("/process/capabilities", sets)
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    let status = status(&bundle);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000400", "{set}");
    }
}

fn no_capabilities_asked_means_none() {
    let bundle = Bundle::new(&["cat", "/proc/self/status"]).set("/process/capabilities", Value::Null);
    let status = status(&bundle);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
}

fn no_new_privs_is_as_asked() {
    for asked in [true, false] {
        let bundle = Bundle::new(&["cat", "/proc/self/status"]).set("/process/noNewPrivileges", json!(asked));
        assert_eq!(field(&status(&bundle), "NoNewPrivs"), if asked { "1" } else { "0" });
    }
}

fn user_and_groups_are_set() {
    let bundle = Bundle::new(&["cat", "/proc/self/status"])
        .set("/process/user", json!({ "uid": 1000, "gid": 1001, "additionalGids": [7, 2000] }));
    let status = status(&bundle);
    assert_eq!(field(&status, "Uid"), "1000\t1000\t1000\t1000");
    assert_eq!(field(&status, "Gid"), "1001\t1001\t1001\t1001");
    assert_eq!(field(&status, "Groups").trim_end(), "7 2000");
    assert_eq!(field(&status, "CapEff"), "0000000000000000");
    assert_eq!(field(&status, "CapBnd"), "00000000000005fb");
}

fn users_out_of_range_are_refused() {
    for user in [
        json!({ "uid": 2147483648u32, "gid": 0 }),
        json!({ "uid": 0, "gid": u32::MAX }),
        json!({ "uid": 0, "gid": 0, "additionalGids": [u32::MAX] }),
    ] {
        assert!(Bundle::new(&["true"]).set("/process/user", user).failure().0.ends_with("is out of range"));
    }
    let (message, _) = Bundle::new(&["true"]).set("/process/user", json!({ "uid": -1, "gid": 0 })).failure();
    assert!(message.contains("not a valid OCI configuration"), "{message}");
}

fn user_can_reopen_its_stdout() {
    let bundle = Bundle::shell("echo again > /proc/self/fd/1")
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    assert_eq!(bundle.output(), "again\n");
    assert_eq!(
        std::os::unix::fs::MetadataExt::uid(&fs::metadata("/dev/null").unwrap()),
        0,
        "stdin is left alone"
    );
}

fn umask_is_set() {
    let show = "umask";
    assert_eq!(Bundle::shell(show).output(), "0022\n");
    let user = json!({ "uid": 0, "gid": 0, "umask": 0o077 });
    assert_eq!(Bundle::shell(show).set("/process/user", user).output(), "0077\n");
}

fn missing_working_directory_is_made() {
    let bundle =
        Bundle::shell("pwd").set("/process/cwd", json!("/app/here")).set("/root/readonly", json!(true));
    assert_eq!(bundle.output(), "/app/here\n");
}

fn working_directory_is_confined() {
    for path in ["/../../../..", "/bin/../.."] {
        assert_eq!(Bundle::shell("pwd").set("/process/cwd", json!(path)).output(), "/\n");
    }
    for number in 0..12 {
        let path = format!("/proc/self/fd/{number}");
        let (message, code) = Bundle::shell("pwd").set("/process/cwd", json!(path)).failure();
        assert!(message.starts_with("working directory /proc/self/fd/"), "{message}");
        assert_eq!(code, 128);
    }
    let bundle = Bundle::shell("pwd").set("/process/cwd", json!("/link"));
    symlink("/proc/self/fd/7", bundle.inside("link")).unwrap();
    assert!(bundle.failure().0.starts_with("working directory /link"));
    let bundle = Bundle::shell("pwd").set("/process/cwd", json!("/bin/busybox"));
    assert!(bundle.failure().0.contains("Not a directory"));
}

fn environment_is_exact() {
    let bundle = Bundle::new(&["env"]).set("/process/env", json!(["PATH=/bin", "A=b c", "EMPTY="]));
    assert_eq!(bundle.output(), "PATH=/bin\nA=b c\nEMPTY=\n");
}

fn program_is_found_in_path() {
    let bundle = Bundle::new(&["tool"]).set("/process/env", json!(["PATH=/none:/opt:/bin"]));
    fs::create_dir(bundle.inside("opt")).unwrap();
    fs::write(bundle.inside("opt/tool"), "#!/bin/sh\necho found $0\n").unwrap();
    fs::set_permissions(bundle.inside("opt/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(bundle.output(), "found /opt/tool\n");
}

fn exec_failure(bundle: &Bundle) -> (String, Option<ExecFailure>, i32) {
    let outcome = bundle.run();
    let Report::Failed { message, exec } = outcome.report else { panic!("{outcome:?}") };
    (message, exec, outcome.code)
}

fn missing_program_is_told() {
    let (message, exec, code) = exec_failure(&Bundle::new(&["/nope"]));
    assert!(message.starts_with("exec: \"/nope\": No such file or directory"), "{message}");
    assert_eq!((exec, code), (Some(ExecFailure::NotFound), 127));
    let (message, exec, code) = exec_failure(&Bundle::new(&["nope"]));
    assert_eq!(message, "exec: \"nope\": executable file not found in $PATH");
    assert_eq!((exec, code), (Some(ExecFailure::NotFound), 127));
    assert_eq!(exec_failure(&Bundle::new(&[])).1, None);
}

fn file_that_is_no_program_is_told() {
    for (path, mode, text) in
        [("etc/file", 0o644, "Permission denied"), ("etc/file", 0o755, "Exec format error")]
    {
        let bundle = Bundle::new(&[&format!("/{path}")]);
        fs::write(bundle.inside(path), "text").unwrap();
        fs::set_permissions(bundle.inside(path), fs::Permissions::from_mode(mode)).unwrap();
        let (message, exec, code) = exec_failure(&bundle);
        assert!(message.starts_with("exec: \"/etc/file\": ") && message.contains(text), "{message}");
        assert_eq!((exec, code), (Some(ExecFailure::NotExecutable), 126));
    }
    let (_, exec, code) = exec_failure(&Bundle::new(&["/etc"]));
    assert_eq!((exec, code), (Some(ExecFailure::NotExecutable), 126));
}

fn script_without_its_interpreter_is_told() {
    let bundle = Bundle::new(&["/script"]);
    fs::write(bundle.inside("script"), "#!/bin/bash\n").unwrap();
    fs::set_permissions(bundle.inside("script"), fs::Permissions::from_mode(0o755)).unwrap();
    let (message, exec, code) = exec_failure(&bundle);
    assert!(message.contains("interpreter"), "{message}");
    assert_eq!((exec, code), (Some(ExecFailure::NotFound), 127));
}

fn rlimits_are_set() {
    let bundle = Bundle::shell("ulimit -n; ulimit -Hn; ulimit -c").set(
        "/process/rlimits",
        json!([
            { "type": "RLIMIT_NOFILE", "soft": 3, "hard": 64 },
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }
        ]),
    );
    assert_eq!(bundle.output(), "3\n64\n0\n");
}

fn rlimit_beyond_reach_is_an_error_that_names_it() {
    let limit = json!([{ "type": "RLIMIT_NOFILE", "soft": u64::MAX, "hard": u64::MAX }]);
    let (message, _) = Bundle::new(&["true"]).set("/process/rlimits", limit).failure();
    assert!(message.starts_with("limit RLIMIT_NOFILE (soft "), "{message}");
}

fn oom_score_is_set_or_tolerated() {
    let show = || Bundle::new(&["cat", "/proc/self/oom_score_adj"]);
    assert_eq!(show().set("/process/oomScoreAdj", json!(500)).output(), "500\n");
    show().set("/process/oomScoreAdj", json!(-999)).output();
    assert!(
        show().set("/process/oomScoreAdj", json!(5000)).failure().0.starts_with("set oom_score_adj to 5000")
    );
}

fn profile() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }]
    })
}

fn seccomp_filter_is_loaded() {
    for no_new_privs in [true, false] {
        let bundle = Bundle::shell("mkdir /x; cat /proc/self/status")
            .set("/process/noNewPrivileges", json!(no_new_privs));
        let program = seccomp::compile(&serde_json::from_value(profile()).unwrap()).unwrap();
        fs::write(bundle.path().join("seccomp.bpf"), program.to_bytes()).unwrap();
        let outcome = bundle.run();
        assert!(outcome.stderr.contains("not supported"), "{outcome:?}");
        assert_eq!(field(&outcome.stdout, "Seccomp"), "2");
    }
}

fn seccomp_profile_is_compiled_when_there_is_no_program() {
    let outcome = Bundle::shell("mkdir /x; exit 3").set("/linux/seccomp", profile()).run();
    assert!(outcome.stderr.contains("not supported"), "{outcome:?}");
    assert_eq!(outcome.code, 3);
    let default = seccomp::default_profile(&Default::default());
    let bundle = Bundle::new(&["true"]).set("/linux/seccomp", serde_json::to_value(default).unwrap());
    assert_eq!(bundle.run().code, 0, "the default profile lets a program start and fail");
    let default = bundle.spec["linux"]["seccomp"].clone();
    assert_eq!(exec_failure(&Bundle::new(&["/nope"]).set("/linux/seccomp", default)).2, 127);
}

fn broken_seccomp_program_is_refused() {
    let bundle = Bundle::new(&["true"]);
    fs::write(bundle.path().join("seccomp.bpf"), [0; 7]).unwrap();
    assert!(bundle.failure().0.starts_with("prepare the seccomp filter"));
    fs::write(bundle.path().join("seccomp.bpf"), [0xff; 16]).unwrap();
    assert!(bundle.failure().0.starts_with("load the seccomp filter"));
}

fn signals_are_at_their_defaults() {
    let status = status(&Bundle::new(&["cat", "/proc/self/status"]));
    for set in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
}

fn only_stdio_is_open() {
    // Descriptors of the parent that survive exec, as an inattentive one leaves them.
    let stray = rustix::io::fcntl_dupfd_cloexec(fs::File::open("/").unwrap(), 20).unwrap();
    rustix::io::fcntl_setfd(&stray, rustix::io::FdFlags::empty()).unwrap();
    let bundle = Bundle::new(&["sleep", "1000"]);
    let container = bundle.spawn().started();
    assert_eq!(container.process.descriptors(), ["0", "1", "2"]);
    container.kill();
}

fn malformed_configuration_is_told() {
    let bundle = Bundle::new(&["true"]).set("/mounts/0/destination", json!(7));
    let (message, _) = bundle.failure();
    assert!(message.contains("config.json is not a valid OCI configuration: invalid type"), "{message}");
    for field in ["process", "root", "linux"] {
        let mut bundle = Bundle::new(&["true"]);
        bundle.spec.as_object_mut().unwrap().remove(field);
        assert_eq!(bundle.failure().0, format!("the configuration has no {field}"));
    }
}
