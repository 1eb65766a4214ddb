//! What runc does where the specification leaves it open, and what the specification says and few configurations ask for.

use std::fs;

use sampan_runtime::cgroup::{Layout, layout};
use serde_json::{Value, json};

use crate::fixture::{Bundle, eventually};

/// A namespace that the configuration doesn't list, or one by its path.
fn with_mounts_of(bundle: Bundle, path: Option<&str>) -> Bundle {
    let mut list = bundle.spec["linux"]["namespaces"].as_array().unwrap().clone();
    list.retain(|namespace| namespace["type"] != "mount");
    list.extend(path.map(|path| json!({ "type": "mount", "path": path })));
    bundle.set("/linux/namespaces", json!(list))
}

#[test]
fn the_environment_has_a_home_and_each_variable_once() {
    let env = |variables: &[&str]| {
        let bundle = Bundle::new(&["env"]).set("/process/env", json!(variables));
        let passwd = "root:x:0:0:root:/root-of-image:/bin/sh\nuser:x:7:7::/home/user:/bin/sh\n";
        fs::write(bundle.inside("etc/passwd"), passwd).unwrap();
        bundle
    };
    let path = "PATH=/bin";
    assert_eq!(env(&[path]).run().success(), "PATH=/bin\nHOME=/root-of-image\n");
    assert_eq!(env(&["HOME=/x", path, "HOME="]).run().success(), "PATH=/bin\nHOME=/root-of-image\n");
    assert_eq!(env(&["HOME=/x", path]).run().success(), "HOME=/x\nPATH=/bin\n");
    assert_eq!(env(&["A=1", path, "HOME=/", "A=2"]).run().success(), "PATH=/bin\nHOME=/\nA=2\n");
    let other = env(&[path]).set("/process/user", json!({ "uid": 7, "gid": 7 }));
    assert_eq!(other.run().success(), "PATH=/bin\nHOME=/home/user\n");
    let unknown = env(&[path]).set("/process/user", json!({ "uid": 9, "gid": 9 }));
    assert_eq!(unknown.run().success(), "PATH=/bin\nHOME=/\n");
    let bundle = env(&[path]).set("/process/args", json!(["sleep", "100"])).started();
    assert_eq!(bundle.exec(&["--user", "7", "sh", "-c", "echo $HOME"]).success(), "/home/user\n");
}

#[test]
fn a_container_without_a_mount_namespace_leaves_no_mounts() {
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    let script = "readlink /proc/self/ns/mnt; ls -d /bin/busybox /proc/1; echo x > /dev/null";
    let bundle = with_mounts_of(Bundle::shell(script), None);
    assert_eq!(bundle.run().success(), format!("{}\n/bin/busybox\n/proc/1\n", own.display()));
    let bundle = with_mounts_of(Bundle::new(&["sleep", "100"]), None).started();
    let inside = bundle.inside("proc");
    let mounted = || fs::read_to_string("/proc/self/mountinfo").unwrap().contains(inside.to_str().unwrap());
    assert!(mounted());
    bundle.verb(&["delete", "--force", &bundle.id]).success();
    assert!(!mounted());
    // One that fails half-way leaves none either, and the host's own mounts never change.
    let bundle = with_mounts_of(Bundle::new(&["/none"]), None);
    bundle.create().failure();
    let refused = with_mounts_of(Bundle::new(&["true"]).mapped(), None);
    assert!(refused.create().failure().contains("mount namespace"));
}

