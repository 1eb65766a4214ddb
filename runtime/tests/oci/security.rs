//! Attacks by the container on the runtime that are particular to the command line.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;

use crate::fixture::{Bundle, RUNTIME};

/// CVE-2024-21626, CVE-2016-9962.
#[test]
fn a_working_directory_among_the_runtimes_descriptors_is_refused() {
    for number in 3..=64 {
        let cwd = format!("/proc/self/fd/{number}");
        let bundle = Bundle::new(&["sleep", "100"]).set("/process/cwd", json!(cwd));
        let done = bundle.run();
        assert_ne!(done.code, 0, "{cwd}");
    }
    let bundle = Bundle::new(&["sleep", "100"]).started();
    for number in 3..=64 {
        let cwd = format!("/proc/self/fd/{number}");
        assert_ne!(bundle.verb(&["exec", "--cwd", &cwd, &bundle.id, "true"]).code, 0, "{cwd}");
    }
}

/// CVE-2024-21626: what the runtime has open doesn't reach the program.
#[test]
fn a_program_has_three_descriptors() {
    let bundle = Bundle::shell("ls -l /proc/self/fd | /bin/busybox wc -l; exec sleep 100").started();
    let listing = bundle.exec(&["sh", "-c", "ls /proc/1/fd"]).success();
    assert_eq!(listing.lines().collect::<Vec<_>>(), ["0", "1", "2"]);
}

/// CVE-2019-5736: a program that is the runtime's own file is executed again and again, as an entrypoint and by exec,
/// while another in the same pid namespace opens for writing whatever anybody there executes.
#[test]
fn the_runtime_can_not_be_overwritten_by_what_it_executes() {
    const ATTACK: &str = "while :; do for exe in /proc/[0-9]*/exe; do
            (echo overwritten >> $exe) 2>/dev/null; (: > $exe) 2>/dev/null;
            (exec 9<$exe; sleep 0.1; echo overwritten >> /proc/self/fd/9) 2>/dev/null &
        done; sleep 0.01; done";
    let before = (fs::metadata(RUNTIME).unwrap(), fs::read(RUNTIME).unwrap());
    let evil = |bundle: &Bundle| {
        fs::write(bundle.inside("bin/evil"), "#!/proc/self/exe --version\n").unwrap();
        fs::set_permissions(bundle.inside("bin/evil"), fs::Permissions::from_mode(0o755)).unwrap();
    };
    // Its own program is another file, or it would be the one that is written to.
    let attacker = Bundle::shell(ATTACK);
    evil(&attacker);
    let attacker = attacker.started();
    let state = attacker.verb(&["state", &attacker.id]).success();
    let pid = serde_json::from_str::<serde_json::Value>(&state).unwrap()["pid"].clone();
    let mut second = Bundle::new(&["/bin/evil"]);
    for namespace in second.spec["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "pid" {
            namespace["path"] = json!(format!("/proc/{pid}/ns/pid"));
        }
    }
    evil(&second);
    for _ in 0..20 {
        attacker.exec(&["/bin/evil"]);
        second.run();
    }
    attacker.exec(&[
        "sh",
        "-c",
        "(: > /proc/self/exe); for i in 1 2 3; do (: > /proc/1/exe) 2>/dev/null; done",
    ]);
    let after = (fs::metadata(RUNTIME).unwrap(), fs::read(RUNTIME).unwrap());
    assert_eq!(
        (before.0.ino(), before.0.len(), before.0.mtime_nsec()),
        (after.0.ino(), after.0.len(), after.0.mtime_nsec())
    );
    assert!(before.1 == after.1, "its content");
}

/// CVE-2022-4318.
#[test]
fn a_home_of_several_lines_is_refused() {
    let home = json!(["PATH=/bin", "HOME=/\nroot2:x:0:0::/:/bin/sh"]);
    let told = Bundle::new(&["true"]).set("/process/env", home).create().failure();
    assert!(told.contains("HOME has more than one line"), "{told}");
    let bundle = Bundle::new(&["sleep", "100"]).started();
    let exec = bundle.verb(&["exec", "--env", "HOME=/\nx", &bundle.id, "true"]);
    assert!(exec.failure().contains("HOME has more than one line"));
}

/// CVE-2022-29162.
#[test]
fn inheritable_and_ambient_capabilities_are_empty() {
    let bundle = Bundle::new(&["sleep", "100"]).started();
    let status = bundle.exec(&["cat", "/proc/self/status", "/proc/1/status"]).success();
    for line in status.lines().filter(|line| line.starts_with("CapInh") || line.starts_with("CapAmb")) {
        assert!(line.ends_with("0000000000000000"), "{line}");
    }
}

/// CVE-2024-40635.
#[test]
fn ids_out_of_range_are_refused() {
    for uid in [1u64 << 31, u32::MAX.into()] {
        let told = Bundle::new(&["true"]).set("/process/user/uid", json!(uid)).create().failure();
        assert!(told.contains("out of range"), "{told}");
    }
    for uid in [json!(1u64 << 32), json!(-1)] {
        Bundle::new(&["true"]).set("/process/user/uid", uid).create().failure();
    }
    let bundle = Bundle::new(&["sleep", "100"]).started();
    for user in ["-1", "4294967295", "4294967296", "root", "99999999999"] {
        assert_ne!(bundle.verb(&["exec", &format!("--user={user}"), &bundle.id, "true"]).code, 0, "{user}");
    }
}

/// CVE-2025-52565: a terminal's name is nothing that the container has a say in.
#[test]
fn a_console_that_leads_elsewhere_stays_inside() {
    let canary = tempfile::NamedTempFile::new().unwrap();
    let bundle = Bundle::new(&["true"]).set("/process/terminal", json!(true));
    let mut bundle = bundle;
    // Without a tmpfs the image's own /dev is used.
    let mounts = bundle.spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != "/dev");
    std::os::unix::fs::symlink(canary.path(), bundle.inside("dev/console")).unwrap();
    bundle.write();
    let before = fs::metadata(canary.path()).unwrap();
    bundle.verb(&["run", "-b", bundle.path().to_str().unwrap(), &bundle.id]).success();
    let after = fs::metadata(canary.path()).unwrap();
    assert_eq!(
        (before.ino(), before.uid(), before.ctime_nsec()),
        (after.ino(), after.uid(), after.ctime_nsec())
    );
}

#[test]
fn without_a_pivot_no_procfs_of_the_host_is_in_reach() {
    // The kernel lets a user namespace mount one only where another can be seen that has nothing masked.
    let script = "busybox unshare -mrpf busybox mount -t proc none /proc 2>&1 || echo refused";
    for mapped in [false, true] {
        let bundle = Bundle::shell(script)
            .push("/process/capabilities/bounding", json!("CAP_SETFCAP"))
            .push("/process/capabilities/permitted", json!("CAP_SETFCAP"))
            .push("/process/capabilities/effective", json!("CAP_SETFCAP"));
        let bundle = if mapped { bundle.mapped() } else { bundle };
        bundle.write();
        for verb in [&["run"][..], &["run", "--no-pivot"]] {
            let rest = ["--bundle", bundle.path().to_str().unwrap(), &bundle.id];
            let told = bundle.verb(&[verb, &rest].concat()).success();
            let refused = told.contains("permission denied") && told.ends_with("refused\n");
            assert!(refused, "{verb:?}, mapped: {mapped}: {told}");
        }
    }
}
