//! The shim's own behaviour: what it holds, what it survives, when it ends.

use std::fs;
use std::time::{Duration, Instant};

use sampan_runtime::cgroup::Cgroup;
use sampan_runtime::shim::protocol::{Request, Response, Status};

use crate::client::Client;
use crate::pod::{Pod, Variation, eventually};

#[test]
fn a_shutdown_leaves_nothing() {
    let mut pod = Pod::with(&["--shared-pid"]);
    let client = pod.connect();
    let deaf = ["/bin/sh", "-c", "trap '' TERM; setsid sleep 1000 & sleep 1000"];
    pod.run(&client, "running", &deaf, Variation::default());
    pod.create(&client, "created", &["/bin/true"], Variation::default());
    pod.run_script("exited", "exit 0", Variation::default());
    let (exec, _output) = pod.exec("running", &["/bin/sleep", "1000"]);
    assert!(matches!(exec.receive(), Some(Response::ExecStarted { .. })));
    client.done(&Request::Shutdown);
    assert_eq!(pod.wait().code(), Some(0), "{}", pod.log());
    for name in ["running", "created", "exited"] {
        assert!(pod.cgroup_of(name).paths().values().all(|path| !path.exists()), "{name}");
        assert!(name == "created" || pod.path(name).join("exit.json").exists());
    }
    assert!(pod.cgroup_of("monitor").pids().unwrap().is_empty(), "the pod's first process is gone too");
}

/// CVE-2020-15257: a container in the host's network namespace reaches every abstract socket there is, so none is ours.
#[test]
fn nothing_listens_on_an_abstract_socket() {
    let pod = Pod::new();
    let client = pod.connect();
    pod.run(&client, "a", &["/bin/sleep", "1000"], Variation::default());
    let (_exec, _output) = pod.exec("a", &["/bin/sleep", "1000"]);
    let sockets: Vec<String> = fs::read_dir(format!("/proc/{}/fd", pod.shim_pid()))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|target| {
            Some(target.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned())
        })
        .collect();
    // Of the namespace in which its sockets were made, and of the pod's.
    let table = fs::read_to_string("/proc/self/net/unix").unwrap()
        + &fs::read_to_string(format!("/proc/{}/net/unix", pod.shim_pid())).unwrap();
    // Num RefCount Protocol Flags Type St Inode Path
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let own: Vec<_> = lines
        .filter(|fields| fields.get(6).is_some_and(|field| sockets.iter().any(|inode| inode == field)))
        .collect();
    assert!(own.iter().any(|fields| fields.len() > 7), "it listens somewhere: {table}");
    assert!(own.iter().all(|fields| fields.get(7).is_none_or(|path| path.starts_with('/'))), "{own:?}");
}

#[test]
fn sigterm_is_a_shutdown() {
    let mut pod = Pod::new();
    let client = pod.connect();
    pod.run(&client, "a", &["/bin/sleep", "1000"], Variation::default());
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pod.shim_pid()).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert_eq!(pod.wait().code(), Some(0));
    assert!(pod.path("a/exit.json").exists());
}

#[test]
fn containers_do_not_care_for_clients() {
    let pod = Pod::new();
    pod.run(&pod.connect(), "a", &["/bin/sh", "-c", "sleep 0.3; exit 5"], Variation::default());
    // The client that made it has gone; a later one learns how it ended.
    let client = pod.connect();
    assert_eq!(client.state()[0].status, Status::Running);
    eventually("it ends", || client.state()[0].status == Status::Exited);
    assert_eq!(client.state()[0].exit.as_ref().unwrap().code, 5);
}

#[test]
fn a_client_that_does_not_read_disturbs_nobody() {
    let pod = Pod::new();
    let stuck = pod.connect();
    let (client, events) = (pod.connect(), pod.subscribe());
    pod.run(&client, "a", &["/bin/sleep", "1000"], Variation::default());
    rustix::fs::fcntl_setfl(&stuck, rustix::fs::OFlags::NONBLOCK).unwrap();
    let request = serde_json::to_vec(&Request::State).unwrap();
    // Until the shim has given it up, or takes no more from it.
    for _ in 0..10_000 {
        let flags = rustix::net::SendFlags::NOSIGNAL;
        match rustix::net::send(&stuck, &request, flags) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(errno) => {
                assert!(matches!(errno, rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET), "{errno}");
                break;
            }
        }
    }
    assert_eq!(client.state().len(), 1);
    client.done(&Request::Kill { id: "a".into(), signal: 9, all: false });
    assert_eq!(events.exit_of("a").code, 137);
}

#[test]
fn the_monitor_is_in_its_own_cgroup_and_has_no_stray_descriptors() {
    let pod = Pod::new();
    let client = pod.connect();
    assert_eq!(pod.cgroup_of("monitor").pids().unwrap(), [pod.shim_pid()]);
    let proc = format!("/proc/{}", pod.shim_pid());
    let targets = || {
        let links = fs::read_dir(format!("{proc}/fd")).unwrap();
        let targets =
            links.map(|link| fs::read_link(link.unwrap().path()).unwrap().to_string_lossy().into_owned());
        targets.collect::<Vec<_>>()
    };
    // Standard ones, epoll, signals, /dev/null and this client.
    assert_eq!(targets().len(), 7, "{:?}", targets());
    let pid = pod.run(&client, "a", &["/bin/sleep", "1000"], Variation::default());
    let inside = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert_eq!(inside, 3, "the workload sees 0, 1 and 2 only");
    assert_eq!(fs::read_to_string(format!("{proc}/comm")).unwrap(), "sampan-shim\n");
    let score = |pid: i32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(
        score(pid),
        score(std::process::id() as i32),
        "a container doesn't inherit the monitor's score"
    );
}

#[test]
fn a_memory_bomb_leaves_the_monitor_alive() {
    let pod = Pod::new();
    let resources = serde_json::json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
    let exit =
        pod.run_script("a", "a=x; while :; do a=$a$a; done", Variation { resources, ..Default::default() });
    assert!(exit.oom_killed);
    assert_eq!(pod.connect().state().len(), 1);
}

#[test]
fn a_hundred_pods_worth_of_garbage_is_refused_politely() {
    let pod = Pod::new();
    let client = Client::connect_silently(&pod.path("shim.sock"));
    for seed in 0u32..300 {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let bytes: Vec<u8> = (0..1 + seed * 13 % 4096)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                state as u8
            })
            .collect();
        client.send_bytes(&bytes, &[]);
        assert!(matches!(client.receive(), Some(Response::Error { .. })));
    }
    assert!(pod.connect().state().is_empty());
}

#[test]
fn work_is_done_in_milliseconds() {
    let pod = Pod::new();
    let (client, events) = (pod.connect(), pod.subscribe());
    let since = Instant::now();
    for round in 0..5 {
        let name = format!("c{round}");
        pod.run(&client, &name, &["/bin/true"], Variation::default());
        events.exit_of(&name);
        client.done(&Request::Forget { id: name });
    }
    // A guard against waiting for something that isn't there, and no benchmark.
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert!(Cgroup::new("sampan").is_ok());
}
