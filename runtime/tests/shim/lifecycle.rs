//! From create to forget, and the ways in which it goes wrong.

use std::fs;

use sampan_runtime::shim::protocol::{ErrorKind, Exit, Request, Response, Status};
use serde_json::json;

use crate::pod::{Pod, Variation, eventually};

fn id(id: &str) -> String {
    id.to_owned()
}

#[test]
fn a_container_is_created_started_seen_to_end_and_forgotten() {
    let pod = Pod::new();
    let (client, events) = (pod.connect(), pod.subscribe());
    let pid = pod.create(&client, "web", &["/bin/sh", "-c", "echo hello; exit 7"], Variation::default());
    let state = client.state();
    assert_eq!((state[0].pid, state[0].status, state[0].started_at), (pid, Status::Created, 0));
    assert_eq!(pod.lines("web"), [""; 0], "nothing runs before the start");

    let started_at = pod.start(&client, "web");
    let exit = events.exit_of("web");
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (7, None, false));
    assert!(exit.started_at == started_at && exit.finished_at >= started_at);
    assert_eq!(pod.lines("web"), ["stdout F hello"]);

    let state = client.state();
    assert_eq!((state[0].status, state[0].exit.as_ref()), (Status::Exited, Some(&exit)));
    let record: Exit = serde_json::from_slice(&fs::read(pod.path("web/exit.json")).unwrap()).unwrap();
    assert_eq!(record, exit);

    client.done(&Request::Forget { id: id("web") });
    assert!(client.state().is_empty());
    assert!(
        pod.cgroup_of("web").paths().values().all(|path| !path.exists()),
        "the cgroup is gone with the answer"
    );
    assert_eq!(client.refused(&Request::Forget { id: id("web") }).0, ErrorKind::NotFound);
}

#[test]
fn the_exit_record_is_there_before_the_event() {
    let pod = Pod::new();
    for round in 0..20 {
        let name = format!("c{round}");
        pod.run_script(&name, "exit 3", Variation::default());
        let record: Exit =
            serde_json::from_slice(&fs::read(pod.path(&name).join("exit.json")).unwrap()).unwrap();
        assert_eq!(record.code, 3);
    }
}

#[test]
fn a_missing_entrypoint_fails_the_start_and_counts_as_127() {
    let pod = Pod::new();
    let (client, events) = (pod.connect(), pod.subscribe());
    pod.create(&client, "a", &["/nope"], Variation::default());
    let (kind, message) = client.refused(&Request::Start { id: id("a") });
    assert_eq!(kind, ErrorKind::InvalidArgument);
    assert!(message.contains("exec: \"/nope\": No such file or directory"), "{message}");
    let exit = events.exit_of("a");
    assert_eq!((exit.code, exit.started_at), (127, 0));
    assert_eq!(client.state()[0].status, Status::Exited);

    pod.create(&client, "b", &["/etc/passwd"], Variation::default());
    assert_eq!(client.refused(&Request::Start { id: id("b") }).0, ErrorKind::InvalidArgument);
    assert_eq!(events.exit_of("b").code, 126);
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let pod = Pod::new();
    let client = pod.connect();
    let request = pod.bundle("a", &["/bin/true"], Variation::default());
    let mut spec: serde_json::Value =
        serde_json::from_slice(&fs::read(pod.path("a/config.json")).unwrap()).unwrap();
    spec["mounts"][0] =
        json!({ "destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"] });
    fs::write(pod.path("a/config.json"), spec.to_string()).unwrap();
    let (_, message) = client.refused(&request);
    assert!(message.contains("/no/such/source"), "{message}");
    assert!(client.state().is_empty());
    assert!(pod.cgroup_of("a").paths().values().all(|path| !path.exists()));

    fs::write(pod.path("a/config.json"), "{").unwrap();
    assert!(client.refused(&request).1.contains("config.json"));
    let Request::Create { bundle: _, cgroup, log, pid, id, stdin, terminal, runtime } = request.clone()
    else {
        unreachable!()
    };
    let missing =
        Request::Create { bundle: "missing".into(), cgroup, log, pid, id, stdin, terminal, runtime };
    assert!(client.refused(&missing).1.contains("missing/config.json"));
}

#[test]
fn senseless_requests_are_refused() {
    let pod = Pod::new();
    let client = pod.connect();
    let create = |id: &str, cgroup: &str| Request::Create {
        id: id.to_owned(),
        bundle: "b".into(),
        cgroup: cgroup.to_owned(),
        log: None,
        pid: Default::default(),
        stdin: false,
        terminal: false,
        runtime: None,
    };
    for request in
        [create("", "/c"), create("a/b", "/c"), create(&"a".repeat(129), "/c"), create("a", "/c/../d")]
    {
        assert_eq!(client.refused(&request).0, ErrorKind::InvalidArgument, "{request:?}");
    }
    assert_eq!(client.refused(&Request::Start { id: id("none") }).0, ErrorKind::NotFound);
    client.send_bytes(b"not json", &[]);
    assert!(matches!(client.receive(), Some(Response::Error { kind: ErrorKind::InvalidArgument, .. })));

    let request = pod.bundle("a", &["/bin/sleep", "1000"], Variation::default());
    assert!(matches!(client.ask(&request), Response::Created { .. }));
    assert_eq!(client.refused(&request).0, ErrorKind::AlreadyExists);
    pod.start(&client, "a");
    assert_eq!(client.refused(&Request::Start { id: id("a") }).0, ErrorKind::FailedPrecondition);
    assert_eq!(client.refused(&Request::Forget { id: id("a") }).0, ErrorKind::FailedPrecondition);
    for signal in [0, -9, 65] {
        let request = Request::Kill { id: id("a"), signal, all: false };
        assert_eq!(client.refused(&request).0, ErrorKind::InvalidArgument);
    }
}

