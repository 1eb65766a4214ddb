//! The oracle is shown one leak of every kind, and the broom has to take each away.

use std::process::{Child, Stdio};
use std::time::Duration;

use super::*;
use crate::eventually_sync;

fn scope(base: &Path) -> Scope {
    let id = rand::random::<u32>();
    Scope {
        base: base.into(),
        root: base.join("r"),
        state: base.join("s"),
        bridge: format!("spt{id:08x}"),
        cgroup: format!("/sampan-test-{id:08x}"),
        pid: 0,
    }
}

fn run(line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn sleeper(directory: &Path) -> Child {
    let mut command = Command::new("unshare");
    command.args(["--net", "sleep", "1000"]).current_dir(directory).stdin(Stdio::null()).spawn().unwrap()
}

#[test]
fn every_kind_of_leak_is_seen_and_swept() {
    let base = tempfile::tempdir().unwrap();
    let scope = scope(base.path());
    fs::create_dir_all(scope.root.join("snapshots/active")).unwrap();
    fs::create_dir_all(scope.root.join("content/ingest")).unwrap();
    fs::create_dir_all(&scope.state).unwrap();
    let bridge = &scope.bridge;
    // The skeleton, which is no leak.
    run(&format!("ip link add {bridge} type bridge"));
    run(&format!("nft add table inet {bridge}"));
    run(&format!("nft add map inet {bridge} ports {{ type inet_service : inet_service; }}"));
    let before = Snapshot::take(&scope);
    assert!(before.differences(&before).is_empty());

    let port = format!("p{}", &bridge[3..]);
    run(&format!("ip link add {port} type veth peer name q{}", &bridge[3..]));
    run(&format!("ip link set {port} master {bridge}"));
    run(&format!("nft add element inet {bridge} ports {{ 80 : 8080 }}"));
    let merged = scope.root.join("snapshots/active/abc/merged");
    fs::create_dir_all(&merged).unwrap();
    run(&format!("mount -t tmpfs none {}", merged.display()));
    fs::write(scope.root.join("content/ingest/half"), "x").unwrap();
    fs::write(scope.root.join("record.json.tmp"), "x").unwrap();
    let mut process = sleeper(&scope.state);
    let cgroup = hierarchies()[0].join(&scope.cgroup[1..]).join("pod");
    fs::create_dir_all(&cgroup).unwrap();

    let kinds = [
        "link: p",
        "nftables element of \"ports\"",
        "mount: / ",
        "file: ",
        "temporary file: ",
        "process ",
        "network namespace: net:[",
        "cgroup: ",
    ];
    let mut seen = Vec::new();
    let all = eventually_sync(Duration::from_secs(5), || {
        seen = before.differences(&Snapshot::take(&scope));
        kinds.iter().all(|kind| seen.iter().any(|leak| leak.starts_with(kind)))
    });
    assert!(all, "{kinds:?}\n{seen:#?}");

    // Its parent has to take note of the end, or it stays as a zombie.
    let reaper = std::thread::spawn(move || process.wait());
    sweep(&scope);
    reaper.join().unwrap().unwrap();
    let after = Snapshot::take(&scope);
    let left: Vec<_> =
        before.differences(&after).into_iter().filter(|leak| !leak.contains("file: ")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!Path::new("/sys/class/net").join(bridge).exists());
    assert!(!printed("nft", &["list", "tables"]).contains(bridge.as_str()));
    run(&format!("ip link delete {port}"));
}

#[test]
fn other_agents_things_are_not_seen() {
    let [one, two] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let scope = scope(one.path());
    let before = Snapshot::take(&scope);
    let mut process = sleeper(two.path());
    fs::write(two.path().join("x.tmp"), "x").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let differences = before.differences(&Snapshot::take(&scope));
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(differences.is_empty(), "{differences:?}");
}