#[test]
fn a_mount_namespace_can_be_joined() {
    let mut holder = std::process::Command::new("unshare");
    let mut holder = holder.args(["--mount", "--propagation", "private", "sleep", "100"]).spawn().unwrap();
    let path = format!("/proc/{}/ns/mnt", holder.id());
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    eventually("a namespace is there", || fs::read_link(&path).is_ok_and(|found| found != own));
    let expected = fs::read_link(&path).unwrap();
    let bundle = with_mounts_of(Bundle::new(&["readlink", "/proc/self/ns/mnt"]), Some(&path));
    assert_eq!(bundle.run().success(), format!("{}\n", expected.display()));
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn what_outlives_the_first_process_can_be_killed() {
    let bundle = Bundle::shell("sleep 100 & exec sleep 100");
    let mut list = bundle.spec["linux"]["namespaces"].as_array().unwrap().clone();
    list.retain(|namespace| namespace["type"] != "pid");
    let bundle = bundle.set("/linux/namespaces", json!(list)).started();
    let pids = || bundle.cgroup().pids().unwrap();
    eventually("two processes", || pids().len() == 2);
    let state: Value = serde_json::from_str(&bundle.verb(&["state", &bundle.id]).success()).unwrap();
    let first = rustix::process::Pid::from_raw(state["pid"].as_i64().unwrap() as i32).unwrap();
    rustix::process::kill_process(first, rustix::process::Signal::KILL).unwrap();
    eventually("the first has gone", || bundle.status() == "stopped");
    assert!(bundle.verb(&["kill", &bundle.id, "TERM"]).failure().contains("not running"));
    bundle.verb(&["kill", &bundle.id, "KILL"]).success();
    eventually("nothing is left", || pids().is_empty());
    assert!(bundle.verb(&["kill", &bundle.id, "KILL"]).failure().contains("not running"));
    bundle.verb(&["kill", "--all", &bundle.id, "KILL"]).success();
}

#[test]
fn a_cgroup_with_processes_is_no_containers() {
    let first = Bundle::new(&["sleep", "100"]).started();
    let path = match std::env::var_os("SAMPAN_TEST_CGROUP") {
        Some(_) => return assert_eq!(first.status(), "running", "scopes have names of their own"),
        None => format!("/{}", first.id),
    };
    let second = Bundle::new(&["true"]).set("/linux/cgroupsPath", json!(path));
    assert!(second.create().failure().contains("container's cgroup is not empty: 1 process"));
    assert_eq!((first.status().as_str(), first.cgroup().pids().unwrap().len()), ("running", 1));
    // One that is frozen would hold its processes for ever.
    first.verb(&["pause", &first.id]).success();
    assert!(second.create().failure().contains("unexpectedly frozen"));
    first.verb(&["resume", &first.id]).success();
}

#[test]
fn mounts_keep_a_directorys_mode_and_a_closed_dev() {
    use std::os::unix::fs::PermissionsExt;
    let tmpfs = |options: &[&str]| json!({ "destination": "/mode", "type": "tmpfs", "source": "tmpfs", "options": options });
    for (options, mode) in [(&["nosuid"][..], "710"), (&["mode=1500"], "1500")] {
        let bundle = Bundle::new(&["stat", "-c", "%a", "/mode"]).push("/mounts", tmpfs(options));
        fs::create_dir(bundle.inside("mode")).unwrap();
        fs::set_permissions(bundle.inside("mode"), fs::Permissions::from_mode(0o710)).unwrap();
        assert_eq!(bundle.run().success().trim(), mode);
    }
    let missing = Bundle::new(&["stat", "-c", "%a", "/mode"]).push("/mounts", tmpfs(&[]));
    assert_eq!(missing.run().success().trim(), "1777");

    let bundle = Bundle::shell("touch /dev/new 2>&1; echo x > /dev/null && ls /dev/pts/ptmx")
        .set("/linux/devices", json!([{ "path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2 }]));
    let at =
        bundle.spec["mounts"].as_array().unwrap().iter().position(|mount| mount["destination"] == "/dev");
    let bundle = bundle.push(&format!("/mounts/{}/options", at.unwrap()), json!("ro"));
    let output = bundle.run().success();
    assert!(output.contains("Read-only file system") && output.ends_with("/dev/pts/ptmx\n"), "{output}");
}

#[test]
fn a_filter_need_not_know_calls_of_ours() {
    // As profiles were before close_range, openat2 and their like.
    let calls = json!([
        "access",
        "arch_prctl",
        "brk",
        "capget",
        "capset",
        "chdir",
        "clone",
        "close",
        "dup2",
        "execve",
        "exit",
        "exit_group",
        "fchdir",
        "fcntl",
        "fork",
        "fstat",
        "getcwd",
        "getdents64",
        "getgid",
        "getpid",
        "getppid",
        "getrandom",
        "getuid",
        "geteuid",
        "getegid",
        "ioctl",
        "lseek",
        "lstat",
        "mmap",
        "mprotect",
        "munmap",
        "newfstatat",
        "open",
        "openat",
        "poll",
        "prctl",
        "prlimit64",
        "read",
        "readlink",
        "rseq",
        "rt_sigaction",
        "rt_sigprocmask",
        "rt_sigreturn",
        "set_robust_list",
        "set_tid_address",
        "setgid",
        "setgroups",
        "setresgid",
        "setresuid",
        "setuid",
        "stat",
        "umask",
        "wait4",
        "write",
        "writev"
    ]);
    for no_new_privileges in [false, true] {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{ "names": calls, "action": "SCMP_ACT_ALLOW" }],
        });
        let bundle = Bundle::shell("echo started")
            .set("/process/noNewPrivileges", json!(no_new_privileges))
            .set("/process/user", json!({ "uid": 1, "gid": 1, "additionalGids": [2] }))
            .set("/linux/seccomp", profile);
        assert_eq!(bundle.run().success(), "started\n", "{no_new_privileges}");
    }
}

#[test]
fn hooks_of_the_containers_own_files_have_its_environment_and_no_more_rights() {
    let script = "echo $KEPT $HOME; id -u; cat /proc/self/status | while read name value rest; do \
                  case $name in CapBnd:|CapEff:|Seccomp:|NoNewPrivs:) echo $name $value;; esac; done";
    let hook =
        |script: &str| json!({ "path": "/bin/sh", "args": ["sh", "-c", format!("({script}) > /tmp/seen")] });
    let seccomp = json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"] });
    let bundle = Bundle::shell(script)
        .set("/process/env", json!(["PATH=/bin", "KEPT=yes"]))
        .set("/process/user", json!({ "uid": 1, "gid": 1 }))
        .set("/linux/seccomp", seccomp)
        .set("/hooks", json!({ "startContainer": [hook(script)] }));
    std::os::unix::fs::chown(bundle.inside("tmp"), Some(1), Some(1)).unwrap();
    let of_program = bundle.run().success();
    assert!(of_program.starts_with("yes /\n1\n") && of_program.contains("Seccomp: 2"), "{of_program}");
    assert_eq!(fs::read_to_string(bundle.inside("tmp/seen")).unwrap(), of_program);
}

#[test]
fn destinations_may_begin_with_the_roots_path_on_the_host() {
    let bundle = Bundle::new(&["cat", "/below/here"]);
    let source = bundle.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("here"), "seen\n").unwrap();
    let mount = json!({
        "type": "bind", "source": source, "destination": bundle.inside("below"), "options": ["rbind", "ro"],
    });
    let bundle = bundle.push("/mounts", mount);
    assert_eq!(bundle.run().success(), "seen\n");
    assert!(bundle.inside("below").is_dir());
    assert!(!bundle.inside("").join(bundle.path().strip_prefix("/").unwrap()).exists());
}

/// The words by which callers and runc's own tests know what is wrong.
#[test]
fn refusals_have_runcs_words() {
    let refused = |bundle: Bundle| bundle.run().failure();
    let policy = |policy: Value| Bundle::new(&["true"]).set("/linux/memoryPolicy", policy);
    let error = refused(policy(json!({ "mode": "MPOL_DEFAULT", "nodes": "0-7" })));
    assert!(error.contains("mode requires 0 nodes but got 8"), "{error}");
    let error = refused(policy(json!({ "mode": "MPOL_BIND", "nodes": "0-9876543210" })));
    assert!(error.contains("invalid memory policy node"), "{error}");
    let notify = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/nonexistent/agent.sock",
        "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }],
    });
    let error = refused(Bundle::new(&["true"]).set("/linux/seccomp", notify));
    assert!(error.contains("failed to connect with seccomp agent"), "{error}");
    let forbidden = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["uname"], "action": "SCMP_ACT_KILL" }] });
    let hook = json!({ "startContainer": [{ "path": "/bin/uname", "args": ["uname"] }] });
    let error = refused(Bundle::new(&["true"]).set("/linux/seccomp", forbidden).set("/hooks", hook));
    assert!(error.contains("bad system call"), "{error}");
    if layout().unwrap() != Layout::V2 {
        let unified = json!({ "memory.min": "131072" });
        let error = refused(Bundle::new(&["true"]).set("/linux/resources/unified", unified));
        assert!(error.contains("invalid configuration"), "{error}");
    }
}