#[test]
fn hello_comes_first() {
    let pod = Pod::new();
    let client = crate::client::Client::connect_silently(&pod.path("shim.sock"));
    assert_eq!(client.refused(&Request::State).0, ErrorKind::FailedPrecondition);
    let Response::Hello { pid, .. } = client.ask(&Request::Hello { version: 7 }) else { panic!("no hello") };
    assert_eq!(pid, pod.shim_pid());
}

#[test]
fn signals_reach_the_first_process_or_all() {
    let pod = Pod::new();
    let (client, events) = (pod.connect(), pod.subscribe());
    let kill = |id: &str, signal, all| client.done(&Request::Kill { id: id.to_owned(), signal, all });

    let script = "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    pod.run(&client, "polite", &["/bin/sh", "-c", script], Variation::default());
    eventually("the trap is set", || !pod.lines("polite").is_empty());
    kill("polite", 15, false);
    assert_eq!(events.exit_of("polite").code, 5);
    assert_eq!(pod.lines("polite"), ["stdout F ready", "stdout F got"]);

    pod.run(
        &client,
        "deaf",
        &["/bin/sh", "-c", "trap '' TERM; setsid sleep 1000 & sleep 1000"],
        Variation::default(),
    );
    kill("deaf", 9, true);
    let exit = events.exit_of("deaf");
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));
    eventually("all have gone", || pod.cgroup_of("deaf").pids().unwrap().is_empty());
    let request = Request::Kill { id: id("deaf"), signal: 9, all: true };
    assert_eq!(client.refused(&request).0, ErrorKind::FailedPrecondition);
}

#[test]
fn killing_all_of_a_busy_container_is_seen_as_a_signal() {
    let pod = Pod::new();
    let (client, events) = (pod.connect(), pod.subscribe());
    for round in 0..10 {
        let name = format!("c{round}");
        pod.run(&client, &name, &["/bin/sh", "-c", "while :; do echo x | cat; done"], Variation::default());
        eventually("it forks", || !pod.lines(&name).is_empty());
        client.done(&Request::Kill { id: name.clone(), signal: 9, all: true });
        assert_eq!(events.exit_of(&name).signal, Some(9));
    }
}

#[test]
fn real_time_signals_pass() {
    let pod = Pod::new();
    let (client, events) = (pod.connect(), pod.subscribe());
    let script = "trap 'exit 9' 37; echo ready; while :; do sleep 0.05; done";
    pod.run(&client, "a", &["/bin/sh", "-c", script], Variation::default());
    eventually("the trap is set", || !pod.lines("a").is_empty());
    client.done(&Request::Kill { id: id("a"), signal: 37, all: false });
    assert_eq!(events.exit_of("a").code, 9);
}

#[test]
fn a_created_container_can_be_killed_or_forgotten() {
    let pod = Pod::new();
    let (client, events) = (pod.connect(), pod.subscribe());
    pod.create(&client, "killed", &["/bin/true"], Variation::default());
    client.done(&Request::Kill { id: id("killed"), signal: 9, all: true });
    let exit = events.exit_of("killed");
    assert_eq!((exit.code, exit.started_at), (137, 0));
    assert_eq!(client.refused(&Request::Start { id: id("killed") }).0, ErrorKind::FailedPrecondition);

    pod.create(&client, "forgotten", &["/bin/true"], Variation::default());
    client.done(&Request::Forget { id: id("forgotten") });
    let ids: Vec<_> = client.state().into_iter().map(|state| state.id).collect();
    assert_eq!(ids, ["killed"]);
    pod.create(&client, "forgotten", &["/bin/true"], Variation::default());
}

#[test]
fn a_memory_bomb_dies_of_its_own_limit() {
    let pod = Pod::new();
    let resources = json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
    let exit = pod.run_script(
        "bomb",
        "a=x; while :; do a=$a$a; done",
        Variation { resources, ..Default::default() },
    );
    assert_eq!((exit.code, exit.oom_killed), (137, true));
    // A container killed by somebody else beside it is not mistaken for it.
    let (client, events) = (pod.connect(), pod.subscribe());
    pod.run(&client, "other", &["/bin/sleep", "1000"], Variation::default());
    client.done(&Request::Kill { id: id("other"), signal: 9, all: false });
    assert!(!events.exit_of("other").oom_killed);
}

#[test]
fn limits_are_in_force() {
    let pod = Pod::new();
    let resources = json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 5 }, "cpu": { "shares": 512, "quota": 50_000, "period": 100_000 } });
    let client = pod.connect();
    pod.run(
        &client,
        "a",
        &["/bin/sh", "-c", "for i in 1 2 3 4; do sleep 1000 & done; sleep 1000"],
        Variation { resources, ..Default::default() },
    );
    let cgroup = pod.cgroup_of("a");
    eventually("the limit is reached", || cgroup.stats().unwrap().pids.current == 5);
    let stats = cgroup.stats().unwrap();
    assert_eq!((stats.memory.limit_bytes, stats.pids.limit), (Some(64 << 20), Some(5)));
    assert!(stats.memory.usage_bytes > 0 && stats.cpu.usage_ns > 0);
}

#[test]
fn many_containers_are_listed_in_several_messages() {
    let pod = Pod::new();
    let client = pod.connect();
    for number in 0..30 {
        let name = format!("{number:02}-{}", "x".repeat(120));
        pod.create(&client, &name, &["/bin/true"], Variation { no_log: true, ..Default::default() });
    }
    assert_eq!(client.state().len(), 30);
}
