//! Pods whose containers another OCI runtime makes: Debian's runc, and our own by its command line.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use k8s_cri::v1::RunPodSandboxRequest;
use sampan_tests::{Agent, Ctr, Options, Pod, binary, eventually, with_agent, with_agent_of};
use tonic::{Code, Status};

use super::{SOON, busybox};

fn handlers() -> Options {
    let own = binary("sampan-runtime");
    let configuration = format!(
        "[runtime.handlers.runc]\npath = \"/usr/sbin/runc\"\n[runtime.handlers.own]\npath = {own:?}\n\
         [runtime.handlers.missing]\npath = \"/no/such/runtime\"\n"
    );
    Options { configuration, ..Options::default() }
}

async fn run_pod(agent: &Agent, pod: &Pod, handler: &str) -> Result<String, Status> {
    let request = RunPodSandboxRequest { config: Some(pod.config.clone()), runtime_handler: handler.into() };
    let answer = agent.cri().runtime.run_pod_sandbox(request).await?;
    Ok(answer.into_inner().pod_sandbox_id)
}

/// Everything that kubelet does with a container.
async fn live(agent: &mut Agent, handler: &str) {
    let image = busybox(agent).await;
    let (cri, pod) = (agent.cri(), agent.pod("handled"));
    let pod_id = run_pod(agent, &pod, handler).await.unwrap();
    let script = "echo out; echo err >&2; trap 'exit 7' TERM; while :; do sleep 0.1; done";
    let config =
        Ctr::new("c", &image, &pod).sh(script).resources(|limits| limits.memory_limit_in_bytes = 64 << 20);
    let id = cri.run(&pod_id, &config, &pod).await.unwrap();

    assert_eq!(cri.sh(&id, "cat /proc/1/cmdline | tr '\\0' ' '").await.split(' ').next(), Some("sh"));
    assert_eq!(cri.sh(&id, "hostname; ls /sys/class/net").await.lines().last(), Some("lo"));
    assert_eq!(cri.sh(&id, "grep Seccomp: /proc/self/status").await, "Seccomp:\t2");
    let answer = cri.exec(&id, &["sh", "-c", "echo said; exit 3"], 10).await.unwrap();
    assert_eq!((answer.exit_code, &answer.stdout[..]), (3, &b"said\n"[..]));
    let status = cri.exec(&id, &["sleep", "60"], 1).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    let inspected: serde_json::Value = serde_json::from_str(&agent.cli().ok(&["inspect", &id])).unwrap();
    assert!(inspected[0]["State"]["Pid"].as_i64().unwrap() > 1);

    agent.kill();
    agent.restart().await;
    let cri = agent.cri();
    assert_eq!(cri.sh(&id, "echo still there").await, "still there");
    let request = k8s_cri::v1::ContainerStatsRequest { container_id: id.clone() };
    let stats = cri.runtime.clone().container_stats(request).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
    cri.stop(&id, 10).await.unwrap();
    assert_eq!(cri.container(&id).await.unwrap().exit_code, 7, "its own answer to the stop signal");
    let log = fs::read_to_string(pod.log_file(&config)).unwrap();
    assert!(log.contains("stdout F out") && log.contains("stderr F err"), "{log}");

    let mut typed = Ctr::new("typed", &image, &pod).sh("tty; exec sleep 1000");
    typed.config.tty = true;
    let id = cri.run(&pod_id, &typed, &pod).await.unwrap();
    eventually("it tells its terminal", SOON, async || {
        fs::read_to_string(pod.log_file(&typed)).unwrap().contains("stdout F /dev/pts/0").then_some(())
    })
    .await;
    let output = agent.cli().run(&["exec", "-t", &id, "sh", "-c", "tty; exit 4"]);
    assert!(output.code == 4 && output.stdout.starts_with("/dev/pts/"), "{output:?}");

    let missing = Ctr::new("missing", &image, &pod).command(&["/no/such/program"]);
    let status = cri.run(&pod_id, &missing, &pod).await.unwrap_err();
    assert!(status.message().contains("/no/such/program"), "{status}");
    let hungry = Ctr::new("hungry", &image, &pod)
        .command(&["dd", "if=/dev/zero", "of=/dev/null", "bs=256M"])
        .resources(|limits| limits.memory_limit_in_bytes = 16 << 20);
    let id = cri.run(&pod_id, &hungry, &pod).await.unwrap();
    let ended = cri.ended(&id).await;
    assert_eq!((ended.reason.as_str(), ended.exit_code), ("OOMKilled", 137));
    // A kill that a container survived is not what ends it when it is told to stop.
    let script =
        "trap '' TERM; dd if=/dev/zero of=/dev/null bs=256M; echo survived; while :; do sleep 0.1; done";
    let survivor = Ctr::new("survivor", &image, &pod)
        .sh(script)
        .resources(|limits| limits.memory_limit_in_bytes = 16 << 20);
    let id = cri.run(&pod_id, &survivor, &pod).await.unwrap();
    eventually("a process of it is killed", SOON, async || {
        fs::read_to_string(pod.log_file(&survivor)).unwrap().contains("stdout F survived").then_some(())
    })
    .await;
    cri.stop(&id, 0).await.unwrap();
    let stopped = cri.container(&id).await.unwrap();
    assert_eq!((stopped.reason.as_str(), stopped.exit_code), ("Error", 137));
    // One that never starts is removed too.
    cri.create(&pod_id, &Ctr::sleeper("idle", &image, &pod), &pod).await.unwrap();
    cri.run(&pod_id, &Ctr::sleeper("running", &image, &pod), &pod).await.unwrap();
    cri.clear_pod(&pod_id).await.unwrap();

    let pod = agent.pod("shared").shared_pid();
    let pod_id = run_pod(agent, &pod, handler).await.unwrap();
    let first = cri.run(&pod_id, &Ctr::sleeper("one", &image, &pod), &pod).await.unwrap();
    let sleep = |seconds: &str| Ctr::new("two", &image, &pod).command(&["sleep", seconds]);
    cri.run(&pod_id, &sleep("4321"), &pod).await.unwrap();
    assert_eq!(cri.sh(&first, "cat /proc/1/comm; ps | grep -c 'sleep [4]321'").await, "sampan-pod\n1");
    cri.clear_pod(&pod_id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn runc_makes_the_containers_of_its_pods() {
    with_agent_of(handlers(), async |agent| live(agent, "runc").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_runtime_does_by_its_command_line() {
    with_agent_of(handlers(), async |agent| live(agent, "own").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_that_cannot_be_are_told() {
    with_agent_of(handlers(), async |agent| {
        let image = busybox(agent).await;
        let pod = agent.pod("handled");
        let status = run_pod(agent, &pod, "kata").await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("\"kata\"") && status.message().contains("runc"), "{status}");
        let pod_id = run_pod(agent, &pod, "missing").await.unwrap();
        let cri = agent.cri();
        let status = cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap_err();
        assert!(status.message().contains("/no/such/runtime"), "{status}");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_of_devices_are_run() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let seen = agent.base().join("seen");
        let hook = agent.base().join("hook");
        let script = format!("#!/bin/sh\necho $1 >>{}\ncat >/dev/null\n", seen.display());
        fs::write(&hook, script).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(agent.base().join("cdi")).unwrap();
        let hooks: String = ["createRuntime", "createContainer", "poststart", "poststop"]
            .map(|kind| {
                format!("        - {{ hookName: {kind}, path: {}, args: [hook, {kind}] }}\n", hook.display())
            })
            .concat();
        let file = format!(
            "cdiVersion: 0.6.0\nkind: vendor.example/hooked\ndevices:\n  - name: one\n    containerEdits:\n      hooks:\n{hooks}"
        );
        fs::write(agent.base().join("cdi/vendor.yaml"), file).unwrap();
        let (cri, pod) = (agent.cri(), agent.pod("hooked"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config = Ctr::sleeper("c", &image, &pod).annotation("cdi.k8s.io/x", "vendor.example/hooked=one");
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        assert_eq!(fs::read_to_string(&seen).unwrap(), "createRuntime\ncreateContainer\npoststart\n");
        assert_eq!(cri.sh(&id, "echo usable").await, "usable");
        cri.stop(&id, 0).await.unwrap();
        assert!(fs::read_to_string(&seen).unwrap().ends_with("poststop\n"));
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}
